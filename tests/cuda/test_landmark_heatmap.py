"""The heatmap's CUDA kernels, emulated, against the reference in float64."""

from __future__ import annotations

from functools import partial
from itertools import product

import pytest
import torch
from support import emulated
from support.compare import TOLERANCE, assert_close, relative_error
from torch import Tensor

from pal_fast import ops, reference
from pal_fast.constants import COMBINE, NORMALIZE
from pal_fast.options import HeatmapOptions

SIZES = [(1, 1), (7, 7), (14, 9), (5, 300), (33, 40), (40, 96), (70, 131)]
IMAGE = (96.0, 120.0)
DTYPES = [torch.float32, torch.float64]


def faces(generator: torch.Generator, dtype: torch.dtype, batch: int = 3, count: int = 21) -> dict[str, Tensor]:
    """Landmarks in and around the image, some missing or hidden; the last face has none."""
    landmarks = torch.rand(batch, count, 2, generator=generator, dtype=torch.float64) * 150 - 20
    landmarks[0, 3, 0] = float("nan")
    landmarks[0, 4] = float("inf")
    landmarks[1, 5] = 1e30
    landmarks[-1] = float("nan")
    visible = torch.rand(batch, count, generator=generator) < 0.8
    weights = torch.rand(batch, count, generator=generator, dtype=torch.float64) + 0.5
    return {"landmarks": landmarks.to(dtype), "visible": visible, "weights": weights.to(dtype)}


@pytest.fixture(params=[False, True], ids=["warps", "warpgroups"])
def warpgroups(request: pytest.FixtureRequest, namespace: str) -> bool:
    """Whether the device's warpgroups multiply matrices (an H100's do)."""
    emulated.machine["warpgroups"] = bool(request.param)
    return bool(request.param)


def options_of(combine: str, normalize: str) -> HeatmapOptions:
    return HeatmapOptions(sigma=9.0, combine=combine, normalize=normalize)


def emulate(namespace: str, size: tuple[int, int], options: HeatmapOptions, **tensors: Tensor | None) -> Tensor:
    return ops.landmark_heatmap(
        namespace, tensors["landmarks"], tensors.get("visible"), tensors.get("weights"), size, IMAGE, options
    )


