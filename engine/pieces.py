"""Parts of tensors: what each process holds of a whole, how they are stored, and putting them together again.

A checkpoint is the same whoever wrote it: tensors under canonical names, some of them in pieces, each a box of the
whole tensor. Whoever reads takes what overlaps with the box it wants, so that any strategy and number of processes can
go on with what any other has saved.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, eq=False)
class Piece:
    """What a process holds of a tensor: ``values``, the box of the whole of ``shape`` that begins at ``offsets``.

    writes: whether it is this process that saves it, of all that hold the same.
    """

    values: Tensor
    shape: tuple[int, ...]
    offsets: tuple[int, ...]
    writes: bool = True

    @classmethod
    def whole(cls, values: Tensor, writes: bool = True) -> Piece:
        """Return a tensor that a process holds as a whole."""
        shape = tuple(values.shape)
        return cls(values, shape, (0,) * len(shape), writes)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return tuple(self.values.shape) == self.shape


def pieces_of(tensors: Mapping[str, Tensor | Piece], writes: bool) -> dict[str, Piece]:
    """Return pieces as they are, and tensors as wholes."""
    return {name: t if isinstance(t, Piece) else Piece.whole(t, writes) for name, t in tensors.items()}


def wholes(state: Mapping[str, Tensor], writes: bool = True) -> dict[str, Piece]:
    """Return a state whose tensors a process holds as wholes."""
    return {name: Piece.whole(values, writes) for name, values in state.items()}


def local(tensor: Tensor) -> Tensor:
    """Return what this process holds of a tensor of torch's DTensor kind, its own memory; another tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def overlap(
    offsets: Sequence[int], sizes: Sequence[int], others: Sequence[int], other_sizes: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """Return where two boxes of a tensor meet, as slices of the one and of the other; None if they do not.

    A box is given by its offsets and sizes, one for each dimension; two of no dimension are the same.
    """
    one, other = [], []
    for begin, size, begin_other, size_other in zip(offsets, sizes, others, other_sizes, strict=True):
        first, last = max(begin, begin_other), min(begin + size, begin_other + size_other)
        if first >= last:
            return None
        one.append(slice(first - begin, last - begin))
        other.append(slice(first - begin_other, last - begin_other))
    return tuple(one), tuple(other)
