"""Many processes: where each of them is, how they speak with each other, and how they are started.

``place`` reads from the environment which process this is, ``group`` holds the collectives that strategies use and
counts what they send, ``watch`` says who does not answer, ``joining`` brings the processes of a run together,
``launching`` starts them through torch.distributed's elastic launcher.
"""

from engine.distributed.group import Group, Pending, current
from engine.distributed.traffic import Traffic

__all__ = ["Group", "Pending", "Traffic", "current"]
