import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mechanisms.clipping import CLIP, Automatic, Fixed, PerLayer
from mechanisms.engines.base import ROUNDING_MARGIN, bounded_factors
from mechanisms.factory import ClipMechanismsFactory
from monitors.errors import UnprotectedUpdateError

norm_values = st.floats(0, 1e30, allow_nan=False)


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(CLIP.names()),
    bound=st.floats(1e-3, 1e3),
    norms=st.lists(st.lists(norm_values, min_size=1, max_size=3), min_size=1, max_size=6),
)
def test_no_unit_contributes_more_than_the_bound(name, bound, norms):
    width = min(len(row) for row in norms)
    blocks = width if name == "PerLayer" else 1
    table = torch.tensor([row[:blocks] for row in norms], dtype=torch.float64)
    clip = ClipMechanismsFactory.create(name)
    clip.start(bound)
    factors = bounded_factors(table, clip, 1)
    assert (factors >= 0).all()
    total = (factors * table).square().sum(dim=1).sqrt()
    assert (total <= bound * (1 + 1e-12)).all()


@pytest.mark.parametrize("name", CLIP.names())
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_unit_with_a_non_finite_norm_gets_factor_zero_and_others_are_unaffected(name, bad):
    clip = ClipMechanismsFactory.create(name)
    clip.start(1.0)
    factors = bounded_factors(torch.tensor([[0.5], [bad]]), clip, 1)
    assert factors[1].item() == 0.0
    assert factors[0].item() > 0.9


def test_fixed_clipping_shrinks_only_long_gradients():
    clip = Fixed()
    clip.start(2.0)
    assert clip.factors(torch.tensor([[0.0], [2.0], [8.0]])).flatten().tolist() == [1.0, 1.0, 0.25]


def test_automatic_clipping_normalises():
    clip = Automatic(stability=0.01)
    clip.start(1.0)
    assert clip.factors(torch.tensor([[0.99], [9.99]])).flatten().tolist() == pytest.approx([1.0, 0.1])


def test_per_layer_bounds_add_up_in_squares_to_the_bound():
    clip = PerLayer()
    clip.start(3.0)
    assert math.sqrt(sum(bound**2 for bound in clip.block_bounds(7))) == pytest.approx(3.0)
    assert clip.blocks(["a.weight", "a.bias", "b.weight", "scale"]) == [0, 0, 1, 2]


def test_a_faulty_mechanism_cannot_lift_a_gradient_above_the_bound():
    class Enlarging(Fixed):
        def factors(self, norms):
            return torch.full_like(norms, 1e6)

    clip = Enlarging()
    clip.start(1.0)
    norms = torch.tensor([[0.5], [4.0]])
    assert ((bounded_factors(norms, clip, 1) * norms) <= 1.0).all()


def test_a_faulty_mechanism_cannot_cause_nan_or_negative_factors():
    class Broken(Fixed):
        def factors(self, norms):
            return torch.tensor([[math.nan], [-3.0]])

    clip = Broken()
    clip.start(1.0)
    assert bounded_factors(torch.tensor([[0.5], [0.5]]), clip, 1).flatten().tolist() == [0.0, 0.0]


def test_float32_rounding_stays_below_the_bound():
    clip = Fixed()
    clip.start(0.1)
    norms = torch.rand(100_000, 1) * 10 + 0.1
    clipped = bounded_factors(norms, clip, 1).double() * norms.double()
    assert clipped.max().item() <= 0.1
    assert clipped.min().item() >= 0.1 * (1 - 3 * ROUNDING_MARGIN)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_too_small_for_its_norm_is_not_lifted_above_the_bound(dtype):
    class Normalising(Fixed):
        def factors(self, norms):
            return self.norm_bound / norms

    entries = torch.full((1, 1000), 0.9 * math.sqrt(torch.finfo(dtype).tiny), dtype=dtype)
    for clip in (Normalising(), Automatic(stability=1e-38)):
        clip.start(1.0)
        factors = bounded_factors(torch.zeros(1, 1, dtype=dtype), clip, entries.numel())
        assert (entries.double() * factors.double()).norm() <= 1.0


@pytest.mark.parametrize("bound", [0.1, 0.3, 1.2])
def test_rounded_block_bounds_are_accepted_and_hold(bound):
    class Rounded(PerLayer):
        def block_bounds(self, blocks):
            return (torch.ones(blocks) * self.norm_bound / math.sqrt(blocks)).tolist()

    clip = Rounded()
    clip.start(bound)
    norms = torch.full((1, 2), 1e3)
    assert (bounded_factors(norms, clip, 2).double() * norms.double()).norm() <= bound


def test_block_bounds_that_exceed_the_norm_bound_are_refused():
    class Generous(PerLayer):
        def block_bounds(self, blocks):
            return [self.norm_bound] * blocks

    clip = Generous()
    clip.start(0.1)
    with pytest.raises(UnprotectedUpdateError, match=r"block_bounds\(9\) returns 9 bounds with root sum of squares"):
        bounded_factors(torch.ones(2, 9), clip, 9)


def test_a_mechanism_without_a_bound_raises_an_error():
    with pytest.raises(RuntimeError, match="Fixed has no norm bound yet"):
        _ = Fixed().norm_bound


@pytest.mark.parametrize("bound", [0, -1, math.nan, math.inf, "1"])
def test_a_non_positive_bound_is_refused(bound):
    with pytest.raises(ValueError, match="norm_bound must be a positive finite number"):
        Fixed().start(bound)


def test_unknown_names_and_arguments_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'Automatic'"):
        ClipMechanismsFactory.create("automatic")
    with pytest.raises(ValueError, match=r"learning_rate=0\.5 has no meaning for clip mechanism 'Fixed'"):
        ClipMechanismsFactory.create("Fixed", learning_rate=0.5)
    with pytest.raises(ValueError, match="did you mean 'min_norm_bound'"):
        ClipMechanismsFactory.create("Gaussian", min_norm_boundd=0.5)
