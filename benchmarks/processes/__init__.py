"""What the benchmark of parallel training measures: networks between processes, steps of strategies, whole runs."""
