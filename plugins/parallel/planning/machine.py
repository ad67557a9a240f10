"""How long a process computes: by the roofline of a machine on paper, or as measured on this one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .layers import PlannedLayer

UPDATE = 5  # numbers that move for each parameter in an update with momentum: three are read, two written
FLOPS_PER_BYTE = 10.0  # of a machine whose memory's speed was not given


@dataclass(frozen=True)
class Machine:
    """A machine on paper: operations per second and bytes per second of its memory, both as a process reaches them.

    A layer takes as long as the slower of its arithmetic and its memory traffic (Williams et al. 2009, "Roofline").
    """

    flops: float
    bandwidth: float

    def seconds(self, layer: PlannedLayer, samples: float, parts: int = 1) -> float:
        """Return the time of one of a layer's ``parts`` parts, forward and backward, of so many samples."""
        ways = 1 + layer.input_gradient + (layer.trained > 0)
        work = 2 * ways * layer.multiply_adds * samples / parts
        activations = (layer.inputs + layer.outputs / parts) * samples * layer.activation_bytes
        moved = ways * (layer.weights * layer.number_bytes / parts + activations)
        return max(work / self.flops, moved / self.bandwidth)

    def update(self, parameters: float) -> float:
        """Return the time of the optimiser for so many parameters."""
        return UPDATE * 4 * parameters / self.bandwidth


@dataclass(frozen=True)
class MeasuredMachine(Machine):
    """A machine at hand: what was measured of a layer, and the roofline's ratios for other sizes of it.

    times: of a layer's name, seconds by (samples, parts). A layer without any takes ``slack`` times its roofline.
    """

    times: Mapping[str, Mapping[tuple[float, int], float]] = field(default_factory=dict)
    slack: float = 1.0

    def seconds(self, layer: PlannedLayer, samples: float, parts: int = 1) -> float:
        """Return the measured time, or that of the nearest measured size scaled as the roofline says."""
        times, roofline = self.times.get(layer.name), super().seconds
        if not times:
            return self.slack * roofline(layer, samples, parts)
        near = min(times, key=lambda at: (abs(at[1] - parts), abs(at[0] - samples)))
        there = roofline(layer, *near)
        return times[near] * (roofline(layer, samples, parts) / there if there else samples / near[0])
