"""Edge cases of the Triton loss beyond the grid of options: degenerate input, scale, order, launches."""

from __future__ import annotations

import math

import pytest
import torch
from support.compare import assert_close, relative_error
from support.loss_problems import Problem, check, magnify, make, same_bits
from support.triton_launches import counted_launches, shuffled_programs

import pal_fast
from pal_fast import dispatch, ops
from pal_fast.options import AttributionOptions, HeatmapOptions, LossOptions

pytest.importorskip("triton", reason="the package triton is not installed")

CHANNELS = ["mean", "half", "all", "each"]
LAYOUTS = ["contiguous", "channels_last"]


def assert_exactly_zero(problem: Problem) -> None:
    """Loss and gradients are exactly zero, as in the reference."""
    for backend in ("reference", "triton"):
        loss, gradients = problem.solve(backend)
        assert not loss.any(), f"{backend}: loss {loss}"
        for gradient in gradients:
            assert not gradient.any(), f"{backend}: gradient {gradient}"


@pytest.mark.parametrize("channels", CHANNELS)
def test_one_cell_or_no_landmark_or_a_flat_map_gives_exactly_zero(device: str, channels: str, seed: int) -> None:
    for case in (
        {"shape": (2, 4, 1, 1)},
        {"landmarks": 0},
        {"landmarks": 0, "combine": "max", "reduction": "none"},
        {"shape": (1, 4, 7, 7), "trouble": "sample", "layout": "channels_last"},
        {"shape": (1, 4, 7, 7), "trouble": "sample", "landmarks": None},
    ):
        assert_exactly_zero(make({"channels": channels} | case, seed, device))
    flat = make({"channels": channels, "shape": (2, 4, 7, 7)}, seed, device)
    flat.activation, flat.gradient = torch.full_like(flat.activation, 0.3), torch.full_like(flat.gradient, -0.7)
    assert_exactly_zero(flat)
    flat_prior = make({"channels": channels, "landmarks": None}, seed, device)
    flat_prior.tensors["heatmap"] = torch.full_like(flat_prior.tensors["heatmap"], 0.25)
    assert_exactly_zero(flat_prior)


@pytest.mark.parametrize("of_activation", [torch.contiguous_format, torch.channels_last])
def test_a_gradient_of_another_memory_format_than_the_activation_is_read_correctly(
    device: str, of_activation: torch.memory_format, seed: int
) -> None:
    """A compiled graph may pass one, since the strides that PyTorch traces can differ from those at run time."""
    generator = torch.Generator(device).manual_seed(seed)
    f, g = (torch.randn(2, 6, 5, 7, generator=generator, device=device) for _ in range(2))
    points = torch.rand(2, 9, 2, generator=generator, device=device) * 32
    options = LossOptions(AttributionOptions(), HeatmapOptions())
    other = torch.channels_last if of_activation == torch.contiguous_format else torch.contiguous_format
    found = []
    for of_gradient in (of_activation, other):
        pair = f.to(memory_format=of_activation).requires_grad_(), g.to(memory_format=of_gradient).requires_grad_()
        loss = ops.pal_loss(
            dispatch.namespace("triton", f.device), *pair, None, points, None, None, None, (32, 32), options, f.shape[1]
        )
        found.append([loss, *torch.autograd.grad(loss, pair)])
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_an_empty_batch_gives_an_empty_or_zero_loss(device: str, reduction: str) -> None:
    for channels in CHANNELS:
        problem = make({"shape": (0, 3, 7, 7), "channels": channels, "reduction": reduction}, 0, device)
        loss, gradients = problem.solve("triton")
        assert loss.shape == ((0,) if reduction == "none" else ())
        assert not loss.any()
        assert [gradient.shape for gradient in gradients] == [(0, 3, 7, 7)] * 2


@pytest.mark.parametrize("channels", CHANNELS)
def test_nan_in_an_unscored_sample_does_not_spread(device: str, channels: str, seed: int) -> None:
    problem = make({"shape": (3, 5, 7, 7), "channels": channels, "trouble": "sample"}, seed, device)
    problem.activation[0] = torch.nan
    _, gradients = check(problem, "triton")
    assert not any(gradient[0].any() for gradient in gradients)
    scored = make({"shape": (3, 5, 7, 7), "channels": channels, "reduction": "none"}, seed, device)
    scored.activation[0, 0, 3, 3] = torch.nan
    loss, _ = scored.solve("triton")
    assert loss.isnan().tolist() == [True, False, False], "NaN of a scored sample must reach its loss"


