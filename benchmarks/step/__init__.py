"""The cost of a training step: `python -m benchmarks.step`."""
