"""Benchmarks: what the package costs in time and memory, beside its rivals, in one run (README.md has the commands)."""
