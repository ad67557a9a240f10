"""Native code as tensors see it: functions, checked, and convolutions and rounding as ``torch.ops.engine``."""

from engine.ops.algorithm import Algorithm
from engine.ops.convolution import NATIVE, register, registered
from engine.ops.cuda import CudaConvolution
from engine.ops.cuda_images import available as transforms_on_gpu
from engine.ops.cuda_images import transform as transform_on_gpu
from engine.ops.extension import Convolution, build_facts, instruction_set, instruction_sets, philox, uniform
from engine.ops.images import CHECKSUM, DAMAGED, ENDED, UNREADABLE, PictureError, Times, address_of, crc32c, transform
from engine.ops.jpeg import MOST_PIXELS, decode_jpeg, jpeg_decodes, jpeg_header, plain_jpeg
from engine.ops.layer import KernelConvolution, prepared_weights
from engine.ops.rounding import add_bfloat16, round_bfloat16, round_dynamic, round_fixed, round_float16

__all__ = [
    "CHECKSUM", "DAMAGED", "ENDED", "MOST_PIXELS", "NATIVE", "UNREADABLE", "Algorithm", "Convolution",
    "CudaConvolution", "KernelConvolution", "PictureError", "Times", "add_bfloat16", "address_of", "build_facts",
    "crc32c", "decode_jpeg", "instruction_set", "instruction_sets", "jpeg_decodes", "jpeg_header", "philox",
    "plain_jpeg", "prepared_weights", "register", "registered", "round_bfloat16", "round_dynamic", "round_fixed",
    "round_float16", "transform", "transform_on_gpu", "transforms_on_gpu", "uniform",
]  # fmt: skip
