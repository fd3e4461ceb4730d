"""What a benchmark does about a GPU that one of its peers left unusable.

After an illegal access, say, every call of the process fails; a new process may go on without that peer.
"""

from __future__ import annotations

import torch

from pal_fast.messages import first_line

#: The status of a command that ended so.
LOST = 3


class LostDeviceError(Exception):
    """No call of this process can use the GPU any more; the message names the peer after which that was so."""

    def __init__(self, peer: str) -> None:
        super().__init__(f"lost the GPU in {peer!r}")


def note_of(error: Exception) -> str:
    """What a row says of a peer that failed."""
    return f"failed: {type(error).__name__}: {first_line(error)[:100]}"


def recover(peer: str, error: Exception, device: torch.device) -> None:
    """After `error` in `peer`: frees what it held. Raises: LostDeviceError if the GPU does not answer."""
    if device.type != "cuda":
        return
    try:
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
    except Exception:
        raise LostDeviceError(peer) from error


def lost_peer(output: str) -> str:
    """The peer that a command's output names as the one that lost the GPU, or ""."""
    for line in reversed(output.splitlines()):
        if line.startswith("lost the GPU in '") and line.endswith("'"):
            return line.removeprefix("lost the GPU in '").removesuffix("'")
    return ""
