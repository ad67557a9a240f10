"""Which parts of a network are worth computing twice: bytes saved for each multiply-add done again."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate

from engine.budget.trace import Call, Trace

PRICES = 12  # bytes for an operation, from the dearest segment's to none
HALVINGS = 7  # of the bytes that one segment may hold while it is computed again


@dataclass(frozen=True)
class Stretch:
    """Calls in a row that may become a segment.

    inside: bytes that are not saved, and anew while it is computed again. kept: those that it is computed from, if
    nothing else saves them. work: operations that are done again.
    """

    calls: tuple[Call, ...]
    inside: int
    kept: int
    work: int

    @property
    def bytes(self) -> int:
        """Bytes that are no longer saved."""
        return self.inside - self.kept

    @property
    def begin(self) -> int:
        """The tick at which it begins."""
        return self.calls[0].begin

    @property
    def end(self) -> int:
        """The tick at which it has ended."""
        return self.calls[-1].end


@dataclass(frozen=True)
class Selection:
    """Some stretches that do not overlap. less: bytes by which what is saved at one time falls, about."""

    stretches: tuple[Stretch, ...] = ()
    less: int = 0

    @property
    def work(self) -> int:
        """Operations that are done again."""
        return sum(stretch.work for stretch in self.stretches)

    def __add__(self, other: Selection) -> Selection:
        return Selection(self.stretches + other.stretches)


class Stretches:
    """All that may become segments in a traced network, level by level of its modules."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._counts = trace.counts()
        self._operations = sorted(trace.operations)
        self._levels = {call: self._of(call) for call in trace.root.all() if call.calls}

    def selections(self) -> list[Selection]:
        """Return ways to choose, the fewest operations first: for many prices of one, the best choice at that price.

        At a price of p bytes an operation, a stretch is worth its bytes less p for each operation that it does again;
        the best choice has the largest sum (found by dynamic programming over each level of the modules).
        """
        known = [stretch for level in self._levels.values() for stretch in level.values() if stretch.bytes > 0]
        rates = sorted((stretch.bytes / stretch.work for stretch in known), reverse=True)
        prices = [rates[place * (len(rates) - 1) // PRICES] for place in range(PRICES)] + [0.0] if rates else []
        largest = max((stretch.inside for stretch in known), default=0)
        found: dict[tuple[int, ...], Selection] = {}
        for halving in range(HALVINGS):
            for price in dict.fromkeys(prices):
                selection = self._best(self._trace.root, price, largest >> halving)[1]
                found[tuple(id(stretch) for stretch in selection.stretches)] = selection
        plain = self._most(Selection())
        judged = [replace(each, less=plain - self._most(each)) for each in found.values()]
        return sorted(judged, key=lambda selection: selection.work)

    def _most(self, selection: Selection) -> int:
        """Return the most bytes that are saved at one time: at the end, or when a stretch is computed again.

        What comes behind that stretch is then no longer needed.
        """
        stretches = selection.stretches
        begins = [stretch.begin for stretch in stretches]
        until = [0] * (len(stretches) + 1)  # bytes first saved before stretch number so and so
        for first, last, size in self._saved:
            place = bisect_right(begins, first)
            if place == 0 or last >= stretches[place - 1].end:
                until[place] += size
        before = list(accumulate(until))
        kept = list(accumulate(stretch.kept for stretch in stretches))
        again = [before[n] + kept[n] + stretch.inside for n, stretch in enumerate(stretches)]
        return max([before[-1] + (kept[-1] if kept else 0), *again])

    def _best(self, call: Call, price: float, largest: int) -> tuple[float, Selection]:
        """Return the worth of the best choice inside a call, and the choice."""
        best: list[tuple[float, Selection]] = [(0.0, Selection())]
        level = self._levels.get(call, {})
        for after in range(1, len(call.calls) + 1):
            inner = self._best(call.calls[after - 1], price, largest)
            options = [(best[after - 1][0] + inner[0], best[after - 1][1] + inner[1])]
            for first in range(after - 1, -1, -1):
                if (stretch := level.get((first, after))) is None:
                    continue
                worth = stretch.bytes - price * stretch.work
                if stretch.inside <= largest and worth > 0:
                    options.append((best[first][0] + worth, best[first][1] + Selection((stretch,))))
            best.append(max(options, key=lambda option: option[0]))
        return best[-1]

    def _of(self, parent: Call) -> dict[tuple[int, int], Stretch]:
        """Return the stretches of a module's own calls, by the first and the one behind the last."""
        found = {}
        calls = parent.calls
        for first in range(len(calls)):
            for after in range(first + 1, len(calls) + 1):
                if not self._fits(calls[after - 1]):
                    break
                if after > first + 1 and not self._linked(calls[after - 2], calls[after - 1]):
                    break
                if after > first + 1 or calls[first].calls:
                    found[first, after] = self._stretch(calls[first:after])
        return found

    def _fits(self, call: Call) -> bool:
        return call.given is not None and call.made is not None and self._counts[call.name] == 1

    def _linked(self, one: Call, other: Call) -> bool:
        """Return whether the second call alone uses what the first has made, and nothing is computed between them."""
        if one.made is not other.given:
            return False
        if bisect_left(self._operations, one.end) != bisect_left(self._operations, other.begin):
            return False
        later = [tick for tick in self._trace.uses[id(one.made)] if tick >= one.end]
        return all(other.begin <= tick < other.end for tick in later)

    def _stretch(self, calls: Sequence[Call]) -> Stretch:
        begin, end = calls[0].begin, calls[-1].end
        given = calls[0].given
        assert given is not None, "it fits"
        source = given.untyped_storage()._cdata
        freed = sum(size for first, last, size in self._saved if begin <= first and last < end)
        known = self._trace.saved.get(source)
        outside = known is not None and not (begin <= known.ticks[0] and known.ticks[-1] < end)
        kept = 0 if outside or source == self._trace.images else given.untyped_storage().nbytes()
        return Stretch(tuple(calls), freed, kept, sum(call.work for call in calls))

    @cached_property
    def _saved(self) -> list[tuple[int, int, int]]:
        """Return the first and the last tick and the bytes of what is saved; the images stay in any case."""
        kept = [saved for storage, saved in self._trace.saved.items() if storage != self._trace.images]
        return [(saved.ticks[0], saved.ticks[-1], saved.size) for saved in kept]