@pytest.mark.parametrize("channels", CHANNELS)
def test_free_channels_get_exactly_zero_gradient(device: str, channels: str, seed: int) -> None:
    for layout in LAYOUTS:
        case = {"channels": channels, "channel_count": 3, "layout": layout, "shape": (2, 7, 5, 5)}
        problem = make(case, seed, device)
        problem.activation[:, 3:] = torch.nan  # not even read for their values
        _, gradients = problem.solve("triton")
        for gradient in gradients:
            assert gradient[:, :3].isfinite().all()
            assert gradient[:, :3].any()
            assert torch.equal(gradient[:, 3:], torch.zeros_like(gradient[:, 3:]))


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_loss_is_invariant_to_the_scale_of_the_gradient(device: str, channels: str, seed: int) -> None:
    for attribution, absolute in (("grad_input", True), ("grad", False)):
        problem = make({"channels": channels, "attribution": attribution, "absolute": absolute}, seed, device)
        loss, gradients = check(problem, "triton")
        for exponent in (-15, -9, 9, 15):
            scaled = make(problem.case, seed, device)
            assert scaled.gradient is not None
            scaled.gradient, scaled.upstream = scaled.gradient * 10.0**exponent, problem.upstream
            loss_k, gradients_k = scaled.solve("triton")
            assert_close(loss_k, loss, torch.float32, f"loss at 1e{exponent}")
            factors = [10.0**exponent] if attribution == "grad" else [1.0, 10.0**exponent]
            for value, wanted, factor in zip(gradients_k, gradients, factors, strict=True):
                assert_close(value.double() * factor, wanted, torch.float32, f"gradient at 1e{exponent}")


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_mean_much_larger_than_the_spread_costs_no_accuracy(device: str, channels: str, seed: int) -> None:
    """float32 sums of 192 values near 300 would keep four digits of a spread of 1."""
    for layout in LAYOUTS:
        case = {"shape": (2, 192, 7, 7), "offset": 300.0, "attribution": "activation", "channels": channels}
        problem = make(case | {"layout": layout}, seed, device)
        wanted, _ = problem.solve("reference", exact=True)
        loss, _ = problem.solve("triton")
        assert relative_error(loss, wanted) < 2e-6
        problem.activation[:, 0, 0, 0] = 9e3  # an outlier where the pivot might be taken
        check(problem, "triton")


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_offset_and_the_scale_of_a_prior_cost_no_accuracy(device: str, channels: str, seed: int) -> None:
    for offset, factor in ((100.0, 1.0), (0.0, 1e-30), (0.0, 1e30), (0.0, 1e-42)):
        problem = make({"landmarks": None, "channels": channels}, seed, device)
        problem.tensors["heatmap"] = problem.tensors["heatmap"] * factor + offset
        check(problem, "triton")


@pytest.mark.parametrize("exponents", [(-10, -10), (15, 15), (-20, -15), (-30, -14), (-44, -44), (38, -44)])
@pytest.mark.parametrize("channels", CHANNELS)
def test_no_float32_magnitude_gives_nan(device: str, channels: str, exponents: tuple[int, int], seed: int) -> None:
    """A gradient of the largest magnitude is clamped, not infinite; a product that is too small loses digits."""
    for layout in LAYOUTS:
        problem = make({"channels": channels, "layout": layout, "landmarks": None}, seed, device)
        magnify(problem, exponents)
        loss, gradients = problem.solve("triton")
        assert loss.isfinite().all()
        assert not any(gradient.isnan().any() for gradient in gradients)
        wanted, wanted_gradients = problem.solve("reference", exact=True)
        if sum(exponents) > -37:
            assert_close(loss, wanted, torch.float32, f"loss at {exponents}")
        if abs(sum(exponents)) < 31 and exponents != (38, -44):
            for value, judge in zip(gradients, wanted_gradients, strict=True):
                assert_close(value, judge, torch.float32, f"gradient at {exponents}")


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("landmarks", [5, None], ids=["landmarks", "heatmap"])
def test_one_launch_forward_and_one_backward(device: str, channels: str, landmarks: int | None, seed: int) -> None:
    for reduction in ("mean", "none"):
        case = {"channels": channels, "landmarks": landmarks, "reduction": reduction}
        problem = make(case, seed, device)
        f, g = problem.activation.requires_grad_(), problem.gradient.requires_grad_()
        pal_fast.pal_loss(f, g, **problem.tensors, **problem.options, backend="triton")  # compiles, makes tickets
        with counted_launches(device) as forward:
            loss = pal_fast.pal_loss(f, g, **problem.tensors, **problem.options, backend="triton")
        upstream = torch.ones_like(loss)
        torch.autograd.grad(loss, (f, g), upstream, retain_graph=True)
        with counted_launches(device) as backward:
            torch.autograd.grad(loss, (f, g), upstream)
        assert len(forward) == 1, forward
        assert len(backward) == 1, backward


