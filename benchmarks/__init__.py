"""Benchmarks of cellxpert and of its rivals: ``python -m benchmarks run TASK``. Not part of the wheel."""
