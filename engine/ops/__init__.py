"""Native code as tensors see it: the extension's functions, checked, and the convolutions as ``torch.ops.engine``."""

from engine.ops.algorithm import Algorithm
from engine.ops.convolution import NATIVE, register, registered
from engine.ops.cuda import CudaConvolution
from engine.ops.extension import Convolution, build_facts, instruction_set, instruction_sets, philox
from engine.ops.layer import KernelConvolution, prepared_weights

__all__ = [
    "NATIVE", "Algorithm", "Convolution", "CudaConvolution", "KernelConvolution", "build_facts", "instruction_set",
    "instruction_sets", "philox", "prepared_weights", "register", "registered",
]  # fmt: skip
