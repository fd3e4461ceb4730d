"""The study of docs/study.md: `python -m benchmarks.study`."""
