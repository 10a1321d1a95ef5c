"""The neighbour harness itself: its measurements, and its verdicts on pairs of runs."""

from __future__ import annotations

import math

import pytest
import torch

from dpmodel import NoiseMechanismsFactory
from mechanisms.noise import NoNoise

from .neighbours import Trained, fit, one_more_last, one_replaced, outcome, ratios, under, unprotected
from .zoo.members import MEMBERS


def trained(*sums, weights=0.0, error=None, epsilon=3.0, released=2, notes=()):
    values = [torch.tensor([value]) for value in sums]
    return Trained(
        values, {"weight": torch.tensor(weights)}, {}, epsilon, released, error, notes, "loop", "engine 'loop'"
    )


REFUSED = trained(error=ValueError(), epsilon=0.0, released=0)
VOIDED = trained(1.0, error=ValueError(), epsilon=math.inf)
EXACT = trained(1.0, 2.0)


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (EXACT, trained(2.0, 2.5), "exact"),
        (REFUSED, REFUSED, "refused"),
        (VOIDED, VOIDED, "voided"),
        (trained(1.0, notes=("a",)), trained(9.0, notes=("a",)), "noted"),
    ],
)
def test_a_claim_that_holds_is_identified(one, other, found):
    assert outcome(one, other) == found


@pytest.mark.parametrize(
    ("one", "other", "found"),
    [
        (EXACT, trained(2.1, 2.0), "one example moves the sum by 1.1 times"),
        (EXACT, trained(1.0, math.nan), "one example moves the sum by inf times"),
        (EXACT, trained(1.0, 2.0, weights=1.0), "the values left in the network differ"),
        (EXACT, trained(1.0), "one example moves the sum by 0 times"),
        (EXACT, REFUSED, "the trainings end as trained and refused"),
        (EXACT, VOIDED, "the trainings end as trained and voided"),
        (trained(1.0, error=ValueError()), trained(1.0, error=ValueError()), "failed"),
    ],
)
def test_a_claim_that_does_not_hold_is_described(one, other, found):
    assert found in outcome(one, other)


def test_a_violation_on_one_side_is_accepted_if_no_step_moved_too_far():
    assert outcome(EXACT, REFUSED, one_sided=True) == "refused"
    assert outcome(EXACT, VOIDED, one_sided=True) == "voided"
    moved_too_far = trained(5.0, error=ValueError(), epsilon=math.inf)
    assert "end as trained and voided" in outcome(EXACT, moved_too_far, one_sided=True)


@pytest.mark.parametrize("pair", [one_more_last, one_replaced])
def test_the_noise_of_neighbours_cancels_and_the_sums_match_those_of_fit(pair):
    rows = pair()
    through_fit = [fit(under(torch.nn.CrossEntropyLoss), part) for part in (rows.rows, rows.others)]
    alone = [unprotected(under(torch.nn.CrossEntropyLoss), part) for part in (rows.rows, rows.others)]
    found = ratios(through_fit[0].sums, through_fit[1].sums, rows.moves)
    assert found == pytest.approx(ratios(*alone, rows.moves), abs=1e-4)
    assert 0.1 < max(found) <= 1.0 + 1e-3


class Shifted:
    """Adds a random number to each view."""

    numbers = 1

    def __call__(self, examples, numbers):
        return examples + numbers


@pytest.mark.sample(8)
@pytest.mark.parametrize("multiplicity", [1, 4])
@pytest.mark.parametrize("engine", ["bookkeeping", "vmap"])
@pytest.mark.parametrize(("pair", "least"), [(one_more_last, 0.99), (one_replaced, 0.6)])
def test_an_example_moves_the_sum_by_at_most_the_bound_with_all_its_views(pair, least, engine, multiplicity):
    rows, views = pair(), {"augmentation": Shifted(), "augmentation_multiplicity": multiplicity}
    make = under(torch.nn.CrossEntropyLoss)
    one, other = (fit(make, part, engine=engine, **views) for part in (rows.rows, rows.others))
    assert outcome(one, other, rows.moves) == "exact"
    assert least < max(ratios(one.sums, other.sums, rows.moves)) <= 1.0 + 1e-3
    assert one.epsilon == fit(make, rows.rows, engine=engine).epsilon


def test_a_run_without_noise_is_void(monkeypatch):
    monkeypatch.setattr(NoiseMechanismsFactory, "create", lambda *args, **options: NoNoise())
    assert fit(under(torch.nn.CrossEntropyLoss), one_replaced().rows).ending == "voided"


def test_members_of_the_zoo_have_distinct_names():
    assert len({str(member) for member in MEMBERS}) == len(MEMBERS)
    assert len({member.kind for member in MEMBERS}) >= 10
