"""What a prototxt becomes: phases, blobs, heads and classifiers, names, multipliers, first weights, refusals."""

from __future__ import annotations

import pytest
import torch
from caffe_files import write_caffemodel
from nets import deploy, head, one, random_blobs
from torch import fx, nn

from engine import UsageError
from engine.plugins.caffe import CaffeNetwork
from engine.plugins.caffe.weights import read_caffemodel

SHAPE = (3, 12, 12)
CONV = "convolution_param { num_output: 4 kernel_size: 3 }"
TRAIN_VAL = """
name: "both"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TRAIN }
  transform_param { crop_size: 12 mirror: true mean_value: 104 mean_value: 117 mean_value: 123 scale: 0.5 }
  data_param { source: "train_lmdb" batch_size: 32 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST } }
layer { name: "conv1/3x3" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 2 decay_mult: 0.5 }
  param { lr_mult: 4 decay_mult: 0 }
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "gaussian" std: 0.01 }
    bias_filler { type: "constant" value: 0.25 } } }
layer { name: "relu" type: "ReLU" bottom: "c" top: "c" }
layer { name: "aux/fc" type: "InnerProduct" bottom: "c" top: "aux" inner_product_param { num_output: 7 } }
layer { name: "aux/loss" type: "SoftmaxWithLoss" bottom: "aux" bottom: "label" top: "l1" loss_weight: 0.3 }
layer { name: "drop" type: "Dropout" bottom: "c" top: "c" }
layer { name: "fc" type: "InnerProduct" bottom: "c" top: "fc" inner_product_param { num_output: 7 } }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "acc" include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "l2" }
"""


def build(text: str, outputs: int = 7, shape: tuple[int, int, int] = SHAPE, **settings: object) -> nn.Module:
    return CaffeNetwork(prototxt=text, **settings).build(shape, outputs)


def refusal(text: str, outputs: int = 7) -> str:
    with pytest.raises(UsageError) as caught:
        build(text, outputs)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("model.prototxt: ")
    return line.removeprefix("model.prototxt: ")


def test_a_train_val_net_has_its_heads_the_main_one_first():
    network = build(TRAIN_VAL).eval()
    images = torch.randn(2, *SHAPE)
    main, aux = network(images)
    features = network.get_submodule("conv1.3x3")(images).relu().flatten(1)
    assert torch.equal(main, network.fc(features))
    assert torch.equal(aux, network.aux.fc(features))


def test_parameters_have_the_layers_names_multipliers_and_fillers():
    torch.manual_seed(0)
    network = build(TRAIN_VAL)
    weight, bias = network.get_parameter("conv1.3x3.weight"), network.get_parameter("conv1.3x3.bias")
    assert network.multipliers["conv1.3x3.weight"] == (2.0, 0.5)
    assert network.multipliers["conv1.3x3.bias"] == (4.0, 0.0)
    assert network.multipliers["fc.weight"] == (1.0, 1.0)
    assert set(network.multipliers) == {name for name, _ in network.named_parameters()}
    assert 0.005 < weight.std() < 0.015
    assert (bias == 0.25).all()


def test_the_classifiers_have_as_many_outputs_as_there_are_classes():
    network = build(TRAIN_VAL, 3)
    assert [tuple(made.shape) for made in network(torch.randn(2, *SHAPE))] == [(2, 3), (2, 3)]
    assert {n for n, p in network.named_parameters() if 3 in p.shape[:1]} == {
        "fc.weight", "fc.bias", "aux.fc.weight", "aux.fc.bias",
    }  # fmt: skip


def test_it_is_built_on_the_meta_device_and_traced():
    with torch.device("meta"):
        assert all(parameter.is_meta for parameter in build(TRAIN_VAL).parameters())
    network = build(TRAIN_VAL).eval()
    images = torch.randn(2, *SHAPE)
    traced = fx.symbolic_trace(network)
    assert all(map(torch.equal, traced(images), network(images)))
    assert {n.target for n in traced.graph.nodes if n.op == "call_module"} >= {"conv1.3x3", "relu", "fc", "drop"}


