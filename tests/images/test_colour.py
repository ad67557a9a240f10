"""Changes of colour, alone and in chains, folded and clipped, against numpy and colorsys in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from image_reference import ISAS, expected, plan_for, run

from engine.plan import AFFINE, BRIGHTNESS, CONTRAST, HUE, NOTHING, SATURATION

every_isa = pytest.mark.parametrize("isa", ISAS)
KINDS = {
    "affine": AFFINE, "brightness": BRIGHTNESS, "contrast": CONTRAST, "saturation": SATURATION, "hue": HUE,
}  # fmt: skip


def colourful(channels: int, count: int = 4, height: int = 13, width: int = 21, seed: int = 0) -> torch.Tensor:
    rng = np.random.default_rng([seed, channels])
    images = torch.from_numpy(rng.integers(0, 256, (count, channels, height, width), dtype=np.uint8))
    images[0, :, :4] = images[0, :1, :4]  # grey pixels have no hue
    images[1, :, 2] = 0
    images[1, :, 3] = 255
    return images


def drawn(rng: np.random.Generator, kind: int, count: int) -> torch.Tensor:
    if kind == AFFINE:
        return torch.tensor(rng.normal(size=(count, 12)), dtype=torch.float32)
    low, high = (-0.5, 0.5) if kind == HUE else (0, 2)
    return torch.tensor(rng.uniform(low, high, count), dtype=torch.float32)


def check(plan, images, isa, tolerance=2e-6):
    out = run(plan, images, isa=isa).numpy()
    for number in range(len(images)):
        wanted = expected(plan, images[number].numpy(), number)
        scale = max(1, np.abs(wanted).max())
        np.testing.assert_allclose(out[number], wanted, rtol=0, atol=tolerance * scale)


@every_isa
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("clip", [False, True], ids=["open", "clipped"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS.keys())
def test_one_change(isa, channels, clip, kind):
    images = colourful(channels)
    plan = plan_for(images)
    assert plan.change(kind, drawn(np.random.default_rng(kind), kind, len(images)), clip=clip)
    check(plan, images, isa, 2e-5 if kind == HUE else 2e-6)  # the hue is a quotient of small differences


@every_isa
def test_changes_of_a_kind_for_each_image(isa):
    rng, images = np.random.default_rng(3), colourful(3, count=6)
    plan = plan_for(images)
    for _ in range(3):
        kinds = rng.permutation([NOTHING, AFFINE, BRIGHTNESS, CONTRAST, SATURATION, NOTHING])
        factors = torch.tensor(rng.uniform(0, 1.5, (6, 12)), dtype=torch.float32)
        assert plan.change(torch.tensor(kinds), factors)
    check(plan, images, isa, 5e-6)


@pytest.mark.parametrize("mean_of", ["border", "erased"])
def test_the_mean_of_a_contrast_is_over_the_border_too_and_over_what_will_be_erased(mean_of):
    images = torch.full((1, 1, 4, 4), 255, dtype=torch.uint8)
    plan = plan_for(images)
    if mean_of == "border":  # as much black as white
        assert plan.window(torch.tensor([[0, 0, 4, 8]]), torch.tensor([[4, 8]]))
        wanted = 0.5
    else:
        wanted = 1.0
    assert plan.change(CONTRAST, torch.tensor([0.0]))
    if mean_of == "erased":
        assert plan.erase(torch.tensor([[0, 0, 2, 2]]), torch.tensor([[0.25]]))
    out = run(plan, images)
    assert out[0, 0, -1].tolist() == [wanted] * out.shape[3]
    if mean_of == "erased":
        assert bool((out[0, 0, :2, :2] == 0.25).all())


CHAINS = st.lists(st.tuples(st.sampled_from(sorted(KINDS.values())), st.booleans()), max_size=6)


@settings(max_examples=60, deadline=None)
@given(chain=CHAINS, channels=st.sampled_from([1, 3]), seed=st.integers(0, 1000), isa=st.sampled_from(ISAS))
def test_chains(chain, channels, seed, isa):
    rng, images = np.random.default_rng(seed), colourful(channels, count=2, height=5, width=18, seed=seed)
    plan = plan_for(images)
    assert plan.window(torch.tensor([[-1, 0, 7, 15]] * 2), torch.tensor([[7, 15]] * 2), fill=(9, 99, 199)[:channels])
    turns = False
    for kind, clip in chain:
        # colorsys means colours from 0 to 1, so they are clipped before a hue is turned.
        if kind == HUE:
            assert plan.change(NOTHING, torch.zeros(2), clip=True)
        turns = turns or kind == HUE
        assert plan.change(kind, drawn(rng, kind, 2), clip=clip)
    check(plan, images, isa, 1e-3 if turns else 5e-5)
