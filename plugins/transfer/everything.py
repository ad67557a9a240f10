"""Training without transfer."""

from engine.interfaces import Transfer


class TrainEverything(Transfer):
    """One stage in which every parameter trains."""
