"""Everything that only a GPU can prove: `python -m benchmarks.gpu_check`."""
