"""A process that is about another run is refused at the start, by name of what differs."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from engine.distributed import agreement, current
from engine.interfaces import Source
from engine.plugins.augment import Mixup
from engine.plugins.parallel import Data
from engine.randomness import Key
from engine.testing import small_run, together
from engine.testing.small import SmallData, SmallModel, SmallSource


class OtherData(SmallData):
    """As many images of the same kind, with other pixels."""

    def build(self, split: str) -> Source:
        """Make a split."""
        return SmallSource(20 if split == "train" else 8, Key.of(1).at(split))


def differ(out: Path, what: str, rank: int) -> str:
    """Assemble a run of which one process has something else; return the error's first line."""
    settings: dict = {"parallel": Data()}
    if current().rank == rank:
        if what == "data":
            SmallData.build = OtherData.build
        elif what == "model":
            build = SmallModel.build
            SmallModel.build = lambda self, *sizes: build(self, *sizes).append(nn.Linear(3, 3))
        elif what == "options":
            settings |= {"clip": 1.0, "data": SmallData(threads=3)}  # the second is each one's own affair
        elif what == "augment":
            settings["augment"] = {"mixup": Mixup()}
        elif what == "torch":
            agreement.torch.__version__ = "1.0"
        else:
            agreement.code = lambda: "1.0.0 0123456789ab"
    small_run(out, **settings)
    return "assembled"


@pytest.mark.parametrize(
    ("what", "rank", "told"),
    [
        ("data", 1, "rank 1 has other training data than rank 0 .20 images, small-20-"),
        pytest.param("augment", 1, "rank 1 has another augment than rank 0 .mixup, not ", marks=pytest.mark.soak),
        pytest.param("model", 1, "rank 1 has another network than rank 0", marks=pytest.mark.soak),
        pytest.param("options", 1, r"rank 1 has another run\.clip than rank 0 .1\.0, not None", marks=pytest.mark.soak),
        ("code", 0, "rank 1 has another version of the engine's or a plugin's code than rank 0"),
        pytest.param("torch", 1, r"rank 1 has another torch than rank 0 .1\.0, not 2", marks=pytest.mark.soak),
    ],
)
def test_what_differs_is_named(tmp_path, what, rank, told):
    with pytest.raises(AssertionError, match=f"UsageError: parallel: {told}.*: give all processes the same"):
        together(2, differ, tmp_path / "run", what, rank)
    assert not (tmp_path / "run" / "config.yaml").exists(), "nothing was begun"


def test_processes_that_are_alike_agree(tmp_path):
    assert together(2, differ, tmp_path / "run", "", 7) == ["assembled"] * 2


def test_the_code_is_known_by_its_content(tmp_path, monkeypatch):
    before = agreement.code()
    assert before == agreement.code.__wrapped__()
    real = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda p: real(p) + b"\n" if p.name == "run.py" else real(p))
    assert agreement.code.__wrapped__() != before


def spoil(update: int) -> None:
    """Change one bit of a parameter in one process, as a bad memory cell would."""
    import torch

    from engine.distributed.together import require_same

    weights = {"conv.weight": torch.ones(5), "fc.weight": torch.ones(3, 3)}
    require_same(current(), weights, update)
    if current().rank == 2:
        weights["fc.weight"].view(torch.int32)[1, 1] ^= 1
    require_same(current(), weights, update)


def test_a_bit_that_differs_later_is_found():
    with pytest.raises(AssertionError, match=r"after 40 updates 'fc\.weight' of rank 2 is not rank 0's in every bit"):
        together(3, spoil, 40)
