"""The conformance kit: checks that a component keeps its promises (``engine/interfaces.py``, ``engine/hookspecs.py``).

Each check takes the component's options, or what their ``build()`` returns, and raises BrokenPromise (an
AssertionError) with a message that names the promise and how it was broken::

    from engine.testing import check_augment
    from mixlib import Blend

    def test_blend_keeps_its_promises():
        check_augment(Blend(alpha=0.4))

Give options where you can: a check then also builds the component twice, or anew for each image size.
``small_run`` assembles a real run from tiny parts, to try a component in.
"""

from engine.testing.augment import check_augment
from engine.testing.kernel import SPECS, check_kernel
from engine.testing.marginalization import check_marginalization
from engine.testing.observer import check_observer
from engine.testing.precision import check_precision
from engine.testing.processes import together
from engine.testing.promises import BrokenPromise
from engine.testing.reads import watch_reads
from engine.testing.small import small_run
from engine.testing.source import check_source
from engine.testing.strategy import check_strategy
from engine.testing.transfer import check_transfer

__all__ = [
    "SPECS", "BrokenPromise", "check_augment", "check_kernel", "check_marginalization", "check_observer",
    "check_precision", "check_source", "check_strategy", "check_transfer", "small_run", "together", "watch_reads",
]  # fmt: skip
