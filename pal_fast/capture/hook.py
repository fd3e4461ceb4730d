"""Hooks on a model's modules that its copies do without."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable
from typing import Any

from torch import nn


class Hook(functools.partial[Any]):
    """A callable for `register_forward_hook` and `register_forward_pre_hook`.

    A deep copy of the module has no such hook. Pickled, the hook becomes a no-op of the standard library.
    """

    def __reduce__(self) -> Any:
        # nullcontext.__exit__ takes what a hook is given and returns None; unpickling it needs no pal_fast.
        return getattr, (contextlib.nullcontext(), "__exit__")

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A no-op, as the copied module's dict of hooks takes something; it goes when the copy is complete."""
        place_holder = contextlib.nullcontext().__exit__
        leftovers = memo.get(id(_LEFTOVERS))
        if leftovers is None:
            leftovers = memo[id(_LEFTOVERS)] = _Leftovers()
            when_copied(memo, leftovers.remove)
        leftovers.add(place_holder, memo)
        return place_holder

    @property
    def __name__(self) -> str:
        # A partial has no name. torch.jit.script asks every hook for its own, and shows the user what it is told here.
        raise AttributeError(
            "torch.jit.script takes no model with the hooks of a PALLoss or of a prepare_head that waits for its first "
            "forward on it: call pal.remove() (or the handle's restore()) first, or script a copy.deepcopy of the model"
        )


def when_copied(memo: dict[int, Any], call: Callable[[], Any]) -> None:
    """Calls `call` when the copy that `memo` belongs to is complete, as `copy.deepcopy` itself does not."""
    memo.setdefault(id(_AT_THE_END), _AtTheEnd()).calls.append(call)


#: Its id is the key under which a memo holds what is to be called at its end.
_AT_THE_END = object()


class _AtTheEnd:
    """Only the memo of a copy holds it, so that it goes with that, which is when the copy is complete."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], Any]] = []

    def __del__(self) -> None:
        for call in self.calls:
            call()


#: Likewise, the `_Leftovers` of that copy.
_LEFTOVERS = object()


class _Leftovers:
    """Place holders of hooks in copied modules, which go when the copy is complete."""

    def __init__(self) -> None:
        self._place_holders: list[Any] = []
        self._modules: list[nn.Module] = []
        self._seen = 0

    def add(self, place_holder: Any, memo: dict[int, Any]) -> None:
        """Its module is among those that `memo` holds so far: a copy is entered before it is filled."""
        self._place_holders.append(place_holder)
        entered = itertools.islice(memo.values(), self._seen, None)
        self._modules += [value for value in entered if isinstance(value, nn.Module)]
        self._seen = len(memo)

    def remove(self) -> None:
        gone = set(map(id, self._place_holders))
        for module in self._modules:
            # A copy that failed may lack any of these.
            state = vars(module)
            for kind in ("_forward_hooks", "_forward_pre_hooks"):
                hooks = state.get(kind, {})
                for key in [key for key, hook in hooks.items() if id(hook) in gone]:
                    for name in (kind, f"{kind}_with_kwargs", f"{kind}_always_called"):
                        state.get(name, {}).pop(key, None)
