"""All pictures of the results, each drawn from a CSV alone.

python -m benchmarks.draw [DIRECTORY]    redraws the pictures of its CSVs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from . import results_csv
from .arguments import DIRECTORY, IN_TREE
from .growth_fit import fit

Record = dict[str, str]

IMAGES: Final = Path(__file__).resolve().parents[1] / "docs" / "images"

#: A peer's colour is the same in every picture (Okabe and Ito's palette, told apart by the colour-blind).
COLOURS = {
    "reference": "#999999", "compiled reference": "#000000", "einsum": "#999999", "compiled einsum": "#000000",
    "cpu": "#0072B2", "triton": "#E69F00", "cuda": "#009E73",
    "kornia render_gaussian2d": "#CC79A7", "mmpose drawing": "#D55E00", "face-alignment drawing": "#56B4E9",
    "autograd by hand": "#999999", "captum": "#CC79A7", "pytorch-grad-cam": "#D55E00",
    "pal_fast.attribution_map": "#0072B2", "pal_fast.attribute": "#56B4E9",
}  # fmt: skip


WHISKERS = ", whiskers and bands from p20 to p80"


def draw(path: Path) -> list[Path]:
    """Draws the pictures of one CSV into `folder_of(path)`."""
    subject = path.stem.rsplit("_", 1)[0]
    records = [record for record in results_csv.read(path) if record["p50_ms"]] if subject in PICTURES else []
    if not records:
        return []
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    written = []
    for name, picture in PICTURES[subject].items():
        figure = picture.draw(plt, records)
        whiskers = "" if name == "_roofline" else WHISKERS
        figure.supxlabel(caption(records[0]) + whiskers, fontsize=7, color="#555555", x=0.01, ha="left")
        target = folder_of(path) / f"{path.stem}{name}.png"
        figure.savefig(target, dpi=130, metadata={"Software": None})
        plt.close(figure)
        written.append(target)
    return written


def folder_of(path: Path) -> Path:
    """Where a CSV's pictures lie: next to it; those of the source tree's own results where the page shows them."""
    return IMAGES if IN_TREE and path.parent == DIRECTORY else path.parent


def caption(record: Record) -> str:
    driver = f", driver {record['driver']}" if record["driver"] else ""
    return (
        f"{record['device']}{driver}, {record['threads']} threads, PyTorch {record['torch']}, "
        f"pal_fast {record['pal_fast']}; medians"
    )


def plain_numbers(*axes: Any) -> None:
    """Labels the ticks of logarithmic axes 0.5, 1, 2 instead of with powers of ten, as many as fit."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in axes:
        low, high = axis.get_view_interval()
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 1000 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
        axis.set_minor_formatter(NullFormatter())


def peers_of(records: Sequence[Record]) -> list[str]:
    return list(dict.fromkeys(record["peer"] for record in records))


def case_of(record: Record) -> str:
    return f"({record['B']}, {record['C']}, {record['H']}, {record['W']})\n{record['dtype']} {record['layout']}"


def bars(axes: Any, records: Sequence[Record], label: Callable[[Record], str], among: Sequence[Record] = ()) -> None:
    """A group of horizontal bars for each case, with a bar for each peer of `among`, so that panels agree."""
    among = among or records
    groups, names = list(dict.fromkeys(map(label, among))), peers_of(among)
    height = 0.8 / len(names)
    for index, name in enumerate(names):
        mine = [record for record in records if record["peer"] == name]
        at = [groups.index(label(record)) + (index - (len(names) - 1) / 2) * height for record in mine]
        p20, p50, p80 = ([float(record[column]) for record in mine] for column in ("p20_ms", "p50_ms", "p80_ms"))
        whiskers = [[m - lo for m, lo in zip(p50, p20, strict=True)], [hi - m for m, hi in zip(p50, p80, strict=True)]]
        axes.barh(at, p50, height, xerr=whiskers, color=COLOURS.get(name), label=name, error_kw={"lw": 0.8})
        known = {label(record) for record in mine}
        for index_of_group in (i for i, group in enumerate(groups) if group not in known):
            at_missing = index_of_group + (index - (len(names) - 1) / 2) * height
            axes.text(0.01, at_missing, "no figure", transform=axes.get_yaxis_transform(), va="center", fontsize=6.5,
                      color="#555555")  # fmt: skip
    axes.set_yticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_xlabel("milliseconds")
    axes.grid(axis="x", which="both", alpha=0.25)
    axes.set_axisbelow(True)


