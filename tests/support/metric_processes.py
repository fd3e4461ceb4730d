"""The code that each of the two processes of tests/metrics runs; a module, so that spawned processes can import it."""

from __future__ import annotations

import torch
from torch import Tensor

from support.triton_namesake import hide


def in_each(rank: int, directory: str, attribution: Tensor, mask: Tensor) -> None:
    """Scores this process's share of the maps and writes values, counts and the number of its own samples."""
    hide()
    from pal_fast import metrics

    torch.distributed.init_process_group("gloo", init_method=f"file://{directory}/meet", rank=rank, world_size=2)
    collection = metrics.alignment_metrics()
    share = slice(0, 5) if rank == 0 else slice(5, None)  # uneven on purpose
    collection.update(attribution[share], mask[share])
    counts = {name: metric.counts() for name, metric in collection.items()}
    own = int(collection["pearson"].defined) + int(collection["pearson"].undefined)
    torch.save((dict(collection.compute()), counts, own), f"{directory}/{rank}.pt")
    torch.distributed.destroy_process_group()
