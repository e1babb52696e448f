"""The privacy promises, each with its figure and its goal: ``python -m benchmarks.privacy [ROW ...]``."""
