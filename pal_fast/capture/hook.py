"""Hooks on a model's modules that are not copied with the model."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

from torch import nn


class Hook(functools.partial[Any]):
    """A callable for `register_forward_hook` and `register_forward_pre_hook`.

    A deep copy of the module does not have the hook. When pickled, the hook becomes a no-op of the standard library.
    """

    def __reduce__(self) -> Any:
        # nullcontext.__exit__ accepts a hook's arguments and returns None; unpickling it does not need pal_fast.
        return getattr, (contextlib.nullcontext(), "__exit__")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A no-op, as the copied module's hook dict needs an entry; it is removed when the copy is complete."""
        place_holder = contextlib.nullcontext().__exit__
        leftovers = memo.get(id(_LEFTOVERS))
        if leftovers is None:
            leftovers = memo[id(_LEFTOVERS)] = _Leftovers()
            when_copied(memo, leftovers.remove)
        leftovers.add(place_holder, memo)
        return place_holder

    @property
    def __name__(self) -> str:
        # A partial has no name. torch.jit.script asks every hook for its name, and shows this error to the user.
        raise AttributeError(
            "torch.jit.script does not accept a model with the hooks of a PALLoss, or of a prepare_head that waits for "
            "its first forward: call pal.remove() (or the handle's restore()) first, or script a copy.deepcopy of the "
            "model"
        )


def when_copied(memo: dict[int, Any], call: Callable[[], Any]) -> None:
    """Calls `call` when the copy that `memo` belongs to is complete; `copy.deepcopy` has no such callback."""
    memo.setdefault(id(_AT_THE_END), _AtTheEnd()).calls.append(call)


#: Its id is the memo key of the callbacks to run when the copy is complete.
_AT_THE_END = object()


class _AtTheEnd:
    """Referenced only by the memo of a copy, and so destroyed with the memo, when the copy is complete."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def __del__(self) -> None:
        for call in self.calls:
            call()


#: Likewise, its id is the memo key of the copy's `_Leftovers`.
_LEFTOVERS = object()


class _Leftovers:
    """Placeholders of hooks in copied modules, to be removed when the copy is complete."""

    def __init__(self) -> None:
        self._place_holders: list[Any] = []
        self._modules: list[nn.Module] = []
        self._seen = 0

    def add(self, place_holder: Any, memo: dict[int, Any]) -> None:
        """The placeholder's module is already in `memo`: deepcopy registers a copy before filling it."""
        self._place_holders.append(place_holder)
        entered = itertools.islice(memo.values(), self._seen, None)
        self._modules += [value for value in entered if isinstance(value, nn.Module)]
        self._seen = len(memo)

    def remove(self) -> None:
        gone = set(map(id, self._place_holders))
        for module in self._modules:
            # A failed copy may lack any of these.
            state = vars(module)
            for kind in ("_forward_hooks", "_forward_pre_hooks"):
                hooks = state.get(kind, {})
                for key in [key for key, hook in hooks.items() if id(hook) in gone]:
                    for name in (kind, f"{kind}_with_kwargs", f"{kind}_always_called"):
                        state.get(name, {}).pop(key, None)
