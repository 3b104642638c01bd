"""Benchmarks: ratios measured side by side in one run, correctness first. `make bench` writes docs/benchmarks.md."""
