"""Benchmarks: one module for each field of claims, all on the harness of ``harness.py``."""
