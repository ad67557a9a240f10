"""Marginalised evaluations through the command line."""

from __future__ import annotations

import re

import pytest

QUICK = ["data.size=8", "run.epochs=1", "run.batch=128", "model.width=8", "observe=[]", "out=run"]


def loss(text: str) -> float:
    found = re.search(r"loss ([\d.]+)", text)
    assert found, text
    return float(found[1])


def test_training_and_evaluating_average_alike(engine):
    members = ["marginalize=[flip,mc]", "marginalize.mc.samples=3", "model.drop_connect=0.4", "evaluate.batch_norm=2"]
    code, _, told = engine("train", *QUICK, *members)
    assert code == 0, told
    code, averaged, told = engine("evaluate", "checkpoint=run")  # what the checkpoint's command chose
    assert code == 0, told
    code, plain, told = engine("evaluate", "checkpoint=run", "marginalize=[]", "evaluate.batch_norm=0")
    assert code == 0, told
    code, scales, told = engine(
        "evaluate", "checkpoint=run", "marginalize=[multi_scale,flip]", "marginalize.multi_scale.sizes=[8,12]",
        "evaluate.average=logits",
    )  # fmt: skip
    assert code == 0, told
    assert len({loss(averaged), loss(plain), loss(scales)}) == 3


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["marginalize=[flop]"], "marginalize=flop: no such marginalize; did you mean 'flip'?"),
        (["marginalize=[flip,flip]"], "marginalize=[flip,flip]: flip is named twice; each can be used once"),
        (["evaluate.marginalize=[flip]"], "evaluate.marginalize: no such option; did you mean 'marginalize'?"),
        (["marginalize.mc.samples=3"], "marginalize.mc.samples: mc is not in marginalize=[]; add it to the list"),
        (["evaluate.average=mean"], "evaluate.average=mean: no such choice"),
        (["marginalize=[ten_crop]", "marginalize.ten_crop.crop=9"], "marginalize.ten_crop.crop=9: the images are 8x8"),
        (["marginalize=[multi_scale]", "marginalize.multi_scale.sizes=[]"], "marginalize.multi_scale.sizes is empty"),
        (["marginalize=[mc]"], "marginalize.mc: the model has no layer that draws"),
    ],
)
def test_mistakes_are_answered_in_one_line(engine, words, line, tmp_path):
    code, _, told = engine("train", *QUICK, *words)
    assert code == 2
    assert told.strip().splitlines()[-1].startswith(f"engine: {line}"), told
    assert not (tmp_path / "run" / "checkpoints").exists()
