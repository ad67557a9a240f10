"""Numeric policies that round: ``RoundedPrecision``, the roles it asks for, and quantisers."""

from engine.quantization.policy import RoundedPrecision, require_no_squares
from engine.quantization.quantizers import Draw, DynamicFixedPoint, FixedPoint, Half, Quantizer, Role
from engine.quantization.sites import Moment, Site, Sites

__all__ = [
    "Draw", "DynamicFixedPoint", "FixedPoint", "Half", "Moment", "Quantizer", "Role", "RoundedPrecision", "Site",
    "Sites", "require_no_squares",
]  # fmt: skip
