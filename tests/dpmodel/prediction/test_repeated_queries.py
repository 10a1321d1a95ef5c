"""Repeated queries beat noise that is not charged, and never pass the bound of a charged budget."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn

from dpmodel.prediction import DPLogits, QueryLedger, sampling_attack
from dpmodel.prediction.repeated_queries import AttackPoint, advantage_bound
from monitors import gaussian_mu

MEMBERS = 200


class Memory(nn.Module):
    """Is surer of the class of members: its logits stand out by ``gap``."""

    def __init__(self, gap):
        super().__init__()
        self.gap = gap

    def forward(self, x):
        return torch.cat([x * self.gap, torch.zeros_like(x)], dim=1)


def examples():
    x = torch.cat([torch.ones(MEMBERS, 1), torch.zeros(MEMBERS, 1)])
    return x, torch.zeros(2 * MEMBERS, dtype=torch.long), x[:, 0] == 1


def test_uncharged_noise_washes_out():
    private = DPLogits(Memory(1.0), noise_multiplier=10.0, norm_bound=1.0, sensitivity=None)
    found = sampling_attack(private.query, *examples(), repeats=(1, 100, 2000))
    assert found.exhausted is None
    assert [point.repeats for point in found.points] == [1, 100, 2000]
    # Means over 300 attacks: 0.520, 0.692, 0.987; standard deviations: 0.028, 0.027, 0.004.
    assert abs(found.points[0].auc - 0.5) < 0.18
    assert found.points[1].auc > 0.53
    assert found.points[2].auc > 0.95
    assert found.points[2].interval[0] > 0.5


def test_a_charged_budget_ends_the_attack_below_the_bound(tmp_path):
    with QueryLedger(tmp_path / "q", 8.0, 1e-5) as ledger:
        private = DPLogits(Memory(1.0), noise_multiplier=60.0, norm_bound=1.0, ledger=ledger)
        found = sampling_attack(private.query, *examples(), repeats=(1, 2, 3, 4, 5, 100))
        left = ledger.left(private.noise.event)
    assert found.exhausted is not None
    assert left < 2 * MEMBERS
    bound = advantage_bound(gaussian_mu(8.0, 1e-5))
    assert all(point.interval[0] <= bound for point in found.points)
    assert found.points[-1].repeats == min(found.exhausted, 5)


def test_the_bound_is_that_of_two_normal_distributions():
    for mu in (0.0, 0.3, 1.0, 5.0):
        assert advantage_bound(mu) == pytest.approx(2 * norm.cdf(mu / 2) - 1)


def test_certainty_and_guessing():
    x, y, members = examples()

    def certain(x):
        return DPLogits(Memory(1.0), noise_multiplier=1e-3, norm_bound=1.0, sensitivity=None).query(x)

    (point,) = sampling_attack(certain, x, y, members, (1,)).points
    assert point == AttackPoint(1, 1.0, point.advantage, point.interval)
    assert point.advantage > 0.9  # the threshold lies close to the others
    assert point.interval[0] > 0.8
    shuffled = np.random.default_rng(0).permutation(members.numpy())
    (point,) = sampling_attack(certain, x, y, shuffled, (1,)).points
    assert point.interval[0] < 0.0 < point.interval[1] or abs(point.advantage) < 0.35


@pytest.mark.parametrize("repeats", [(2, 1), (1, 1), (0,)])
def test_repeats_must_ascend(repeats):
    with pytest.raises(ValueError, match="repeats"):
        sampling_attack(lambda x: None, *examples(), repeats=repeats)


def test_members_and_others_are_needed():
    x, y, _ = examples()
    with pytest.raises(ValueError, match="at least 4 members"):
        sampling_attack(lambda x: None, x, y, torch.ones(len(x), dtype=torch.bool))
    assert math.isclose(advantage_bound(0.0), 0.0)
