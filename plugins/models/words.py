"""The words that ``model=custom`` is made of: how they are written, and what each says."""

from __future__ import annotations

import re
from dataclasses import dataclass

from engine import UsageError
from engine.errors import did_you_mean

WORD = re.compile(
    r"(?P<shortcut>\+)?(?P<kind>[a-z]+)(?P<size>\d+x\d+(?:\+\d+x\d+)?)?"
    r"(?::(?P<value>\d+|\d*\.\d+)(?:x(?P<count>\d+))?)?(?:/(?P<stride>\d+))?(?:\*(?P<times>\d+))?"
)
FORMS = {
    "conv": "conv3x3:64, conv7x7:64/2 (stride 2), conv1x3+3x1:64 or +conv3x3:64 (with a shortcut)",
    "stack": "stack3x3:128x2 (two convolutions) or stack3x3:128x2/2 (the first with stride 2)",
    "bottleneck": "bottleneck:256, bottleneck:256/2 or bottleneck1x3+3x1:256",
    "depthwise": "depthwise:128, depthwise:128/2 or depthwise5x5:128",
    "pool": "pool (2x2, stride 2) or pool3x3/2",
    "avgpool": "avgpool (2x2, stride 2) or avgpool3x3/2",
    "gap": "gap alone",
    "lrn": "lrn alone",
    "dropout": "dropout:0.5, with a chance below 1",
    "linear": "linear:256",
}
"""The kinds of words, each with how it is written."""
CONVOLUTIONS = ("conv", "stack", "bottleneck", "depthwise")
FLAT = ("linear", "dropout")  # what may follow where no maps are left
NEEDED = {"conv": {"size", "value"}, "stack": {"size", "value"}, "bottleneck": {"value"}, "depthwise": {"value"},
          "dropout": {"value"}, "linear": {"value"}}  # fmt: skip
POSSIBLE = {
    "conv": {"shortcut", "stride", "times"}, "stack": {"shortcut", "count", "stride", "times"},
    "bottleneck": {"shortcut", "size", "stride", "times"}, "depthwise": {"shortcut", "size", "stride", "times"},
    "pool": {"size", "stride"}, "avgpool": {"size", "stride"}, "linear": {"times"},
}  # fmt: skip
DEFAULT_SIZES = {"bottleneck": "3x3", "depthwise": "3x3", "pool": "2x2", "avgpool": "2x2"}


@dataclass(frozen=True)
class Word:
    """A word of the list, read: its place in the list from 1, its text, and its parts, defaults filled in.

    value: filters, units or a chance. sides: of the kernel or window. split: whether the kernel is 1 x side, side x 1.
    count: convolutions of a stack. times: how often the layer follows itself.
    """

    place: int
    text: str
    kind: str
    shortcut: bool
    sides: tuple[int, int]
    split: bool
    value: float
    count: int
    stride: int
    times: int

    @property
    def filters(self) -> int:
        """How many filters or units."""
        return int(self.value)

    def wrong(self, what: str) -> UsageError:
        """Return the error that names the word."""
        return _wrong(self.text, self.place, what)


def read_word(text: str, place: int) -> Word:
    """Return what a word says. Raises UsageError that names it and says how such a word is written."""
    found = WORD.fullmatch(text)
    kind = found["kind"] if found else re.sub(r"^\W*([a-z]*).*$", r"\1", text, flags=re.DOTALL)
    if kind not in FORMS:
        raise _wrong(text, place, f"no such kind of layer{did_you_mean(kind, list(FORMS))}")
    if found is None:
        raise _wrong(text, place, f"write {FORMS[kind]}")
    parts = {name: part for name, part in found.groupdict().items() if part and name != "kind"}
    needed = NEEDED.get(kind, set())
    if not needed <= parts.keys() <= needed | POSSIBLE.get(kind, set()):
        raise _wrong(text, place, f"write {FORMS[kind]}")
    sides, split = _sides(parts.get("size") or DEFAULT_SIZES.get(kind, "1x1"))
    word = Word(
        place=place,
        text=text,
        kind=kind,
        shortcut="shortcut" in parts,
        sides=sides,
        split=split,
        value=float(parts.get("value", 1)),
        count=int(parts.get("count", 2 if kind == "stack" else 1)),
        stride=int(parts.get("stride", 2 if "pool" in kind else 1)),
        times=int(parts.get("times", 1)),
    )
    _check(word)
    return word


def _sides(size: str) -> tuple[tuple[int, int], bool]:
    """Return height and width of a kernel, and whether it is of two parts; of 1x3+3x1 the whole, 3x3."""
    first, _, second = size.partition("+")
    height, width = (int(side) for side in first.split("x"))
    if not second:
        return (height, width), False
    if height == 1 and second == f"{width}x1":
        return (width, width), True
    return (0, 0), True  # no pair that belongs together


def _check(word: Word) -> None:
    """Raise UsageError for numbers that are out of bounds."""
    convolves = word.kind in CONVOLUTIONS
    if word.split and (0 in word.sides or word.kind not in ("conv", "bottleneck")):
        raise word.wrong("two kernels are written 1x3+3x1, 1x5+5x1 and so on, in conv and bottleneck")
    if 0 in (*word.sides, word.count, word.stride, word.times):
        raise word.wrong("sizes, strides and counts are at least 1")
    if convolves and any(side % 2 == 0 for side in word.sides):
        raise word.wrong("kernels have odd sides, so that one place is in their middle: take 3x3 or 5x5")
    if word.kind in ("bottleneck", "depthwise") and word.sides[0] != word.sides[1]:
        raise word.wrong("its kernel is square: take 3x3 or 5x5")
    if word.kind == "dropout":
        if word.value >= 1:
            raise word.wrong(f"write {FORMS['dropout']}")
    elif word.value != word.filters or word.value < (2 if word.kind == "bottleneck" else 1):
        raise word.wrong(f"the number behind the colon is a whole one, {2 if word.kind == 'bottleneck' else 1} or more")


def _wrong(text: str, place: int, what: str) -> UsageError:
    return UsageError(f"model.layers: {text!r} (number {place}): {what}")
