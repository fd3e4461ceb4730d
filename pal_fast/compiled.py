"""torch.compile with an attribution loss: the body compiled and the head eager, or a whole step in one graph.

A compiled region cannot be differentiated twice from outside. So either only the layers below the attributed one are
compiled, through which no second derivative passes (recommended by default), or the gradient is taken inside the
compiled function, whose backward is then an ordinary first derivative.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

import torch
from torch import nn

from pal_fast._version import __version__
from pal_fast.capture.layer_names import find_layers
from pal_fast.capture.model_run import in_mode
from pal_fast.messages import describe

__all__ = ["can_compile_a_step", "compile_body", "compile_step"]

_FROZEN_BELOW = (
    "torch.compile cannot start a graph inside the step, as a PALLoss does at a layer below which everything is "
    "frozen: compile the layers below it instead (pal_fast.compiled.compile_body), or unfreeze one of them"
)

Step = TypeVar("Step", bound=Callable[..., Any])


@overload
def compile_step(step: Step, **options: Any) -> Step: ...
@overload
def compile_step(step: None = None, **options: Any) -> Callable[[Step], Step]: ...
def compile_step(step: Any = None, **options: Any) -> Any:
    """Compiles `step`, which may call a PALLoss.

        @pal_fast.compiled.compile_step
        def step(images, labels, landmarks):
            logits = model(images)
            return cross_entropy(logits, labels) + pal(logits, landmarks)

        step(images, labels, landmarks).backward()

    The backward pass, the optimiser and DistributedDataParallel stay outside. Checks that read values (a softmax
    in place of logits, a gradient of zero) are omitted: `pal.check(images)` makes them beforehand. Attention runs with
    the MATH kernel throughout the step.

    Args:
        step: a function that runs the model and returns the loss; without it, a decorator is returned.
        options: of `torch.compile`; fullgraph=True unless given. Without a GPU, and if neither `mode` nor another
            backend is given, Inductor keeps the model's memory format (options={"layout_optimization": False}).

    Raises: TypeError unless `step` is callable; RuntimeError if this PyTorch cannot trace a gradient inside a compiled
        function. The compiled step raises RuntimeError if everything below the attributed layer is frozen: use
        `compile_body` there.
    """
    if step is not None and not callable(step):
        raise TypeError(f"step must be a function, got {describe(step)}")
    if not can_compile_a_step():
        raise RuntimeError(
            f"PyTorch {torch.__version__} cannot trace torch.autograd.grad inside a compiled function: compile the "
            "layers below the attributed one instead (pal_fast.compiled.compile_body)"
        )
    if step is None:
        return functools.partial(compile_step, **options)
    compiled = torch.compile(step, **_with_defaults(options))
    config: Any = torch._dynamo.config
    caching: Any = torch.compiler.config
    # A graph cached on disk contains the operators' derivatives of the version that compiled it.
    tag = f"{caching.cache_key_tag}pal_fast {__version__}"

    @functools.wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        with (
            config.patch(trace_autograd_ops=True),
            caching.patch(cache_key_tag=tag),
            torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH),
        ):
            try:
                return compiled(*args, **kwargs)
            except torch._dynamo.exc.Unsupported as error:
                if "requires_grad_()" in str(error):
                    raise RuntimeError(_FROZEN_BELOW) from error
                raise

    return run


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    chosen = {"fullgraph": True, **options}
    keeps_layout = options.get("backend", "inductor") == "inductor" and options.get("mode") is None
    # Inductor's channels_last convolutions cost copies around every other operator of the second derivative. Whether
    # they pay off on a GPU has not been measured.
    if keeps_layout and not torch.cuda.is_available():
        chosen["options"] = {"layout_optimization": False, **(options.get("options") or {})}
    return chosen


def can_compile_a_step() -> bool:
    """Whether this PyTorch can trace `torch.autograd.grad` inside a compiled function."""
    import torch._dynamo.config as config

    return hasattr(config, "trace_autograd_ops")


def compile_body(
    model: nn.Module, layer: nn.Module | str | Sequence[nn.Module | str], example: Any, **options: Any
) -> tuple[str, ...]:
    """Compiles, in place, the modules that finish no later than the attributed layer; the rest stays eager.

    Their order is found in one forward of `example` in eval mode without gradients. The layer itself is compiled
    too. Copies of the model compile their own bodies; a pickled model is loaded uncompiled.

    Args:
        model, layer: as for `PALLoss`, before or after it is constructed.
        example: an input of the model, or a tuple of its positional inputs.
        options: of `torch.compile`.

    Returns: the dotted names of the compiled modules: the outermost ones that finish in time.

    Raises: ValueError, TypeError naming the argument; RuntimeError if `example` does not reach the layer.
    """
    layers = find_layers(model, layer)
    names = _finished_before(model, set(layers.values()), example if isinstance(example, tuple) else (example,))
    if not names:
        raise RuntimeError(f"the forward of example did not run layer {', '.join(map(repr, layers))}")
    named = dict(model.named_modules())
    chosen = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    for name in chosen:
        module = named[name]
        # Only the forward: the module's hooks, among them those of PALLoss, stay outside the compiled region.
        module.forward = _CompiledForward(module.forward, options)
    return tuple(chosen)


class _CompiledForward:
    """A module's forward, compiled. A copy of the module compiles its own; a pickled one runs uncompiled."""

    def __init__(self, forward: Callable[..., Any], options: dict[str, Any]) -> None:
        self._compiled: Callable[..., Any] = torch.compile(forward, **options)
        functools.update_wrapper(self, forward)
        self._forward, self._options = forward, options

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._compiled(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> _CompiledForward:
        # A method bound to a module becomes one bound to the module's copy.
        return _CompiledForward(copy.deepcopy(self._forward, memo), self._options)

    def __reduce__(self) -> Any:
        # Neither a compiled function nor every option can be pickled; loading this needs no pal_fast.
        return functools.partial, (self._forward,)


def _finished_before(model: nn.Module, layers: set[nn.Module], inputs: tuple[Any, ...]) -> list[str]:
    """The modules whose every run ends before (or at) the end of the first of `layers`."""
    finished: list[str] = []
    later: set[str] = set()
    reached = False

    def on_end(name: str, module: nn.Module) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            nonlocal reached
            (later.add if reached else finished.append)(name)
            reached = reached or module in layers

        return hook

    handles = [m.register_forward_hook(on_end(n, m)) for n, m in model.named_modules() if n]
    try:
        with torch.no_grad(), in_mode(model, training=False):
            model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in dict.fromkeys(finished) if name not in later] if reached else []
