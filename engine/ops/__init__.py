"""Native code as tensors see it: the extension's functions, checked, and the convolutions as ``torch.ops.engine``."""

from engine.ops.convolution import NATIVE, register, registered
from engine.ops.extension import Convolution, build_facts, instruction_set, instruction_sets, philox

__all__ = [
    "NATIVE", "Convolution", "build_facts", "instruction_set", "instruction_sets", "philox", "register", "registered",
]  # fmt: skip
