"""Copies and pickles of a loss: each is attached to the copied model, with its own hooks."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import nn

from pal_fast.capture.capture import Capture
from pal_fast.capture.hook import when_copied
from pal_fast.capture.layer_names import find_layers
from pal_fast.engine import Engine

if TYPE_CHECKING:
    from typing_extensions import Self


class Waiting(NamedTuple):
    """What to do once the model is complete."""

    layers: tuple[str, ...]
    attached: bool  # False if the hooks had been removed


class CopiedWithModel(nn.Module):
    """A loss attached to a model, which may contain it (`self.pal = PALLoss(self, ...)`).

    Such a model is still empty when the loss in it is copied or unpickled. The hooks are then deferred: until the copy
    is complete or, when unpickling, until the first of train(), to(), check() and a call.
    """

    #: In a tuple, so that the model is not registered as a submodule of the loss.
    _model: tuple[nn.Module]
    _engine: Engine
    _capture: Capture
    _waiting: Waiting | None = None

    def _attach(self, layers: dict[str, nn.Module]) -> None:
        self._capture = Capture(
            self._model[0],
            layers,
            math_attention=self._engine.exact,
            keep_conditions=self._engine.by_differences,
        )
        self._capture.attach()

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A loss on a copy of the model (the one in `memo`, if the model is being copied too)."""
        was = self._as_it_is()
        twin = self._unattached()
        memo[id(self)] = twin
        model = copy.deepcopy(self._model[0], memo)
        twin._model = (model,)
        twin._engine = copy.deepcopy(self._engine, memo)
        twin._attach_or_wait(was)
        if twin._waiting is not None:
            when_copied(memo, twin._settle)
        return twin

    def _unattached(self) -> Self:
        """A shallow copy without hooks; copy.copy would register a second set on the same model."""
        twin = type(self).__new__(type(self))
        twin.__dict__.update(self.__dict__)
        del twin.__dict__["_capture"]
        return twin

    def __getstate__(self) -> dict[str, Any]:
        was = self._as_it_is()
        return {**self.__dict__, "_capture": tuple(was), "_waiting": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        layers, attached = state.pop("_capture")
        super().__setstate__(state)
        self._attach_or_wait(Waiting(tuple(layers), attached))

    def _as_it_is(self) -> Waiting:
        if self._waiting is not None:
            return self._waiting
        return Waiting(tuple(self._capture.layers), bool(self._capture.handles))

    def _attach_or_wait(self, wanted: Waiting) -> None:
        model = self._model[0]
        if "_modules" not in vars(model):
            self._waiting, self._capture = wanted, Capture(model, {})
            return
        self._waiting = None
        self._attach(find_layers(model, list(wanted.layers)))
        if not wanted.attached:
            self._capture.remove()

    def _settle(self) -> bool:
        """Attaches deferred hooks, if the model is complete. Returns whether it did."""
        if self._waiting is None or "_modules" not in vars(self._model[0]):
            return False
        self._attach_or_wait(self._waiting)
        return True

    def train(self, mode: bool = True) -> Self:
        self._settle()
        return super().train(mode)

    def _apply(self, *args: Any, **kwargs: Any) -> Self:
        self._settle()
        return super()._apply(*args, **kwargs)
