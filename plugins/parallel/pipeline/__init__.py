"""Model parallelism by layers: every process has some of them, and activations pass from one to the next."""
