"""kernels.layers: other kernels for single layers, by name or pattern."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import pytest
from installed import KERNELS, body, choices

from engine import Kernels, UsageError
from engine.convolutions import nameable, offered
from engine.native import NativeKernel
from engine.ops import NATIVE, registered
from engine.plugins.jobs.contest import entrants
from engine.plugins.kernels import Im2col, Naive, Native, Winograd
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


@pytest.mark.parametrize(
    ("kernels", "expected"),
    [
        (Winograd(tile="2", layers=["*:native", "conv1:winograd"]), "winograd2"),
        (Winograd(tile="2", layers=["*:native", "conv1:winograd6"]), "winograd6"),
        (Im2col(materialise=True, layers=["*:native", "conv1:im2col"]), "im2col"),
        (Naive(layers=["*:native", "conv1:winograd"]), "winograd4"),
    ],
)
def test_the_runs_own_choice_is_named_with_its_options_and_others_with_their_defaults(kernels, expected):
    rows = kernels.build(choices()).apply(body(), SHAPE)
    assert [row.kernel for row in rows] == [expected, "native", "native", "native"]


class Scaled(NativeKernel):
    name = "scaled"

    def __init__(self, scale):
        self.scale = scale


@dataclass
class Scale(Kernels):
    """A kernel whose name does not say how its options are set."""

    scale: int = 1

    def kernel(self):
        return Scaled(self.scale)


@pytest.mark.parametrize("name", ["scale", "scaled"])
def test_naming_a_kernel_does_not_put_one_by_default_in_the_place_of_the_runs_own(name):
    Scale(scale=3, layers=[f"*:{name}"]).build(choices() | {"scale": Scale}).apply(body(), SHAPE)
    assert registered("scaled").scale == 3


def test_what_may_be_chosen_and_what_may_be_named():
    installed = choices() | {"small": SmallKernels}  # which only overrides build()
    assert set(offered(installed)) == set(KERNELS) - {"naive"}
    assert {name: kernel.name for name, kernel in nameable(installed).items()} == {
        **{name: name for name in KERNELS}, "im2col": "implicit", "winograd": "winograd4",
    }  # fmt: skip
    assert nameable(installed)["native"] is offered(installed)["native"] is NATIVE


class Installed:
    """A registry with a choice that only overrides build()."""

    known = choices() | {"small": SmallKernels}

    def names(self, group):
        return list(self.known)

    def entry(self, group, name):
        return SimpleNamespace(options=self.known[name])


def test_a_comparison_takes_the_same_names():
    session = SimpleNamespace(registry=Installed())
    assert [kernel.name for kernel in entrants(session, ["winograd", "naive", "winograd4"])] == [
        "native", "winograd4", "naive",
    ]  # fmt: skip
    every = entrants(session, [])
    assert every[0] is NATIVE
    assert sorted(kernel.name for kernel in every) == sorted(offered(Installed.known))
    with pytest.raises(UsageError, match="compare: no kernel is called 'winogrand'; did you mean 'winograd'"):
        entrants(session, ["winogrand"])
