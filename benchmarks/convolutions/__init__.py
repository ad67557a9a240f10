"""What ``benchmarks/conv.py`` is made of: layers of well-known networks, how they are measured, and its sections."""
