"""Benchmarks of speed and memory. Only correct results are timed. See `python -m benchmarks.NAME --help`."""
