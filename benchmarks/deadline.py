"""A benchmark's time limit: it ends between two cases and keeps its results."""

from __future__ import annotations

import time


class Deadline:
    """Allows another case if one that takes as long as the longest of the last four would end in time.

    The first case, which waits for compilers and libraries to start, counts for the second only.
    """

    def __init__(self, seconds: float | None) -> None:
        """None: no limit."""
        self._start = self._begun = time.perf_counter()
        self._end = None if seconds is None else self._start + seconds
        self._taken: list[float] = []
        self._asked = False

    @property
    def taken(self) -> float:
        return time.perf_counter() - self._start

    def allows_another(self) -> bool:
        """To be called before each case. The first case is always allowed."""
        now = time.perf_counter()
        if not self._asked:
            self._asked, self._begun = True, now
            return True
        self._taken.append(now - self._begun)
        self._begun = now
        longest = max(self._taken[1:][-4:] or self._taken)
        return self._end is None or now + longest <= self._end
