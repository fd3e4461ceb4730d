"""Edge cases of the compiled loss beyond the grid of options: degenerate input, scale, range, free channels."""

from __future__ import annotations

import pytest
import torch
from support.compare import assert_close, relative_error
from support.loss_problems import Problem, check, magnify, make

import pal_fast

CHANNELS = ["mean", "half", "all", "each"]
LAYOUTS = ["contiguous", "channels_last"]

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def assert_exactly_zero(problem: Problem, backend: str) -> None:
    """Loss and gradients are exactly zero, as in the reference."""
    for name in ("reference", backend):
        loss, gradients = problem.solve(name)
        assert not loss.any(), f"{name}: loss {loss}"
        for gradient in gradients:
            assert not gradient.any(), f"{name}: gradient {gradient}"


@pytest.mark.parametrize(
    "case",
    [
        {"shape": (2, 4, 1, 1)},
        {"shape": (2, 4, 1, 1), "landmarks": None, "score": ("cross_correlation", "unit")},
        {"landmarks": 0},
        {"landmarks": 0, "combine": "max", "reduction": "none", "normalize": "peak"},
        {"shape": (1, 4, 7, 7), "trouble": "sample", "layout": "channels_last"},
        {"shape": (1, 4, 7, 7), "trouble": "sample", "landmarks": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", CHANNELS)
def test_samples_that_cannot_be_scored_give_exactly_zero(backend, channels, case, seed):
    assert_exactly_zero(make({"channels": channels} | case, seed, backend), backend)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
def test_a_flat_attribution_gives_exactly_zero(backend, dtype, channels, layout, seed):
    problem = make({"channels": channels, "dtype": dtype, "layout": layout, "shape": (2, 5, 7, 9)}, seed, backend)
    problem.activation.fill_(0.3)
    problem.gradient.fill_(-0.7)
    assert_exactly_zero(problem, backend)
    problem.gradient.zero_()
    assert_exactly_zero(problem, backend)
    # The gradient of a head that averages over the cells: constant over each channel, hence a flat mean map.
    pooled = make({"attribution": "grad", "channels": channels, "dtype": dtype, "shape": (2, 5, 7, 9)}, seed, backend)
    pooled.gradient.copy_(torch.randn(2, 5, 1, 1).to(pooled.gradient).expand_as(pooled.gradient))
    if channels != "all":
        assert_exactly_zero(pooled, backend)


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_group_is_flat_below_a_deviation_of_1e_5_of_its_root_mean_square(backend, channels, seed):
    for factor, flat in ((0.5, True), (2.0, False)):
        case = {"dtype": torch.float64, "attribution": "activation", "channels": channels, "shape": (2, 3, 7, 7)}
        problem = make(case | {"landmarks": None}, seed, backend)
        noise = torch.randn(2, 1, 7, 7, dtype=torch.float64, device=backend)
        noise = (noise - noise.mean((2, 3), keepdim=True)) / noise.std((2, 3), keepdim=True, correction=0)
        problem.activation.copy_((1 + factor * 1e-5 * noise).expand_as(problem.activation))
        if flat:
            assert_exactly_zero(problem, backend)
        else:
            loss, gradients = problem.solve(backend)
            wanted, judged = problem.solve("reference")
            assert relative_error(loss, wanted) < 1e-6
            assert relative_error(gradients[0], judged[0]) < 1e-6
            assert loss.any()


@pytest.mark.parametrize("channels", CHANNELS)
def test_a_flat_prior_invalidates_a_sample_for_pearson_only(backend, channels, seed):
    for score in (("pearson", "sum"), ("cross_correlation", "sum")):
        problem = make({"channels": channels, "landmarks": None, "score": score, "reduction": "none"}, seed, backend)
        problem.tensors["heatmap"][0] = 0.25
        check(problem, backend)
        loss, gradients = problem.solve(backend)
        assert loss[1] != 0
        assert loss[0] == 0
        assert not any(gradient[0].any() for gradient in gradients)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("channels", CHANNELS)
def test_an_empty_batch_gives_an_empty_or_zero_loss(backend, channels, reduction):
    for layout in LAYOUTS:
        case = {"shape": (0, 3, 7, 7), "channels": channels, "reduction": reduction, "layout": layout}
        loss, gradients = make(case, 0, backend).solve(backend)
        assert loss.shape == ((0,) if reduction == "none" else ())
        assert not loss.any()
        assert [gradient.shape for gradient in gradients] == [(0, 3, 7, 7)] * 2


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_nan_in_an_unscored_sample_does_not_spread(backend, channels, layout, seed):
    case = {"shape": (3, 5, 7, 7), "channels": channels, "layout": layout}
    problem = make(case | {"trouble": "sample"}, seed, backend)
    problem.activation[0] = torch.nan
    problem.gradient[0] = torch.inf
    _, gradients = check(problem, backend)
    assert not any(gradient[0].any() for gradient in gradients)
    scored = make(case | {"reduction": "none"}, seed, backend)
    scored.activation[0, 0, 3, 3] = torch.nan
    loss, _ = scored.solve(backend)
    assert loss.isnan().tolist() == [True, False, False], "NaN of a scored sample must reach its loss"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_free_channels_are_not_read_and_get_exactly_zero_gradient(backend, channels, dtype, seed):
    for layout in LAYOUTS:
        for shape in ((2, 7, 5, 5), (2, 64, 14, 14)):
            case = {"channels": channels, "channel_count": 3, "layout": layout, "shape": shape, "dtype": dtype}
            problem = make(case, seed, backend)
            problem.activation[:, 3:] = torch.nan
            problem.gradient[:, 3:] = torch.nan
            loss, gradients = problem.solve(backend)
            assert loss.isfinite()
            for gradient in gradients:
                assert gradient[:, :3].isfinite().all()
                assert gradient[:, :3].any()
                assert torch.equal(gradient[:, 3:], torch.zeros_like(gradient[:, 3:]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("attribution", ["grad_input", "grad"])
def test_the_loss_is_invariant_to_the_scale_of_the_gradient(backend, attribution, channels, layout, seed):
    for absolute in (True, False):
        case = {"channels": channels, "attribution": attribution, "absolute": absolute, "layout": layout}
        problem = make(case, seed, backend)
        loss, gradients = check(problem, backend)
        for exponent in (-15, -9, 9, 15):
            scaled = make(problem.case, seed, backend)
            scaled.gradient, scaled.upstream = scaled.gradient * 10.0**exponent, problem.upstream
            loss_k, gradients_k = scaled.solve(backend)
            assert_close(loss_k, loss, torch.float32, f"loss at 1e{exponent}")
            factors = [10.0**exponent] if attribution == "grad" else [1.0, 10.0**exponent]
            for value, wanted, factor in zip(gradients_k, gradients, factors, strict=True):
                assert_close(value.double() * factor, wanted, torch.float32, f"gradient at 1e{exponent}")


MAGNITUDES = [(-10, -10), (-20, -15), (-30, -14), (15, 15), (-44, 0), (-44, -44), (38, 38), (38, -44)]


@pytest.mark.parametrize("exponents", MAGNITUDES)
@pytest.mark.parametrize("channels", CHANNELS)
def test_no_float32_magnitude_gives_nan(backend, channels, exponents, seed):
    """From subnormal activations and gradients to the largest, as long as their product is representable.

    On the CPU the map strategies hold the product in double, so it may have any magnitude. In float32 a product that is
    too small loses digits and one that is too large is infinite.
    """
    in_double = backend == "cpu"
    if sum(exponents) > 38 and (channels in ("all", "each") or not in_double):
        pytest.skip("float32 cannot hold the product of every element")
    for layout in LAYOUTS:
        problem = make({"channels": channels, "layout": layout, "landmarks": None}, seed, backend)
        magnify(problem, exponents)
        loss, gradients = problem.solve(backend)
        assert loss.isfinite().all()
        assert not any(gradient.isnan().any() for gradient in gradients)
        wanted, wanted_gradients = problem.solve("reference", exact=True)
        if sum(exponents) > -37 or in_double:
            assert_close(loss, wanted, torch.float32, f"loss at {exponents}")
        if exponents in ((-10, -10), (15, 15)):  # elsewhere the gradient, too, leaves float32's range
            for value, judge in zip(gradients, wanted_gradients, strict=True):
                assert_close(value, judge, torch.float32, f"gradient at {exponents}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", CHANNELS)
def test_a_mean_much_larger_than_the_spread_costs_no_accuracy(backend, channels, layout, seed):
    """float32 sums of 192 values near 300 would keep four digits of a spread of 1."""
    case = {"shape": (2, 192, 7, 7), "offset": 300.0, "attribution": "activation", "channels": channels}
    problem = make(case | {"layout": layout}, seed, backend)
    wanted, _ = problem.solve("reference", exact=True)
    loss, _ = problem.solve(backend)
    assert relative_error(loss, wanted) < 2e-6
    problem.activation[:, 0, 0, 0] = 9e3  # an outlier, where a pivot might be taken
    check(problem, backend)
    large = make(case | {"layout": layout, "shape": (1, 3, 60, 50), "offset": 1e3}, seed, backend)
    check(large, backend)


@pytest.mark.parametrize("channels", CHANNELS)
def test_the_offset_and_the_scale_of_a_prior_cost_no_accuracy(backend, channels, seed):
    for offset, factor in ((100.0, 1.0), (0.0, 1e-30), (0.0, 1e30), (0.0, 1e-42)):
        problem = make({"landmarks": None, "channels": channels}, seed, backend)
        problem.tensors["heatmap"] = problem.tensors["heatmap"] * factor + offset
        check(problem, backend)


def test_landmarks_far_outside_the_image_score_by_their_tails(backend, seed):
    """-14..109 on images of 100 pixels are real annotations; ten sigmas away float32 still has a gradient."""
    problem = make({"landmarks": 3, "sigma": 6.0}, seed, backend)
    for where in ([-14.0, 30.0], [61.0, 69.0], [-60.0, -30.0]):
        problem.tensors["landmarks"][:] = torch.tensor(where, device=backend)
        loss, gradients = check(problem, backend)
        assert loss != 0
        assert gradients[0].any()


def test_only_the_requested_gradients_are_computed(backend):
    """The others are returned without elements."""
    f, g = torch.randn(2, 3, 5, 5, device=backend), torch.randn(2, 3, 5, 5, device=backend)
    operators = torch.ops.pal_fast
    prior = (torch.rand(2, 5, 5, device=backend), None, None, None, None, 5.0, 5.0, 1.0, 0, 0)
    loss, *derivative = operators.pal_loss(f, g, *prior, 0, True, 0, 3, 0, 0, 0)
    one = torch.ones_like(loss)
    for need_f, need_g in ((True, False), (False, True), (False, False)):
        df, dg = operators.pal_loss_backward(one, f, g, *derivative, 0, True, 0, 3, need_f, need_g)
        assert df.shape == (f.shape if need_f else (0,))
        assert dg.shape == (g.shape if need_g else (0,))


def test_an_expanded_or_strided_upstream_gradient_is_read_in_place(backend, seed):
    problem = make({"reduction": "none", "shape": (4, 3, 5, 5)}, seed, backend)
    f = problem.activation.requires_grad_()
    loss = pal_fast.pal_loss(f, problem.gradient, **problem.tensors, **problem.options, backend=backend)
    strided = torch.randn(8, device=backend)[::2]
    for upstream in (strided, torch.ones((), device=backend).expand(4)):
        (got,) = torch.autograd.grad(loss, f, upstream, retain_graph=True)
        (wanted,) = torch.autograd.grad(loss, f, upstream.clone(), retain_graph=True)
        assert torch.equal(got, wanted)
        assert got.any()