def test_the_result_does_not_depend_on_the_order_of_programs(device: str, seed: int) -> None:
    if device == "cuda":
        pytest.skip("a GPU's order is its own")
    for channels, layout in (("mean", "contiguous"), ("all", "channels_last"), ("each", "contiguous")):
        for shape in ((3, 40, 7, 7), (2, 6, 40, 33)):
            case = {"shape": shape, "channels": channels, "layout": layout, "reduction": "mean", "normalize": "peak"}
            problem = make(case, seed, device)
            plain = problem.solve("triton")
            with shuffled_programs(seed):
                assert same_bits(plain, problem.solve("triton")), f"{case} in another order"
    points = torch.rand(2, 5, 2, generator=torch.Generator().manual_seed(seed)) * 70
    heatmaps = []
    for order in range(2):
        with shuffled_programs(seed + order):
            heatmaps.append(pal_fast.landmark_heatmap(points, (70, 80), normalize="sum", backend="triton"))
    assert torch.equal(*heatmaps)


def test_the_operators_pass_opcheck(device: str, seed: int) -> None:
    """Schema, fakes and autograd registration, which torch.compile trusts."""
    f, g = (torch.randn(2, 6, 5, 5, device=device, requires_grad=True) for _ in range(2))
    points = torch.rand(2, 4, 2, device=device) * 20
    pal_fast.pal_loss(f, g, landmarks=points, image_size=20, backend="triton")
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    prior = (None, points, None, None, None, 20.0, 20.0, 3.0, 0, 0)
    for grouping in range(3):
        arguments = (f, g, *prior, 0, True, grouping, 3, 0, 0, 0)
        torch.library.opcheck(torch.ops.pal_fast_triton.pal_loss.default, arguments, test_utils=tests)
    moving = points.clone().requires_grad_()
    arguments = (moving, None, None, 7, 5, 20.0, 20.0, 3.0, 0, 1)
    torch.library.opcheck(torch.ops.pal_fast_triton.landmark_heatmap.default, arguments, test_utils=tests)


def test_a_second_derivative_raises(device: str, seed: int) -> None:
    problem = make({}, seed, device)
    f = problem.activation.requires_grad_()
    loss = pal_fast.pal_loss(f, problem.gradient, **problem.tensors, **problem.options, backend="triton")
    (df,) = torch.autograd.grad(loss, f, create_graph=True)
    with pytest.raises(RuntimeError, match='backend="reference"'):
        df.sum().backward()


@pytest.mark.gpu(hardware=True)
def test_torch_compile_with_cuda_graphs_gives_the_eager_results(generator: torch.Generator) -> None:
    """mode="reduce-overhead", over several shapes: the memory kept between calls lies outside the graphs."""

    @torch.compile(mode="reduce-overhead", dynamic=False)
    def step(f: torch.Tensor, g: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        return pal_fast.pal_loss(f, g, landmarks=points, image_size=20, backend="triton")

    for turn in range(12):
        shape = (2 + turn % 3, 64, 9, 9)
        f, g = (torch.randn(shape, generator=generator).cuda().requires_grad_() for _ in range(2))
        points = torch.rand(shape[0], 5, 2, generator=generator).cuda() * 20
        torch.compiler.cudagraph_mark_step_begin()
        got = step(f, g, points)
        gradients = torch.autograd.grad(got, (f, g))
        wanted = pal_fast.pal_loss(f, g, landmarks=points, image_size=20, backend="triton")
        assert torch.equal(got, wanted), f"turn {turn}"
        for value, judge in zip(gradients, torch.autograd.grad(wanted, (f, g)), strict=True):
            assert torch.equal(value, judge), f"turn {turn}"


@pytest.mark.gpu(hardware=True)
def test_tensors_of_more_than_2_to_the_31_elements() -> None:
    """The last sample of a tensor past 2^31 elements, and one sample past 2^31, against the same samples alone."""
    for shape, layout in (((260, 1024, 90, 90), torch.contiguous_format), ((2, 4096, 600, 600), torch.channels_last)):
        f = torch.empty(shape, dtype=torch.bfloat16, device="cuda", memory_format=layout).normal_()
        g = torch.empty_like(f).normal_()
        assert f.numel() > 2**31
        points = torch.rand(shape[0], 5, 2, device="cuda") * 90
        for channels in ("mean", "each"):
            options = {"image_size": 90, "reduction": "none", "channels": channels, "backend": "triton"}
            whole, alone = f.requires_grad_(), f.detach()[-1:].clone().requires_grad_()
            loss = pal_fast.pal_loss(whole, g, landmarks=points, **options)
            (df,) = torch.autograd.grad(loss.sum(), whole)
            last = pal_fast.pal_loss(alone, g[-1:].clone(), landmarks=points[-1:], **options)
            (judge,) = torch.autograd.grad(last.sum(), alone)
            assert math.isclose(loss[-1].item(), last.item(), rel_tol=1e-4)
            assert_close(df[-1:], judge, torch.bfloat16, f"{channels} {shape}")
            del df, judge, loss
