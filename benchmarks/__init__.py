"""Speed and memory, measured where the results are right; see `python -m benchmarks.NAME --help`."""
