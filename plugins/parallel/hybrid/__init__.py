"""Krizhevsky's hybrid: data parallelism in the convolutions, model parallelism in the linear layers."""
