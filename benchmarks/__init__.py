"""Benchmarks of speed and memory, for right results only; see `python -m benchmarks.NAME --help`."""
