"""What the package promises, by the engine's own conformance kit, and what it computes, by known answers."""

import json

import pytest
import torch
from mixlib import Blend, Blobs, GradientNorms
from mixlib.blend import Mixture, mix
from mixlib.blobs import shapes

from engine import Key
from engine.testing import check_augment, check_observer, check_source, small_run


@pytest.mark.parametrize("options", [Blend(), Blend(alpha=1.0, group=4)])
def test_blend_keeps_its_promises(options):
    check_augment(options)


def test_blobs_keep_their_promises():
    check_source(Blobs(images=60))


def test_gradient_norms_keep_their_promises():
    check_observer(GradientNorms())


def test_mixing_is_a_weighted_mean():
    values = torch.tensor([[0.0, 8.0], [4.0, 0.0]])
    mixed = mix(values, Mixture(torch.tensor([1, 0]), torch.tensor([0.75, 0.75])))
    assert mixed.tolist() == [[1.0, 6.0], [3.0, 2.0]]


def test_partners_are_others_of_the_same_group():
    mixture = Blend(group=4).build().draw(Key.of(1), torch.arange(40), (1, 8, 8))
    rows = torch.arange(40)
    assert torch.equal(mixture.partners // 4, rows // 4)
    assert not (mixture.partners == rows).any()


def test_shares_follow_the_beta_distribution():
    shares = Blend(alpha=2.0).build().draw(Key.of(1), torch.arange(20_000), (1, 8, 8)).shares[::2].double()
    # Beta(a, a) has mean 1/2 and variance 1 / (4 (2a + 1)); five standard errors either way.
    assert abs(shares.mean() - 0.5) < 5 * (0.05 / 10_000) ** 0.5
    assert abs(shares.var() - 0.05) < 0.004


def test_a_disc_of_radius_four_covers_49_pixels():
    # Gauss's circle problem: 49 lattice points lie within distance 4 of the origin.
    areas = shapes(torch.tensor([0, 1, 2]), torch.full((3, 2), 8.0), 16).sum((1, 2))
    assert areas.tolist() == [49, 81, 9 * 3 + 9 * 3 - 9]


def test_gradient_norms_are_those_of_the_gradients(tmp_path):
    run = small_run(tmp_path, steps=2, log_every=1, observe={"norms": GradientNorms()})
    run.fit()
    lines = [json.loads(line) for line in (tmp_path / "gradient_norms.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    total = sum(value**2 for value in lines[-1]["norms"].values()) ** 0.5
    assert total == pytest.approx(float(run.grad_norm), rel=1e-5)
