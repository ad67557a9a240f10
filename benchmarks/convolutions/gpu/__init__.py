"""``benchmarks/conv.py --device cuda``: the engine's CUDA kernels beside cuDNN, in equal precision."""
