"""``engine explain`` tells of every parameter whether it trains, how fast, in which stage, and where it is from."""

from __future__ import annotations

import pytest
import torch

from engine.plugins.models import SmallCNN

STAGED = (
    "explain", "transfer=staged", "model=cnn", "model.width=4", "inputs=[3,16,16]", "optim.lr=0.5",
    "optim.weight_decay=0.01", "transfer.layer_decay=0.5", "transfer.lr=[conv1:0]", "transfer.patience=2",
    "transfer.weight_decay=[linear:3]",
)  # fmt: skip


def stages_of(out):
    """Return what the tables say, by stage and parameter."""
    found = {}
    for block in out.split("\n\n"):
        title, *lines = block.strip().splitlines()
        if title.startswith("stage"):
            header, *rows = lines
            columns = [header.index(name) for name in ("parameter", "shape", "is ", "lr", "weight d", "Batch", "from")]
            cells = [[row[a:b].strip() for a, b in zip(columns, [*columns[1:], None], strict=True)] for row in rows]
            found[title] = {name: tuple(rest) for name, *rest in cells}
    return found


def test_every_parameter_in_every_stage(engine, tmp_path):
    torch.save(SmallCNN(width=4).build((3, 16, 16), 5).state_dict(), tmp_path / "five.pt")
    code, out, _ = engine(*STAGED, f"transfer.weights={tmp_path / 'five.pt'}", "classes=7")
    assert code == 0
    assert "transfer: the head linear is new: it has 7 outputs here, 5 in the weights" in out
    head, last, everything = stages_of(out).items()
    assert head[0] == "stage 1 of 3, head: 40 % of the run, or 2 evaluations without improvement"
    assert last[0].startswith("stage 2 of 3, last_2: 30 % of the run")
    kept = ("frozen", "", "")
    assert head[1]["conv3.weight"] == ("16x8x3x3", *kept, "", "weights")
    assert head[1]["bn3.weight"] == ("16", *kept, "frozen", "weights")
    # new: a tenth of 0.5; pretrained: a hundredth, halved for each layer; vectors do not decay
    assert head[1]["linear.weight"] == ("7x16", "trained", "0.05", "0.03", "", "random numbers (new)")
    assert last[1]["linear.bias"] == ("7", "trained", "0.05", "0", "", "random numbers (new)")
    assert last[1]["conv3.weight"] == ("16x8x3x3", "trained", "0.0025", "0.01", "", "weights")
    assert last[1]["bn3.bias"] == ("16", "trained", "0.0025", "0", "trained", "weights")
    assert last[1]["conv2.weight"] == ("8x4x3x3", *kept, "", "weights")
    assert everything[1]["conv2.weight"] == ("8x4x3x3", "trained", "0.00125", "0.01", "", "weights")
    assert everything[1]["conv1.weight"] == ("4x3x3x3", *kept, "", "weights")
    assert everything[1]["bn1.weight"] == ("4", *kept, "frozen", "weights")


def test_without_transfer_it_is_asked_for(engine):
    plain, asked = engine("explain"), engine("explain", "parameters=true", "model=lenet")
    assert "stage" not in plain[1].replace("default", "")
    ((title, rows),) = stages_of(asked[1]).items()
    assert title == "stage 1 of 1, all: 100 % of the run"
    assert len(rows) == 8
    assert {row[-1] for row in rows.values()} == {"random numbers"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["inputs=[1,4,4]"], "model=cnn needs images of at least 8x8"),
        (["inputs=[1,16]"], "inputs=[1, 16]: give channels, height and width"),
        (["transfer.weights=none.pt"], "none.pt does not exist"),
    ],
)
def test_what_cannot_be_explained_is_answered(engine, words, message):
    code, _, err = engine("explain", "transfer=head", *words)
    assert code == 2
    assert message in err