def test_a_deploy_net_ends_before_its_softmax():
    layers = one("Convolution", "data", "c", CONV, "c") + head("c", 7) + one("Softmax", "score", "prob", name="prob")
    network = build(deploy(layers, SHAPE))
    images = torch.randn(2, *SHAPE)
    assert torch.equal(network(images), network.classifier(network.c(images).flatten(1)))


def test_blobs_are_bound_by_name_not_by_layer():
    layers = (
        one("Convolution", "data", "x", CONV, "first")
        + one("ReLU", "x", "y", name="x")  # a layer that is called as another's blob
        + one("Eltwise", "x y", "first", name="sum")
        + head("first")
    )
    network = build(deploy(layers, SHAPE), 5)
    images = torch.randn(2, *SHAPE)
    c = network.first(images)
    assert torch.equal(network(images), network.classifier((c + c.relu()).flatten(1)))


@pytest.mark.parametrize(
    "inputs",
    [
        'input: "data" input_shape { dim: 1 dim: 3 dim: 12 dim: 12 }',
        'input: "data" input: "label" input_dim: [1, 3, 12, 12, 1, 1, 1, 1]',
        'layer { name: "in" type: "Input" top: "data" input_param { shape { dim: 1 dim: 3 dim: 12 dim: 12 } } }',
        'layer { name: "in" type: "MemoryData" top: "data" top: "label" memory_data_param { batch_size: 1 } }',
        'layer { name: "in" type: "Data" top: "data" include { stage: "train" } }',
    ],
)
def test_every_form_of_input_is_understood(inputs):
    layers = one("Convolution", "data", "c", CONV, "c") + head("c")
    assert build(f"{inputs}\n{layers}", 5)(torch.randn(2, *SHAPE)).shape == (2, 5)


def test_layers_of_another_stage_or_phase_are_left_out():
    layers = one("Convolution", "data", "c", CONV, "c") + head("c")
    layers += one("Python", "score", "boom", 'include { stage: "deploy" }', "custom")
    layers += one("Wonder", "score", "boom", "include { phase: TEST }", "other")
    assert build(deploy(layers, SHAPE), 5)(torch.randn(1, *SHAPE)).shape == (1, 5)
    with pytest.raises(UsageError, match="layer 'custom' of type Python"):
        build(deploy(layers, SHAPE), 5, stages=["deploy"])
    with pytest.raises(UsageError, match="layer 'other' of type Wonder"):
        build(deploy(layers, SHAPE), 5, phase="TEST")


def test_layers_whose_names_begin_with_another_layers_are_within_it():
    layers = one("Convolution", "data", "c", CONV, "conv") + one("BatchNorm", "c", "c", name="conv/bn") + head("c")
    network = build(deploy(layers, SHAPE), 5)
    assert {"conv.weight", "conv.bn.running_mean"} <= set(network.state_dict())
    assert network(torch.randn(2, *SHAPE)).shape == (2, 5)


def test_names_that_torch_uses_itself_get_a_sign_more():
    layers = one("Convolution", "data", "c", CONV, "train") + one("ReLU", "c", "c", name="forward") + head("c")
    network = build(deploy(layers, SHAPE), 5)
    assert {"train_.weight", "train_.bias"} <= set(network.state_dict())
    assert network.train(False)(torch.randn(2, *SHAPE)).shape == (2, 5)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("fc.", "fc._"),
        (".", "_._"),
        ("a.b", "a.b"),
        ("a//b", "a._.b"),
        ("outputs", "outputs_"),
        ("_steps/x", "_steps_.x"),
    ],
)
def test_names_with_dots_or_of_the_networks_own_become_paths(name, path, tmp_path):
    layers = one("Convolution", "data", "c", CONV, name) + head("c")
    network = build(deploy(layers, SHAPE), 5)
    assert network.get_submodule(path).weight.shape == (4, 3, 3, 3)
    weights = write_caffemodel(tmp_path / "n.caffemodel", random_blobs(deploy(layers, SHAPE), SHAPE))
    assert f"{path}.weight" in read_caffemodel(weights)
    assert network(torch.randn(2, *SHAPE)).shape == (2, 5)


