"""kernels.layers: other kernels for single layers, by name or pattern."""

from __future__ import annotations

import pytest
from installed import KERNELS, body, choices

from engine import UsageError
from engine.plugins.kernels import Native
from engine.testing.small import SmallKernels

SHAPE = (4, 3, 12, 10)


@pytest.mark.parametrize(
    ("layers", "expected", "named"),
    [
        (["conv1:naive"], ["naive", "native", "native", "native"], [0]),
        (["layer1.*:naive", "layer1.0:native"], ["native", "native", "naive", "native"], [1, 2]),
        (["layer1.0:native", "layer1.*:naive"], ["native", "naive", "naive", "native"], [1, 2]),
        (["*:im2col", "layer[12].0:naive"], ["implicit", "naive", "implicit", "naive"], [0, 1, 2, 3]),
        (["layer?.0:naive"], ["native", "naive", "native", "naive"], [1, 3]),
        ([], ["native"] * 4, []),
    ],
)
def test_layers_get_what_the_last_matching_entry_says(layers, expected, named):
    rows = Native(layers=layers).build(choices()).apply(body(), SHAPE)
    assert [row.layer for row in rows] == ["conv1", "layer1.0", "layer1.1", "layer2.0"]
    assert [row.kernel for row in rows] == expected
    assert [number for number, row in enumerate(rows) if row.reason == "kernels.layers"] == named


@pytest.mark.parametrize("name", sorted({"winograd", "fft", "im2col", "naive", "depthwise"} | set(KERNELS)))
def test_layers_may_name_every_choice_and_every_candidate(name):
    chooser = Native(layers=[f"conv1:{name}"]).build(choices())
    row = chooser.apply(body(), SHAPE)[0]
    own = choices()[name]().kernel().name if name in choices() else name
    assert own in row.kernel.split(" / ") or row.reason.startswith(f"{own} refuses it")


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("conv2:naive", "kernels.layers: no convolution is called 'conv2'; did you mean 'conv1'"),
        ("layer3.*:naive", r"no convolution is called 'layer3\.\*'"),
        ("conv1:niave", "'conv1:niave' names no kernel; did you mean 'naive'"),
        ("conv1:winograd3", "'conv1:winograd3' names no kernel; did you mean 'winograd"),
        ("conv1:auto", "'conv1:auto' names no kernel"),
        ("conv1:", "'conv1:' names no kernel"),
        ("conv1", "kernels.layers: 'conv1' must be LAYER:KERNEL, as in"),
        (":naive", "':naive' must be LAYER:KERNEL"),
    ],
)
def test_a_wrong_entry_is_answered_with_what_was_meant(entry, told):
    model = body()
    with pytest.raises(UsageError, match=told):
        Native(layers=[entry]).build(choices()).apply(model, SHAPE)
    assert not any("_conv_forward" in vars(layer) for layer in model.modules())


def test_a_choice_without_a_kernel_of_its_own_cannot_be_named_and_stands_in_nobodys_way():
    installed = choices() | {"small": SmallKernels}
    with pytest.raises(UsageError, match="'conv1:small' names no kernel"):
        Native(layers=["conv1:small"]).build(installed).apply(body(), SHAPE)
    assert Native(layers=["conv1:fft"]).build(installed).apply(body(), SHAPE)[0].kernel == "fft"
    assert Native(layers=["conv1:winograd2"]).build(installed).apply(body(), SHAPE)[1].kernel == "native"