def loss_bars(plt: Any, records: Sequence[Record]) -> Any:
    """Forward plus backward, with the lower bound set by the machine's copy rate."""
    both = [record for record in records if record["mode"] == "both"]
    groups = list(dict.fromkeys(map(case_of, both)))
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.75 * len(groups)), layout="constrained")
    bars(axes, both, case_of)
    axes.set_xscale("log")
    plain_numbers(axes.xaxis)
    axes.set_xlabel("milliseconds (log)")
    for index, group in enumerate(groups):
        record = next(record for record in both if case_of(record) == group)
        floor = float(record["gb_s"]) * float(record["p50_ms"]) / float(record["machine_gb_s"])
        axes.plot(
            [floor, floor], [index - 0.42, index + 0.42], "r-", lw=1.5, label="" if index else "floor: 6M at copy speed"
        )
    axes.set_title("The loss from landmarks, forward plus backward")
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def roofline(plt: Any, records: Sequence[Record]) -> Any:
    """Operations per second over operations per byte, under the two roofs measured in the run."""
    both = [record for record in records if record["mode"] == "both"]
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    bandwidth = sorted(float(record["machine_gb_s"]) for record in both)[len(both) // 2]
    peak = float(both[0]["matmul_gflop_s"])
    xs = [0.05, peak / bandwidth, 1000]
    axes.plot(xs, [min(peak, x * bandwidth) for x in xs], "k-", lw=1.5)
    axes.annotate(
        f"copy {bandwidth:,.1f} GB/s",
        *((0.06, 0.06 * bandwidth), (0, 7), "data", "offset points"),
        fontsize=8, rotation_mode="anchor", rotation=45, transform_rotates_text=True,
    )  # fmt: skip
    axes.annotate(f"float32 matrix product {peak:,.0f} GFLOP/s", (peak / bandwidth * 1.3, peak * 1.15), fontsize=8)
    for name in peers_of(both):
        mine = [record for record in both if record["peer"] == name]
        rates = [float(record["gflop_s"]) for record in mine]
        intensities = [rate / float(record["gb_s"]) for rate, record in zip(rates, mine, strict=True)]
        axes.scatter(intensities, rates, s=28, color=COLOURS.get(name), label=name, zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="operations a byte that must move", ylabel="GFLOP/s")
    plain_numbers(axes.xaxis, axes.yaxis)
    axes.set_title("Roofline of the loss, forward plus backward")
    axes.grid(which="both", alpha=0.2)
    axes.legend(fontsize=8, loc="lower right")
    return figure


def curve(axes: Any, records: Sequence[Record], column: str) -> None:
    """Medians over `column` for each peer, log-log, with the band from p20 to p80."""
    for name in peers_of(records):
        mine = sorted((record for record in records if record["peer"] == name), key=lambda r: float(r[column]))
        x = [float(record[column]) for record in mine]
        p20, p50, p80 = ([float(record[key]) for record in mine] for key in ("p20_ms", "p50_ms", "p80_ms"))
        axes.plot(x, p50, "o-", ms=3.5, lw=1.2, color=COLOURS.get(name), label=name)
        axes.fill_between(x, p20, p80, color=COLOURS.get(name), alpha=0.15, lw=0)
    axes.set(xscale="log", yscale="log")
    plain_numbers(axes.xaxis, axes.yaxis)
    axes.grid(which="both", alpha=0.2)


def heatmap_growth(plt: Any, records: Sequence[Record]) -> Any:
    """Forward over batch, landmarks and size, each starting from the case that all three share."""
    forward = [record for record in records if record["mode"] == "forward"]

    def key(record: Record) -> tuple[str, str, str]:
        return record["B"], record["K"], record["H"]

    base = key(forward[0])  # the first case is the shared one
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained", sharey=True)
    titles = (
        f"batch, {base[1]} landmarks, {base[2]}²",
        f"landmarks, batch {base[0]}, {base[2]}²",
        f"side, batch {base[0]}, {base[1]} landmarks",
    )
    for index, (axes, title) in enumerate(zip(panels, titles, strict=True)):
        others = [i for i in range(3) if i != index]
        along = [record for record in forward if all(key(record)[i] == base[i] for i in others)]
        column = ("B", "K", "H")[index]
        curve(axes, along, column)
        floors = sorted(
            {(float(r[column]), float(r["gb_s"]) * float(r["p50_ms"]) / float(r["machine_gb_s"])) for r in along}
        )
        medians = {x: [y for at, y in floors if at == x] for x, _ in floors}
        axes.plot(list(medians), [sum(ys) / len(ys) for ys in medians.values()], "r--", lw=1, label="floor: one write")
        axes.set(xlabel=column if column != "H" else "H = W", title=title)
        axes.title.set_fontsize(9)
    panels[0].set_ylabel("milliseconds")
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.suptitle("Heatmaps of landmarks, forward")
    return figure


def attribution_bars(plt: Any, records: Sequence[Record]) -> Any:
    """From images to the map, and on to the weights' gradients where the peer supports it."""
    shown = [record for record in records if record["mode"] in ("forward", "both")]
    figure, panels = plt.subplots(1, 2, figsize=(12, 3.6), layout="constrained", sharey=True)
    for axes, mode, title in zip(
        panels, ("forward", "both"), ("images to map", "images to map and back to the weights"), strict=True
    ):
        mine = [record for record in shown if record["mode"] == mode]
        if mine:
            bars(axes, mine, lambda r: f"batch {r['B']}, {r['image']}²", shown)
        axes.set_title(title, fontsize=10)
    figure.legend(*panels[0].get_legend_handles_labels(), fontsize=8, loc="outside right center")
    figure.suptitle(f"Attribution of {records[0]['model']} {records[0]['layer']}")
    return figure


def growth_curves(plt: Any, records: Sequence[Record]) -> Any:
    """Forward plus backward over each size, with the fitted line and the point where calls stop dominating."""
    both = [record for record in records if record["mode"] == "both"]
    figure, panels = plt.subplots(2, 2, figsize=(11, 8), layout="constrained")
    lines = fit(both)
    for axes, axis in zip(panels.flat, ("B", "C", "HW", "K"), strict=True):
        along = [record for record in both if record["axis"] == axis]
        curve(axes, along, "size")
        sizes = [float(record["size"]) for record in along]
        for line in (line for line in lines if line.axis == axis):
            xs = [min(sizes) * (max(sizes) / min(sizes)) ** (i / 40) for i in range(41)]
            axes.plot(xs, [line.fixed_ms + line.slope_ms * x for x in xs], ":", lw=1, color=COLOURS.get(line.peer))
            if min(sizes) < line.turning_point < max(sizes):
                axes.plot(line.turning_point, 2 * line.fixed_ms, "v", ms=8, mfc="none", color=COLOURS.get(line.peer))
        axes.set(
            ylabel="milliseconds", xlabel={"B": "batch", "C": "channels", "HW": "cells, H W", "K": "landmarks"}[axis]
        )
    panels[0, 0].legend(fontsize=8)
    figure.suptitle("Growth of the loss, forward plus backward (dotted: fit; triangle: work equals the cost of calls)")
    return figure


class Picture(NamedTuple):
    draw: Callable[[Any, Sequence[Record]], Any]
    shows: str


#: The pictures of each subject, by the suffix of their files' names.
PICTURES = {
    "loss": {
        "": Picture(loss_bars, "The loss from landmarks"),
        "_roofline": Picture(roofline, "Roofline of the loss"),
    },
    "heatmap": {"": Picture(heatmap_growth, "The drawing over batch, landmarks and size")},
    "attribution": {"": Picture(attribution_bars, "From images to the map, and back to the weights")},
    "growth": {"": Picture(growth_curves, "The loss over batch, channels, cells and landmarks")},
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.draw", description=__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=DIRECTORY)
    directory = parser.parse_args(arguments).directory
    for path in sorted(directory.glob("*.csv")):
        for picture in draw(path):
            print(f"wrote {picture}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
