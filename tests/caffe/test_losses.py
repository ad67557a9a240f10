"""Losses of train_val nets: which are the engine's, with which weights, and which are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from nets import LENET, one

from engine import UsageError
from engine.plugins.caffe.building import graph
from engine.plugins.caffe.composing import Composition
from engine.plugins.caffe.solver import read_solver
from engine.plugins.losses import SquaredHinge

AUXILIARY = """
layer { name: "aux" type: "InnerProduct" bottom: "pool1" top: "aux" inner_product_param { num_output: 10 } }
layer { name: "aux/loss" type: "SoftmaxWithLoss" bottom: "aux" bottom: "label" top: "l1" loss_weight: 0.5 }
layer { name: "more" type: "InnerProduct" bottom: "pool1" top: "more" inner_product_param { num_output: 10 } }
layer { name: "more/loss" type: "SoftmaxWithLoss" bottom: "more" bottom: "label" top: "l2" loss_weight: 0.5 }
"""
MAIN = 'type: "SoftmaxWithLoss" bottom: "ip2" bottom: "label" top: "loss"'


def composed(folder: Path, net: str, text: str = "") -> list[str]:
    into = Composition()
    path = folder / "solver.prototxt"
    (folder / "lenet.prototxt").write_text(net)
    path.write_text(f'net: "lenet.prototxt" base_lr: 0.5 max_iter: 60 {text}')
    read_solver(path, "", lambda text: None).compose(into, graph(net, "TRAIN"))
    return into.words()


def test_weights_of_losses_become_the_engines(tmp_path):
    """The main head's weight multiplies every gradient: the rate takes it, the decay and the clipping less."""
    words = composed(tmp_path, LENET + AUXILIARY, "weight_decay: 0.25")
    assert {"loss=cross_entropy", "loss.auxiliary=0.5", "optim.lr=0.5", "optim.weight_decay=0.25"} <= set(words)
    net = LENET.replace(MAIN, f"{MAIN} loss_weight: 2") + AUXILIARY
    words = composed(tmp_path, net, "weight_decay: 0.25 clip_gradients: 8")
    expected = {"loss.auxiliary=0.25", "optim.lr=1.0", "optim.weight_decay=0.125", "run.clip=4.0"}
    assert expected <= set(words)
    adam = composed(tmp_path, net, 'type: "Adam" momentum: 0.9 delta: 1e-4')
    assert {"optim.lr=0.5", "optim.eps=5e-05"} <= set(adam)
    assert not [word for word in composed(tmp_path, LENET) if word.startswith("loss")]


def test_the_squared_hinge_loss_is_caffes_of_norm_l2(tmp_path):
    net = LENET.replace(MAIN, MAIN.replace("SoftmaxWithLoss", "HingeLoss") + " hinge_loss_param { norm: L2 }")
    assert "loss=squared_hinge" in composed(tmp_path, net)
    scores, labels = np.random.default_rng(0).normal(size=(6, 4)), np.arange(6) % 4
    margins = scores.copy()  # hinge_loss_layer.cpp: the label's score by -1, max(0, 1 + score), dot product / num
    margins[np.arange(6), labels] *= -1
    margins = np.maximum(0, 1 + margins)
    loss = SquaredHinge().build()(torch.from_numpy(scores), torch.from_numpy(labels))
    assert loss.item() / 6 == pytest.approx((margins * margins).sum() / 6, rel=1e-12)


@pytest.mark.parametrize(
    ("net", "message"),
    [
        (LENET.replace("SoftmaxWithLoss", "EuclideanLoss"), "layer 'loss' (EuclideanLoss): no training with this loss"),
        (
            LENET + AUXILIARY.replace("loss_weight: 0.5", "loss_weight: 0.25", 1),
            "further heads have losses of different loss_weight, 0.25, 0.5",
        ),
        (
            LENET + one("HingeLoss", "aux label", "h", "hinge_loss_param { norm: L2 } loss_weight: 0.5", "h")
            + AUXILIARY,
            "layer 'h' (HingeLoss): heads with different losses are not supported",
        ),
        (
            LENET + one("SoftmaxWithLoss", "ip2 label", "twice", name="twice"),
            "several losses of one head are not supported",
        ),
        (LENET + AUXILIARY.replace("weight: 0.5", "weight: -1"), "a loss_weight must be above 0"),
    ],
)  # fmt: skip
def test_losses_that_the_engine_lacks_are_refused(tmp_path, net, message):
    with pytest.raises(UsageError) as caught:
        composed(tmp_path, net)
    assert message in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path / "lenet.prototxt"))