def test_a_name_within_a_layers_own_attribute_gets_another_place():
    layers = one("Convolution", "data", "c", CONV, "a") + one("ReLU", "c", "c", name="a/stride/x") + head("c")
    assert build(deploy(layers, SHAPE), 5)(torch.randn(2, *SHAPE)).shape == (2, 5)
    layers = one("ReLU", "data", "d", name="a/stride") + one("Convolution", "d", "c", CONV, "a") + head("c")
    assert "layer 'a' (Convolution): another layer is called 'a/stride'" in refusal(deploy(layers, SHAPE))


LABELLED = deploy(head("data"), SHAPE).replace('input: "data"', 'input: "data" input: "label"', 1)


@pytest.mark.parametrize(
    ("kind", "rest", "message"),
    [
        ("EuclideanLoss", "", "layer 'it' (EuclideanLoss): no training with this loss"),
        ("SigmoidCrossEntropyLoss", "", "layer 'it' (SigmoidCrossEntropyLoss): no training with this loss"),
        ("HingeLoss", "", "layer 'it' (HingeLoss): no training with norm L1"),
        ("SoftmaxWithLoss", "loss_param { ignore_label: 255 }", "(SoftmaxWithLoss): ignore_label of loss_param"),
        ("SoftmaxWithLoss", "loss_param { normalize: false }", "(SoftmaxWithLoss): normalize of loss_param"),
        ("SoftmaxWithLoss", "loss_param { normalization: NONE }", "(SoftmaxWithLoss): normalization NONE is not"),
    ],
)
def test_losses_that_the_engine_lacks_are_refused_in_training_alone(kind, rest, message):
    text = LABELLED + one(kind, "score label", "l", rest)
    assert message in refusal(text, 5)
    assert build(text, 5, phase="TEST")(torch.randn(2, *SHAPE)).shape == (2, 5)
    assert build(LABELLED, 5)(torch.randn(2, *SHAPE)).shape == (2, 5)


