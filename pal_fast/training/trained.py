"""Loading a trained network from its run, without any trace of the loss, and evaluating it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from pal_fast.training import machine
from pal_fast.training.checkpoint import CHECKPOINT
from pal_fast.training.config import TrainingConfig
from pal_fast.training.evaluation import Evaluation, evaluate_network
from pal_fast.training.loading import errors_in_one_line, evaluation_loader, open_split
from pal_fast.training.networks import build_network
from pal_fast.training.run_folder import RunFolder, read_state
from pal_fast.training.trainer import MODEL


@dataclass(frozen=True)
class Saved:
    """A network in eval mode, its class names, and the config it was trained with."""

    network: nn.Module
    classes: tuple[str, ...]
    config: TrainingConfig
    path: Path


def load_network(path: str | Path) -> Saved:
    """Loads the network of a run's folder, or of a model.pt or checkpoint.pt.

    It is built as the library builds it, without any hook, parameter or module of the loss.

    Raises: ValueError, OSError naming the file.
    """
    path = Path(path)
    if path.is_dir():
        folder = RunFolder(path)
        if not folder.model.exists():
            stage = (
                "it is not complete; give its checkpoint.pt to use its current state" if folder.config.exists() else ""
            )
            raise FileNotFoundError(f"{path} holds no model.pt{': ' + stage if stage else ', so it is not a run'}")
        path = folder.model
    if not path.is_file():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if path.name == RunFolder(path.parent).checkpoint.name:
        state = read_state(path, CHECKPOINT)
    else:
        state = read_state(path, MODEL)
    config = TrainingConfig.from_mapping(state["config"], str(path))
    assert config.size is not None
    network = build_network(config.model, len(state["classes"]), config.size)
    network.load_state_dict(state["network"])
    return Saved(network.eval(), tuple(state["classes"]), config, path)


def evaluate(
    path: str | Path,
    *,
    data: str | None = None,
    root: str | None = None,
    classes: int | None = None,
    split: str = "test",
    alignment: bool = False,
    landmarks: str | None = None,
    format: str | None = None,
    limit: int | None = None,
    batch: int = 64,
    workers: int = 2,
    device: str = "auto",
    precision: str | None = None,
    say: Callable[[str], None] = print,
) -> Evaluation:
    """Evaluates a trained network on a split. No landmarks are read unless an alignment is requested.

    Args:
        path: see `load_network`.
        data, root: another data set with the same classes, its labels mapped by name to the training's;
            None uses the training's.
        classes: the first n classes of that data set, as in training: 7 leaves AffectNet's contempt out.
        alignment: also measure the alignment, with the data set's own landmarks.
        landmarks: a file of landmarks to use instead; implies `alignment`.
        format: format of that file, one of `pal_fast.landmarks.FORMATS`; None guesses.
        limit: use only this many images.
        batch: images at a time in each process.
        device, precision: None and "auto" as in training.

    Raises: ValueError, TypeError, OSError, RuntimeError naming the argument or the file.
    """
    from pal_fast.data import eval_transform

    saved = load_network(path)
    config = saved.config
    if data is not None and data != config.data:
        config = replace(config, data=data, root=None, landmarks=None, format=None)
    if landmarks is not None or format is not None:
        config = replace(config, landmarks=landmarks, format=format)
    config = replace(
        config,
        root=root if root is not None else config.root,
        classes=classes if classes is not None else config.classes,
        limit=limit,
        workers=workers,
        device=device,
        precision=precision or config.precision,
    )
    assert config.size is not None
    alignment = alignment or landmarks is not None
    dataset = open_split(config, split, transform=eval_transform(config.size), landmarks=alignment)
    found = tuple(map(str, dataset.classes))
    if found != saved.classes and sorted(found) == sorted(saved.classes):
        # Labels are identified by class name; the order of classes differs between data sets.
        dataset = open_split(
            config, split, transform=eval_transform(config.size), landmarks=alignment, classes=saved.classes
        )
        if machine.is_main():
            say(f"{config.data} has the classes in another order; its labels are matched by name")
    elif found != saved.classes:
        raise ValueError(
            f"data: {saved.path} knows the classes {', '.join(saved.classes)}, but {config.data} has "
            f"{', '.join(found)}: give data with the same classes, or fewer of them with classes (--classes)"
        )
    if alignment and not dataset.landmark_count:
        raise ValueError(f"landmarks: {config.data} has none of its own; give a file")
    if alignment and not config.layer:
        raise ValueError(f"{saved.path} was trained without a layer, so there is none at which to measure an alignment")
    accelerator = machine.make_accelerator(config.device, config.precision)
    from accelerate.utils import gather_object  # after make_accelerator, which says how to install Accelerate

    saved.network.to(accelerator.device)
    loader = evaluation_loader(
        dataset,
        batch,
        config.workers,
        accelerator.process_index,
        accelerator.num_processes,
        accelerator.device.type == "cuda",
    )
    if machine.is_main():
        say(f"{saved.path} on {len(dataset)} images of {config.data}, {split}")
    with machine.deterministic(config.deterministic), errors_in_one_line():
        return evaluate_network(
            saved.network,
            loader,
            saved.classes,
            device=accelerator.device,
            layers=config.layer if alignment else (),
            sigma=config.sigma,
            autocast=accelerator.autocast,
            gather=gather_object,
        )


def table(evaluation: Evaluation) -> str:
    """An evaluation as text: accuracies, the confusion matrix, alignments."""
    names = evaluation.classes
    width = max(map(len, names))
    cell = max(5, *(len(str(count)) for count in evaluation.confusion.ravel()))
    lines = [
        f"accuracy          {100 * evaluation.accuracy:.2f} %",
        f"balanced accuracy {100 * evaluation.balanced_accuracy:.2f} %",
        f"cross-entropy     {evaluation.cross_entropy:.4f}",
        "",
        "confusion (rows: labels, columns: predictions, in the same order; recall last)",
    ]
    for name, counts, recall in zip(names, evaluation.confusion, evaluation.recalls, strict=True):
        cells = "".join(f"{count:>{cell + 1}}" for count in counts)
        lines.append(f"  {name:<{width}} {cells}   {'no image' if recall != recall else f'{100 * recall:.1f} %'}")
    for layer, values in evaluation.alignment.items():
        figures = ", ".join(f"{name} {value:.3f}" for name, value in values.items())
        lines += ["", f"alignment at {layer}: {figures}; undefined for {evaluation.undefined[layer]} images"]
    return "\n".join(lines)
