"""The parts of benchmarks/precision.py."""
