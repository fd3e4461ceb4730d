"""Runs a model: sets its mode, passes any kind of inputs, and extracts the logits from whatever it returns."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pal_fast import _checks
from pal_fast.messages import describe, first_line

#: Extracts the logits from what the model returns.
Output = Callable[[Any], Tensor]


def check_output(output: object) -> None:
    if output is not None and not callable(output):
        raise TypeError(
            f"output must be a callable that extracts the logits from what the model returns, got {describe(output)}"
        )


def logits_of(model: nn.Module, inputs: Any, output: Output | None) -> Any:
    """Runs the model and returns its logits; the result of `output` is not checked.

    Args:
        inputs: a mapping of keyword arguments, a tuple of positional ones, or the only argument.
        output: None takes the tensor that the model returns, its item or attribute `logits`, or the only tensor in a
            tuple, list or mapping.

    Raises: TypeError if there is no such tensor, or several.
    """
    if isinstance(inputs, Mapping):
        returned = model(**inputs)
    else:
        returned = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return _only_logits(returned) if output is None else output(returned)


def values_of(inputs: Any) -> tuple[Any, ...]:
    """The arguments in `inputs`, as a tuple."""
    if isinstance(inputs, Mapping):
        return tuple(inputs.values())
    return inputs if isinstance(inputs, tuple) else (inputs,)


def outside_inference_mode(model: nn.Module, images: Any, labels: Tensor | None) -> tuple[Any, Tensor | None]:
    """Images and labels that autograd can save: inference tensors are copied.

    Raises: NotReadyError for a model that was made under inference mode.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise _checks.NotReadyError(
                f"the model was made under torch.inference_mode (parameter {name!r}) and cannot be differentiated: "
                "build and load it outside"
            )
    with torch.inference_mode(False):
        return _copied(images), _copied(labels)


def _copied(given: Any) -> Any:
    if isinstance(given, Mapping):
        return {name: _copied(value) for name, value in given.items()}
    if isinstance(given, tuple):
        return tuple(map(_copied, given))
    return given.clone() if isinstance(given, Tensor) and given.is_inference() else given


@contextlib.contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Inside, the whole model is in train or eval mode. On exit each module returns to its own mode, so that frozen
    parts of a training model stay frozen."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.train(training)
        yield
    finally:
        for module, before in modes.items():
            module.training = before


def eagerly() -> contextlib.AbstractContextManager[Any]:
    """Inside, compiled code runs eagerly. Does not import the compiler."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _only_logits(returned: Any) -> Tensor:
    if isinstance(returned, Tensor):
        return returned
    mapping = isinstance(returned, Mapping)
    named = returned.get("logits") if mapping else getattr(returned, "logits", None)
    if isinstance(named, Tensor):
        return named
    held = returned.values() if mapping else returned if isinstance(returned, (tuple, list)) else ()
    tensors = [value for value in held if isinstance(value, Tensor)]
    if len(tensors) == 1:
        return tensors[0]
    what = f"{type(returned).__name__} of {', '.join(map(repr, returned))}" if mapping else type(returned).__name__
    raise TypeError(
        f"the model returned a {what} with {len(tensors) or 'no'} tensors that could be the logits: pass "
        "output=, a callable that extracts the logits from it"
    )


@contextlib.contextmanager
def running(model: str, side: int, argument: str) -> Iterator[None]:
    """Turns what a model raises for square images it does not accept into a one-line ValueError."""
    try:
        yield
    except ValueError:
        raise  # Our own, or clear enough as it is.
    except (AssertionError, RuntimeError, IndexError) as error:
        reason = first_line(error)
        raise ValueError(f"{model} does not run on images of {side} x {side} ({argument}): {reason}") from error