def test_a_loss_weight_of_a_layer_that_is_no_loss_is_refused():
    text = LABELLED.replace('name: "classifier"', 'name: "classifier" loss_weight: 1')
    assert "layer 'classifier' (InnerProduct): a loss_weight of a layer that is no loss" in refusal(text, 5)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (one("Convolution", "data", "c", CONV, "/".join("a" * 2000)) + head("c"), "its name has 2000 parts"),
        (one("ReLU", "data", "c", name=".".join("a" * 17)) + head("c"), "its name has 17 parts"),
        (f"layers {{ name: 'x' type: {'9' * 5000} bottom: 'data' top: 'c' }}", "not supported: layer 'x' of type 999"),
        (
            one("InnerProduct", rest="inner_product_param { num_output: 5 weight_filler { max: 1e39 } }"),
            "max is '1e39' instead of a number",
        ),
        (
            one("InnerProduct", rest="inner_product_param { num_output: 5 weight_filler { type: 'uniform' min: -3e38 "
                "max: 3e38 } }"),
            "a filler's min -3e+38 and max 3e+38 are further apart",
        ),
        (
            one("Proposal", "data", "x", "proposal_param { a: 1 }", "rpn") + one("Wonder", "x", "y", name="w"),
            "line 4: not supported: layer 'rpn' of type Proposal, 'w' of type Wonder",
        ),
        (one("Convolutoin", rest=CONV), "line 4: not supported: layer 'it' of type Convolutoin; did you mean 'Conv"),
        (one("Convolution", rest="convolution_param { num_output: 4 }"), "layer 'it' (Convolution): kernel_size must"),
        (one("Convolution", rest="convolution_param { kernel_size: 3 }") + head("out"), "num_output must be given"),
        (
            one("Convolution", rest="convolution_param { num_output: 4 kernel_size: 3 group: 2 }") + head("out"),
            "3 channels and 4 filters cannot be in 2 groups",
        ),
        (one("Pooling", rest="pooling_param { kernel_size: 40 }") + head("out"), "nothing is left of the image"),
        (one("Pooling", rest="pooling_param { pool: STOCHASTIC kernel_size: 2 }"), "STOCHASTIC is not supported"),
        (one("Pooling", rest="pooling_param { kernel_size: 1 stride: 3 }") + one("ReLU", "out", "z"), "undefined"),
        (one("Convolution", "missing", "x", CONV), "blob 'missing' is given by no layer before it"),
        (one("ReLU", rest="relu_parm { }") + head("out"), "a layer has no field 'relu_parm'"),
        (one("ReLU", rest="relu_param { slope: 1 }") + head("out"), "relu_param has no field 'slope'"),
        (
            one("InnerProduct", rest="inner_product_param { num_output: 2000000000 }") + head("out"),
            "its top would hold 2,000,000,000 numbers an image: the limit is",
        ),
        (
            one("InnerProduct", rest="inner_product_param { num_output: 90000000 }") + head("out"),
            "it would have 38,880,000,000 weights: the limit is",
        ),
        ("layers { layer { name: 'x' type: 'conv' } }", "line 4: layers of the format before 2013"),
        (one("Convolution", "data", "c", CONV, "a") + one("ReLU", "c", "c"), "the head 'c' is a map of"),
        (
            one("Convolution", "data", "c", f'param {{ name: "w" }} {CONV}', "a")
            + one("Convolution", "data", "d", f'param {{ name: "w" }} {CONV}', "b")
            + one("Eltwise", "c d", "e") + head("e"),
            "layer 'a' (Convolution): it shares the parameter 'w' with another layer",
        ),
        (one("Convolution", "data", "data", CONV) * 2 + head("data"), "needs a name that no other layer has"),
        (one("Eltwise", "data small") + head("out"), "blob 'small' is given by no layer"),
        ("", "line 1: a network has layers, and here are none"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_naming_the_layer(layers, message):
    assert message in refusal(deploy(layers, SHAPE))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(UsageError, match=r"no\.prototxt does not exist"):
        build(str(tmp_path / "no.prototxt"))
    (tmp_path / "binary.prototxt").write_bytes(b"\0\1\2")
    with pytest.raises(UsageError, match=r"binary\.prototxt is no text"):
        build(str(tmp_path / "binary.prototxt"))


@pytest.mark.parametrize(
    ("filler", "low", "high", "mean"),
    [
        ('type: "xavier"', -((3 / 48) ** 0.5), (3 / 48) ** 0.5, 0.0),
        ('type: "xavier" variance_norm: AVERAGE', -((3 / 280) ** 0.5), (3 / 280) ** 0.5, 0.0),
        ('type: "uniform" min: 1 max: 3', 1, 3, 2),
        ('type: "constant" value: 2', 2, 2, 2),
        ('type: "msra"', -10, 10, 0.0),
        ('type: "gaussian" mean: 5 std: 0.1', 4, 6, 5),
    ],
)
def test_weights_are_drawn_as_the_filler_says(filler, low, high, mean):
    torch.manual_seed(0)
    rest = f"inner_product_param {{ num_output: 512 weight_filler {{ {filler} }} }}"
    network = build(deploy(one("InnerProduct", rest=rest, name="fc") + head("out"), (3, 4, 4)), 5, (3, 4, 4))
    weight = network.fc.weight
    assert weight.shape == (512, 48)
    assert low <= weight.min() <= weight.max() <= high
    assert weight.mean().item() == pytest.approx(mean, abs=0.02)
    if "msra" in filler:
        assert weight.std().item() == pytest.approx((2 / 48) ** 0.5, rel=0.02)
    if "xavier" in filler:
        assert weight.abs().max() > 0.98 * high


def test_a_bilinear_deconvolution_enlarges():
    rest = (
        "convolution_param { num_output: 3 group: 3 kernel_size: 4 stride: 2 pad: 1 bias_term: false "
        'weight_filler { type: "bilinear" } }'
    )
    network = build(deploy(one("Deconvolution", rest=rest, name="up") + head("out"), SHAPE), 5)
    images = torch.randn(1, *SHAPE)
    inside = slice(1, -1)
    wanted = nn.functional.interpolate(images, scale_factor=2, mode="bilinear")
    assert torch.allclose(network.up(images)[:, :, inside, inside], wanted[:, :, inside, inside], atol=1e-6)
