"""A whole step under torch.compile, and the cases that cannot be compiled."""

from __future__ import annotations

import pytest
import torch
from functorch.compile import make_boxed_func
from support.compare import relative_error
from support.compiling import compiled_step, of_a_step
from support.networks import SmallNet, Tokens, batch, batch_off_kinks, gradient_error, judged, twin
from torch import nn
from torch._dynamo.backends.common import aot_autograd

import pal_fast
import pal_fast.nn
from pal_fast.compiled import compile_body, compile_step

pytestmark = pytest.mark.usefixtures("fresh_compiler")


@of_a_step
@pytest.mark.parametrize(
    ("kind", "compiler", "dtype", "bound"),
    [
        ("convolutions", "aot_eager", torch.float64, 1e-10),
        ("tokens", "aot_eager", torch.float64, 1e-10),
        ("convolutions", "inductor", torch.float32, 1e-3),
    ],
)
def test_a_whole_step_compiles_into_one_graph(kind, compiler, dtype, bound):
    tokens = kind == "tokens"
    model, layer = (Tokens(), "blocks.0") if tokens else (SmallNet(), "middle")
    model = model.to(dtype)
    images, labels, landmarks = batch_off_kinks(model) if dtype == torch.float32 else batch()
    view = (lambda f: f[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)) if tokens else (lambda f: f)
    wanted, gradients = judged(twin(model), layer, images, labels, landmarks, view=view)
    step = compiled_step(model, layer, compiler)
    for _ in range(2):
        model.zero_grad()
        loss = step(images, labels, landmarks)
        loss.backward()
        assert relative_error(loss, wanted) < bound
        assert gradient_error(model, gradients) < bound


@of_a_step
def test_the_operators_are_opaque_nodes_of_one_graph():
    model = SmallNet()
    images, labels, landmarks = batch_off_kinks(model)
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    pal_fast.nn.prepare_head(model, "middle", images)
    graphs = []

    def keep(module, inputs):
        graphs.append([str(node.target) for node in module.graph.nodes if node.op == "call_function"])
        return module.forward

    step = compiled_step(model, "middle", keep)
    loss = step(images, labels, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-5
    assert gradient_error(model, gradients) < 1e-3
    (called,) = graphs
    assert called.count("pal_fast.pal_loss.default") == 1
    assert called.count("pal_fast.batch_norm.default") == 1


@of_a_step
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
def test_a_compiled_step_with_a_prepared_head_matches_in_either_memory_format(layout):
    model = SmallNet().double().to(memory_format=layout)
    images, labels, landmarks = batch()
    images = images.to(memory_format=layout)
    wanted, gradients = judged(twin(model), "middle", images, labels, landmarks)
    pal_fast.nn.prepare_head(model, "middle", images)
    step = compiled_step(model, "middle", "aot_eager")
    loss = step(images, labels, landmarks)
    loss.backward()
    assert relative_error(loss, wanted) < 1e-10
    assert gradient_error(model, gradients) < 1e-10


@of_a_step
def test_the_second_derivative_of_a_convolution_uses_only_ordinary_convolutions():
    """PyTorch's own second derivative includes a convolution whose kernel is as large as the layer's output."""
    model = SmallNet()
    images, _, landmarks = batch(dtype=torch.float32)
    pal_fast.nn.prepare_head(model, "middle", images)
    pal = pal_fast.PALLoss(model, "middle")
    seen = []

    def keep(module, inputs):
        for node in module.graph.nodes:
            if node.target == torch.ops.aten.convolution.default:
                seen.append("conv")
            if node.target == torch.ops.aten.convolution_backward.default:
                seen.append(
                    "+".join(name for name, wanted in zip(("dgrad", "wgrad"), node.args[-1], strict=False) if wanted)
                )
        return make_boxed_func(module.forward)

    step = compile_step(lambda x, p: pal(model(x), p), backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    forward = step(images, landmarks)
    assert sorted(seen) == ["conv"] * 3 + ["dgrad"], "the attribution pass computes no weight gradient"
    seen.clear()
    forward.backward()
    # `top`: conv and wgrad from differentiating dgrad, dgrad and wgrad of the forward. `middle`: both. `stem`: wgrad.
    assert sorted(seen) == ["conv", "dgrad", "dgrad+wgrad", "wgrad", "wgrad", "wgrad"]


@of_a_step
def test_without_a_gpu_the_compiler_keeps_the_models_memory_format(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "compile", lambda step, **options: given.append(options) or step)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    compile_step(lambda: None)
    compile_step(lambda: None, options={"layout_optimization": True, "max_autotune": True})
    compile_step(lambda: None, mode="reduce-overhead")
    compile_step(lambda: None, backend="aot_eager", fullgraph=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    compile_step(lambda: None)
    assert given == [
        {"fullgraph": True, "options": {"layout_optimization": False}},
        {"fullgraph": True, "options": {"layout_optimization": True, "max_autotune": True}},
        {"fullgraph": True, "mode": "reduce-overhead"},
        {"fullgraph": False, "backend": "aot_eager"},
        {"fullgraph": True},
    ]


def test_the_functional_loss_compiles_on_its_own():
    f, g = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 3, 8, 8, requires_grad=True)
    landmarks = torch.rand(2, 5, 2) * 32

    @torch.compile(fullgraph=True, backend="aot_eager")
    def loss_of(f, g, landmarks):
        return pal_fast.pal_loss(f, g, landmarks=landmarks, image_size=32)

    got = torch.autograd.grad(loss_of(f, g, landmarks), (f, g))
    wanted = torch.autograd.grad(pal_fast.pal_loss(f, g, landmarks=landmarks, image_size=32), (f, g))
    assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))


