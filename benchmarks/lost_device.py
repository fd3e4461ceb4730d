"""Handling of a GPU that one of a benchmark's peers left unusable.

After an illegal memory access, for instance, every call of the process fails; a new process can go on without the peer.
"""

from __future__ import annotations

import torch

from pal_fast.messages import first_line

#: Exit status of a command that lost the GPU.
LOST = 3


class LostDeviceError(Exception):
    """This process can no longer use the GPU; the message names the peer that caused it."""

    def __init__(self, peer: str) -> None:
        super().__init__(f"lost the GPU in {peer!r}")


def note_of(error: Exception) -> str:
    """The note in a row for a peer that failed."""
    return f"failed: {type(error).__name__}: {first_line(error)[:100]}"


def recover(peer: str, error: Exception, device: torch.device) -> None:
    """Frees the memory held by `peer` after `error`. Raises: LostDeviceError if the GPU does not respond."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except Exception:
        raise LostDeviceError(peer) from error


def lost_peer(output: str) -> str:
    """The peer that lost the GPU according to a command's output, or ""."""
    for line in reversed(output.splitlines()):
        if line.startswith("lost the GPU in '") and line.endswith("'"):
            return line.removeprefix("lost the GPU in '").removesuffix("'")
    return ""
