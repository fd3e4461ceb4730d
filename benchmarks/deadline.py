"""The time that a benchmark was given: it ends between two cases, and keeps what it has."""

from __future__ import annotations

import time


class Deadline:
    """Allows another case while one that takes as long as the longest so far would end in time."""

    def __init__(self, seconds: float | None) -> None:
        """None: no limit."""
        self._start = self._begun = time.perf_counter()
        self._end = None if seconds is None else self._start + seconds
        self._longest = 0.0
        self._asked = False

    @property
    def taken(self) -> float:
        return time.perf_counter() - self._start

    def allows_another(self) -> bool:
        """To be asked before each case. The first is allowed whatever the time."""
        now = time.perf_counter()
        if self._asked:
            self._longest = max(self._longest, now - self._begun)
        first, self._asked, self._begun = not self._asked, True, now
        return first or self._end is None or now + self._longest <= self._end