def float64_reference(size: tuple[int, int], options: HeatmapOptions, **tensors: Tensor | None) -> Tensor:
    wide = {k: t.double() if t is not None and t.is_floating_point() else t for k, t in tensors.items()}
    return reference.landmark_heatmap(
        wide["landmarks"],
        size,
        image_size=IMAGE,
        sigma=options.sigma or 0.0,
        visible=wide.get("visible"),
        weights=wide.get("weights"),
        combine=options.combine,
        normalize=options.normalize,
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("combine", COMBINE)
def test_heatmaps_agree_with_the_reference(
    namespace: str, generator: torch.Generator, combine: str, normalize: str, dtype: torch.dtype
) -> None:
    tensors = faces(generator, dtype)
    options = options_of(combine, normalize)
    for size in SIZES:
        for given in (tensors, {"landmarks": tensors["landmarks"]}):
            assert_close(
                emulate(namespace, size, options, **given), float64_reference(size, options, **given), dtype, str(size)
            )
            assert emulated.launches["landmark_heatmap"] == 1


@pytest.mark.parametrize("factor", [1e-26, 1e-6, 1e6, 1e20])
def test_products_on_tensor_cores_keep_the_accuracy_of_float32(
    namespace: str, generator: torch.Generator, warpgroups: bool, factor: float
) -> None:
    size = (100, 131)
    tensors = faces(generator, torch.float32, count=68)
    options = options_of("sum", "none")
    tensors["weights"] = tensors["weights"] * factor
    tensors["weights"][0, 7] *= 1e-3
    value, wanted = (f(size, options, **tensors) for f in (partial(emulate, namespace), float64_reference))
    assert emulated.planned["warpgroups"] == warpgroups
    assert relative_error(value, wanted) <= 1e-6
    # Far from every landmark, too, where the map is small.
    assert ((value - wanted).abs() <= 1e-5 * wanted.abs() + 1e-10 * factor).all()
    tensors["weights"] = tensors["weights"] - factor  # of either sign
    value, wanted = (f(size, options, **tensors) for f in (partial(emulate, namespace), float64_reference))
    assert relative_error(value, wanted) <= 1e-6


@pytest.mark.parametrize(
    ("warpgroups", "size", "count"),
    [
        # 2, 3 and, in two tiles, 7 warps of rows; whole and half steps, and passes, of landmarks.
        *product([False], [(33, 40), (70, 131), (200, 66)], [1, 16, 17, 64, 65, 72, 73, 150]),
        # 2, 1 and, in two tiles, 4 warpgroups; few and many steps.
        *product([True], [(97, 60), (64, 128), (250, 70)], [0, 1, 8, 32, 33, 68, 72, 73, 80]),
    ],
)
def test_products_on_tensor_cores_handle_any_number_of_landmarks_and_tiles(
    namespace: str, generator: torch.Generator, warpgroups: bool, size: tuple[int, int], count: int
) -> None:
    emulated.machine["warpgroups"] = warpgroups
    landmarks = torch.rand(2, count, 2, generator=generator) * 150 - 20
    tensors = {"landmarks": landmarks, "weights": torch.rand(2, count, generator=generator) + 0.5}
    for processors, normalize in ((1, "none"), (2, "peak"), (16, "sum")):
        emulated.machine["processors"] = processors
        options = options_of("sum", normalize)
        assert_close(
            emulate(namespace, size, options, **tensors), float64_reference(size, options, **tensors), torch.float32
        )
        assert emulated.planned["warpgroups"] == warpgroups


@pytest.mark.parametrize(("size", "count"), [((70, 131), 68), ((100, 70), 81)], ids=str)
def test_warpgroups_are_not_used_where_padding_would_waste_work(
    namespace: str, generator: torch.Generator, size: tuple[int, int], count: int
) -> None:
    emulated.machine["warpgroups"] = True
    emulate(namespace, size, options_of("sum", "none"), landmarks=torch.rand(1, count, 2, generator=generator))
    assert not emulated.planned["warpgroups"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", NORMALIZE)
@pytest.mark.parametrize("combine", COMBINE)
def test_gradients_agree_with_the_reference(
    namespace: str, generator: torch.Generator, combine: str, normalize: str, dtype: torch.dtype
) -> None:
    tensors = faces(generator, dtype)
    tensors["landmarks"] = tensors["landmarks"].requires_grad_()
    tensors["weights"] = tensors["weights"].requires_grad_()
    wanted_of = {k: t.detach().double().requires_grad_() if t.requires_grad else t for k, t in tensors.items()}
    options = options_of(combine, normalize)
    for size in [(7, 7), (14, 9), (40, 70)]:
        grad = torch.randn(3, *size, generator=generator, dtype=torch.float64).to(dtype)
        inputs = tensors["landmarks"], tensors["weights"]
        got = torch.autograd.grad(emulate(namespace, size, options, **tensors), inputs, grad)
        judges = wanted_of["landmarks"], wanted_of["weights"]
        wanted = torch.autograd.grad(float64_reference(size, options, **wanted_of), judges, grad.double())
        for name, value, judge in zip(("landmarks", "weights"), got, wanted, strict=True):
            # A gradient is a difference of large sums; its rounding error is relative to them.
            assert relative_error(value, judge) <= 10 * TOLERANCE[dtype], f"{name} at {size}"
        assert emulated.launches["landmark_heatmap_backward"] == (1 if (combine, normalize) == ("sum", "none") else 2)


@pytest.mark.parametrize("needs", [(True, False), (False, True)], ids=["landmarks", "weights"])
def test_only_the_requested_gradients_are_written(
    namespace: str, generator: torch.Generator, needs: tuple[bool, bool]
) -> None:
    tensors = faces(generator, torch.float32)
    operator = getattr(torch.ops, namespace).landmark_heatmap_backward.default
    grad = torch.randn(3, 14, 9, generator=generator)
    arguments = (grad, tensors["landmarks"], tensors["visible"], tensors["weights"], 14, 9, *IMAGE, 9.0, 1, 1)
    both = operator(*arguments, True, True)
    some = operator(*arguments, *needs)
    for needed, value, wanted in zip(needs, some, both, strict=True):
        assert value.numel() == (wanted.numel() if needed else 0)
        assert not needed or torch.equal(value, wanted)


def test_heatmaps_are_bit_identical_in_any_order_of_blocks(
    namespace: str, generator: torch.Generator, warpgroups: bool, seed: int
) -> None:
    tensors = faces(generator, torch.float32)
    options = options_of("sum", "sum")
    first = emulate(namespace, (100, 131), options, **tensors)
    for other in range(3):
        emulated.machine["seed"] = seed % 2**30 + other
        assert torch.equal(emulate(namespace, (100, 131), options, **tensors), first)


@pytest.mark.parametrize("shape", [(0, 5, 2), (2, 0, 2), (2, 1, 2)], ids=str)
def test_heatmaps_without_samples_or_landmarks_agree(namespace: str, shape: tuple[int, ...]) -> None:
    landmarks = torch.rand(shape) * 90
    for size in [(7, 7), (40, 70)]:
        for combine in COMBINE:
            options = options_of(combine, "peak")
            assert_close(
                emulate(namespace, size, options, landmarks=landmarks),
                float64_reference(size, options, landmarks=landmarks),
                torch.float32,
            )