@of_a_step
def test_batch_norm_statistics_of_a_compiled_step_equal_those_of_an_eager_step():
    model = SmallNet()
    judge = twin(model)
    images, _, landmarks = batch(dtype=torch.float32)
    pal = pal_fast.PALLoss(model, "middle")
    step = compile_step(lambda x, p: pal(model(x), p), backend="aot_eager")
    step(images, landmarks).backward()
    judge(images.double())
    assert relative_error(model.top[1].running_var, judge.top[1].running_var) < 1e-6
    assert model.top[1].num_batches_tracked == 1


def test_where_a_step_cannot_be_compiled_the_error_says_what_can_be(monkeypatch):
    monkeypatch.setattr(pal_fast.compiled, "can_compile_a_step", lambda: False)
    with pytest.raises(RuntimeError, match="compile_body"):
        compile_step(lambda: None)


@of_a_step
def test_a_step_over_a_frozen_body_is_refused_with_a_remedy_that_works():
    model = SmallNet().double()
    images, labels, landmarks = batch()
    _, gradients = judged(twin(model), "middle", images, labels, landmarks)
    for name, parameter in model.named_parameters():
        if name.startswith(("stem", "middle")):
            parameter.requires_grad_(False)
            gradients[name].zero_()
    step = compiled_step(model, "middle", "aot_eager")
    with pytest.raises(RuntimeError, match=r"everything is frozen: .*compile_body.*unfreeze one of them"):
        step(images, labels, landmarks)
    compile_body(model, "middle", images, backend="aot_eager")
    pal = pal_fast.PALLoss(model, "middle")
    logits = model(images)
    (nn.functional.cross_entropy(logits, labels) + pal(logits, landmarks)).backward()
    assert gradient_error(model, gradients) < 1e-10
    model.middle.requires_grad_(True)
    step(images, labels, landmarks).backward()


@of_a_step
def test_other_compilation_failures_raise_pytorchs_own_error():
    with pytest.raises(torch._dynamo.exc.Unsupported):
        compile_step(torch._dynamo.graph_break, backend="eager")()
