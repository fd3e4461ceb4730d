"""torch.func's transforms of a model under a PALLoss give the same results as without it."""

from __future__ import annotations

import copy

import pytest
import torch
from support.networks import SmallNet, batch
from torch import func, nn

import pal_fast


def network():
    return SmallNet(act=nn.GELU, norm=lambda c: nn.GroupNorm(1, c)).double()


TRANSFORMS = {
    "vmap": lambda model, images: func.vmap(lambda image: model(image[None]))(images),
    "jvp": lambda model, images: func.jvp(model, (images,), (images,))[1],
    "jacfwd": lambda model, images: func.jacfwd(model)(images[:1]),
    "jacrev": lambda model, images: func.jacrev(model)(images[:1]),
    "grad": lambda model, images: func.grad(lambda x: model(x).sum())(images),
    "functionalize": lambda model, images: func.functionalize(model)(images),
}


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_transformed_model_gives_the_same_result(name, frozen):
    model = network()
    model.stem.requires_grad_(not frozen)
    model.middle.requires_grad_(not frozen)
    images, _, landmarks = batch()
    wanted = TRANSFORMS[name](model, images)
    pal = pal_fast.PALLoss(model, "middle")
    torch.testing.assert_close(TRANSFORMS[name](model, images), wanted)
    pal(model(images), landmarks).backward()  # the next forward is captured as usual
    assert model.top[0].weight.grad.any()


def test_vmap_over_an_ensemble_of_stacked_parameters():
    models = [network() for _ in range(3)]
    images, _, _ = batch()
    wanted = torch.stack([model(images) for model in models])
    parameters, buffers = func.stack_module_state(models)
    base = copy.deepcopy(models[0])
    pal = pal_fast.PALLoss(base, "middle")
    got = func.vmap(lambda p, b: func.functional_call(base, (p, b), (images,)))(parameters, buffers)
    torch.testing.assert_close(got, wanted)
    with pytest.raises(RuntimeError, match=r"inside a transform of torch\.func"):
        pal(got[0], None)


@pytest.mark.parametrize("first", [False, True], ids=["its first call", "a later one"])
def test_the_loss_inside_vmap_of_grad_gives_per_sample_gradients(first):
    """The first call skips its value checks there, since values cannot be read."""
    model = network()
    images, _, landmarks = batch()
    pal = pal_fast.PALLoss(model, "middle", backend="reference")
    outside = pal if first else pal_fast.PALLoss(model, "middle", backend="reference")
    outside(model(images), landmarks).backward()

    def loss(parameters, image, points):
        return pal(func.functional_call(model, parameters, (image[None],)), points[None])

    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}
    each = func.vmap(func.grad(loss), (None, 0, 0))(parameters, images, landmarks)
    for name, parameter in model.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(each[name].mean(0), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inside_a_transform_the_reference_is_used_and_a_named_backend_is_refused(dtype):
    model = network().to(dtype)
    images, _, landmarks = batch(dtype=dtype)
    pal = pal_fast.PALLoss(model, "middle")
    pal(model(images), landmarks).backward()
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def gradients(pal):
        return func.grad(lambda p: pal(func.functional_call(model, p, (images,)), landmarks))(parameters)

    got = gradients(pal)
    for name, parameter in model.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        torch.testing.assert_close(got[name], wanted, rtol=1e-3, atol=1e-5)
    with pytest.raises(RuntimeError, match=r"backend='cpu' cannot run inside a transform of torch\.func .*reference"):
        gradients(pal_fast.PALLoss(model, "middle", backend="cpu"))


def test_landmark_heatmap_under_vmap():
    landmarks = batch(dtype=torch.float32)[2]
    each = func.vmap(lambda points: pal_fast.landmark_heatmap(points[None], 8, image_size=16)[0])(landmarks)
    torch.testing.assert_close(each, pal_fast.landmark_heatmap(landmarks, 8, image_size=16))


def test_parameters_updated_in_an_inner_loop_must_run_on_a_copy_of_the_model():
    """As in MAML, whose outer logits depend on two runs of the layer."""
    model = network()
    images, labels, landmarks = batch()
    outer = copy.deepcopy(model)
    parameters = dict(model.named_parameters())

    def moved():
        inner = nn.functional.cross_entropy(func.functional_call(model, parameters, (images,)), labels)
        steps = torch.autograd.grad(inner, list(parameters.values()), create_graph=True)
        return {name: p - 0.1 * step for (name, p), step in zip(parameters.items(), steps, strict=True)}

    pal = pal_fast.PALLoss(model, "middle")
    with pytest.raises(RuntimeError, match="ran more than once on the way to these logits"):
        pal(func.functional_call(model, moved(), (images,)), landmarks)
    pal.remove()
    pal_fast.PALLoss(outer, "middle")(func.functional_call(outer, moved(), (images,)), landmarks).backward()
    got = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    held = []
    handle = outer.middle.register_forward_hook(lambda m, a, out: held.append(out))
    logits = func.functional_call(outer, moved(), (images,))
    handle.remove()
    (g,) = torch.autograd.grad(logits.sum(), held[0], create_graph=True)
    pal_fast.pal_loss(held[0], g, landmarks=landmarks, image_size=16, backend="reference").backward()
    for gradient, parameter in zip(got, model.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad)
