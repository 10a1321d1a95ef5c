import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from mechanisms.clipping import Fixed
from mechanisms.engines.base import clip_rows
from mechanisms.engines.parameters import FlatLayout
from mechanisms.engines.probing import SHAKES, perturbed_weights
from mechanisms.engines.slices import ENTRIES, slices


@given(st.integers(1, 3), st.integers(1, 2 * ENTRIES // 3 + 5))
def test_slices_are_the_tensors_in_order_and_small(rows, columns):
    whole, other = torch.arange(rows * columns).reshape(rows, columns), torch.zeros(rows, columns)
    parts = list(slices(whole, other))
    assert torch.equal(torch.cat([part for part, _ in parts], dim=1), whole)
    assert all(one.shape == two.shape and one.numel() <= ENTRIES for one, two in parts)


def test_gradients_of_many_slices_are_clipped_to_the_bound_and_added():
    network, clip, rows = nn.Linear(2 * ENTRIES // 3 + 1, 1, bias=False), Fixed(), torch.randn(3, 2 * ENTRIES // 3 + 1)
    clip.start(1.0)
    rows[2] = 1e-6 * rows[2]
    total = torch.ones(rows.shape[1])
    norms = clip_rows(rows.clone(), clip, FlatLayout.of(network), total)
    expected = rows.double().norm(dim=1)
    torch.testing.assert_close(norms.flatten().double(), expected, rtol=1e-6, atol=0.0)
    clipped = (rows.double() / expected.clamp(min=1.0).unsqueeze(1)).sum(0)
    torch.testing.assert_close(total.double(), 1.0 + clipped, rtol=1e-5, atol=1e-6)


def test_all_rows_of_a_large_parameter_are_perturbed_differently():
    network = nn.Linear(1024, SHAKES // 1024 + 2, bias=False)
    nn.init.zeros_(network.weight)
    with perturbed_weights(network):
        moved = network.weight.detach().clone()
    assert not bool(network.weight.any())
    assert bool(moved.any(dim=1).all())
    assert len(moved.unique(dim=0)) == len(moved)
