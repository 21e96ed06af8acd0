"""Benchmarks, side by side in one run; see ``make bench``."""
