"""A cache that evicts what was used least recently, as a model of a GPU's L2."""

from __future__ import annotations

from collections import OrderedDict


def hits_of_second_pass(first: list[int], second: list[int], capacity: int) -> int:
    """How many of the second pass's reads a cache of `capacity` vectors serves, which evicts the least recent."""
    cache: OrderedDict[int, None] = OrderedDict()
    hits = 0
    for reads in (first, second):
        hits = 0
        for offset in reads:
            hits += offset in cache
            cache[offset] = None
            cache.move_to_end(offset)
            if len(cache) > capacity:
                cache.popitem(last=False)
    return hits
