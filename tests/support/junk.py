"""Values of every kind that a caller may pass by mistake, and the expected outcome for each."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def junk() -> dict[str, Any]:
    """Fresh values. Values that are valid for an argument must be accepted."""
    numbers = {
        "nan": math.nan,
        "inf": math.inf,
        "-1": -1,
        "0": 0,
        "0.5": 0.5,
        "3": 3,
        "10**30": 10**30,
        "10**400": 10**400,
    }
    tensors = {
        str(shape): torch.rand(shape) for shape in ((), (2,), (2, 1), (2, 3), (2, 3, 2), (2, 4, 5, 6), (1, 1, 1, 1, 1))
    }
    return {
        **numbers,
        **{f"tensor {name}": tensor for name, tensor in tensors.items()},
        "None": None,
        "text": "x",
        "bytes": b"x",
        "True": True,
        "empty list": [],
        "list": [1, 2],
        "pair": (3, 4),
        "three": (3, 4, 5),
        "negative pair": (-3, 4),
        "huge pair": (2**40, 2),
        "dict": {},
        "object": object(),
        "function": lambda *given: 1,
        "array": np.ones((2, 3), np.float32),
        "float32 number": np.float32(0.5),
        "int64 number": np.int64(2),
        "integers": torch.ones(2, 3, 2, dtype=torch.int64),
        "booleans": torch.ones(2, 3, dtype=torch.bool),
        "complex": torch.ones(2, 5, 6, dtype=torch.complex64),
        "complex layer": torch.ones(2, 4, 5, 6, dtype=torch.complex64),
        "float8": torch.rand(2, 4, 5, 6).to(torch.float8_e4m3fn),
        "empty": torch.empty(0),
        "meta map": torch.empty(2, 5, 6, device="meta"),
        "meta layer": torch.empty(2, 4, 5, 6, device="meta"),
        "meta points": torch.empty(2, 3, 2, device="meta"),
        "meta weights": torch.empty(2, device="meta"),
        "sparse map": torch.rand(2, 5, 6).to_sparse(),
        "sparse layer": torch.rand(2, 4, 5, 6).to_sparse(),
        "sparse points": torch.rand(2, 3, 2).to_sparse(),
        "sparse weights": torch.rand(2).to_sparse(),
        "NaN map": torch.full((2, 5, 6), math.nan),
        "NaN points": torch.full((2, 3, 2), math.nan),
        "infinite weights": torch.tensor([math.inf, 1.0]),
        "NaN weights": torch.tensor([math.nan, 1.0]),
        "NaN landmark weights": torch.full((2, 3), math.nan),
        "infinite landmark weights": torch.tensor([1.0, math.inf, 1.0]),
        "one number seen often": torch.ones(1, 1, 1).expand(2, 5, 6),
        "parameter": nn.Parameter(torch.rand(2, 4, 5, 6)),
    }  # fmt: skip


def complaints(call: Callable[..., Tensor], argument: str) -> list[str]:
    """The values of `junk` that `call(**{argument: value})` handles wrongly: it must return finite numbers, or raise
    a ValueError or TypeError that names the argument."""
    found = []
    for name, value in junk().items():
        try:
            result = call(**{argument: value})
        except (ValueError, TypeError) as error:
            if argument not in str(error):
                found.append(f"{argument}={name}: the error does not name it: {error}")
        except Exception as error:
            found.append(f"{argument}={name}: {type(error).__name__}: {error}")
        else:
            if result.device.type != "meta" and not bool(torch.isfinite(result).all()):
                found.append(f"{argument}={name}: returned {result}")
    return found


#: Values that only an operator has to tell apart, or that ask for more memory than there is.
_FOR_OPERATORS = ("10**", "huge", "meta", "sparse", "float8")


def unnamed(call: Callable[..., Any], given: dict[str, Any], argument: str) -> list[str]:
    """The values of `junk` for which `call(**given)` with `argument` replaced raises anything but a ValueError or
    TypeError that names one of the arguments, or an OSError, as for a path to nothing."""
    found = []
    for name, value in junk().items():
        if name.startswith(_FOR_OPERATORS):
            continue
        try:
            call(**{**given, argument: value})
        except OSError:
            pass
        except (ValueError, TypeError) as error:
            if not any(known in str(error) for known in given):
                found.append(f"{argument}={name}: the error names no argument: {error}")
        except Exception as error:
            found.append(f"{argument}={name}: {type(error).__name__}: {error}")
    return found
