"""A small set of cases in which every two values of every two options occur together at least once."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence
from typing import Any


def pairwise(options: dict[str, Sequence[Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Rows, one value an option, that cover every pair of values (greedy, a dozen candidates a row).

    For n options of at most v values this takes some v^2 log n rows, where the full product takes v^n.
    """
    rng = random.Random(seed)
    names = list(options)
    left = {
        ((a, i), (b, j))
        for a, b in itertools.combinations(range(len(names)), 2)
        for i in range(len(options[names[a]]))
        for j in range(len(options[names[b]]))
    }
    rows = []
    while left:
        candidates = []
        for _ in range(12):
            (a, i), (b, j) = rng.choice(sorted(left))
            chosen = {a: i, b: j}
            for c in rng.sample(range(len(names)), len(names)):
                if c in chosen:
                    continue
                gains = [
                    sum(tuple(sorted(((c, k), other))) in left for other in chosen.items())
                    for k in range(len(options[names[c]]))
                ]
                best = max(gains)
                chosen[c] = rng.choice([k for k, gain in enumerate(gains) if gain == best])
            covered = {pair for pair in itertools.combinations(sorted(chosen.items()), 2) if pair in left}
            candidates.append((len(covered), chosen, covered))
        _, chosen, covered = max(candidates, key=lambda candidate: candidate[0])
        left -= covered
        rows.append({name: options[name][chosen[index]] for index, name in enumerate(names)})
    return rows
