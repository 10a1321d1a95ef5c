"""Law: for any user code, no example moves a released sum by more than the ledger states, or the ledger says so."""

from __future__ import annotations

import contextlib
import math

import numpy as np
import pytest
import torch

from dpmodel import Callback, DPModel, NoiseMechanismsFactory, poisson_loader
from monitors.errors import DPModelError

from .neighbours import DELTA, ROUNDING, body, drawn, fit, outcome, ratios, report, unprotected
from .zoo.members import MEMBERS
from .zoo.sound import SOUND

TWINS = [member for member in MEMBERS if member.benign is not None]

#: Members whose coupling is in the network or the loss; engines treat these differently.
BY_PASSES = [member for member in MEMBERS if member.kind not in ("collate", "data set", "callback", "number kept")]


def trained(make, pair, steps=3, **options):
    return [fit(make, rows, steps=steps, **options) for rows in (pair.rows, pair.others)]


def require_true_claim(member, **options):
    pair = member.pair()
    one, other = trained(member.coupled, pair, member.steps, **options)
    moves = pair.moves * (2.0 if "micro_batches" in options else 1.0)
    found = outcome(one, other, moves, one_sided=member.one_sided)
    assert found in member.accepts, f"{found}\n  {report(one, other, moves)}"
    return one, other


def require_exact(make, pair, steps=3, engine=None, **options):
    one, other = trained(make, pair, steps, **options)
    found = outcome(one, other, pair.moves)
    assert found == "exact", f"{found}\n  {report(one, other, pair.moves)}"
    assert engine in (None, one.engine), one.explained


@pytest.mark.sample(188)
@pytest.mark.parametrize("member", MEMBERS, ids=str)
def test_no_coupling_moves_a_sum_beyond_its_bound_or_leaves_state_in_network_or_loss(member):
    one, other = require_true_claim(member)
    if member in BY_PASSES:
        stays = one.attributes.keys() ^ other.attributes.keys()
        shared = one.attributes.keys() - stays
        stays |= {path for path in shared if not same(one.attributes[path], other.attributes[path])}
        assert not stays
        assert one.ending == "voided" or all(
            torch.equal(one.weights[name], other.weights[name]) for name in one.weights
        )


def same(left, right):
    if isinstance(left, float):
        return left == right
    return np.array_equal(np.asarray(left), np.asarray(right), equal_nan=True)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["vmap", "loop"])  # the test above takes bookkeeping, where it does not refuse
@pytest.mark.parametrize("member", BY_PASSES, ids=str)
def test_no_coupling_moves_a_sum_beyond_its_bound_in_any_engine(member, engine):
    require_true_claim(member, engine=engine)


@pytest.mark.sample(183)
@pytest.mark.parametrize("member", TWINS, ids=str)
def test_similar_code_that_treats_examples_independently_trains_exactly(member):
    require_exact(member.benign, member.pair(), member.steps, member.engine)


@pytest.mark.sample(53)
@pytest.mark.parametrize("sound", SOUND, ids=str)
def test_common_code_trains_exactly(sound):
    require_exact(sound.make, sound.pair(), engine=sound.engine)


#: Rows of a pass: the last pass of a step has fillers, and fewer or more of them for a neighbour.
STATIC = {"static_shapes": True, "physical_batch_size": 7}


@pytest.mark.sample(140)
@pytest.mark.parametrize("member", BY_PASSES, ids=str)
def test_no_coupling_moves_a_sum_beyond_its_bound_with_static_shapes(member):
    require_true_claim(member, **STATIC)


@pytest.mark.sample(53)
@pytest.mark.parametrize("sound", SOUND, ids=str)
def test_common_code_trains_exactly_with_static_shapes(sound):
    require_exact(sound.make, sound.pair(), engine=sound.engine, **STATIC)


@pytest.mark.sample(20)
@pytest.mark.parametrize("member", [member for member in MEMBERS if member.seen], ids=str)
def test_without_protection_the_coupling_breaks_the_claim(member):
    pair = member.pair()
    sums = [unprotected(member.coupled, rows, steps=member.steps) for rows in (pair.rows, pair.others)]
    assert max(ratios(*sums, pair.moves)) > 1.0 + 10 * ROUNDING


@pytest.mark.sample(20)
@pytest.mark.parametrize("member", TWINS, ids=str)
def test_without_protection_the_benign_twin_keeps_the_claim(member):
    pair = member.pair()
    sums = [unprotected(member.benign, rows, steps=member.steps) for rows in (pair.rows, pair.others)]
    assert max(ratios(*sums, pair.moves)) <= 1.0 + ROUNDING


class Writes(Callback):
    """Changes the weights without noise, after the first step."""

    def on_train_step_end(self, run):
        if run.step == 1:
            run.network[0].weight.data += 1.0


def secret_model(network, **options):
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return DPModel(network, torch.nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **options)


@pytest.fixture
def rows():
    return poisson_loader(torch.utils.data.TensorDataset(*drawn()), batch_size=8)


def test_a_caught_violation_voids_the_claim_and_ends_training(rows):
    network = body()
    model = secret_model(network)
    with contextlib.suppress(DPModelError):
        model.fit(rows, epochs=1, callbacks=[Writes()])
    assert model.ledger.total > 0
    assert model.privacy_spent(DELTA).epsilon == math.inf
    for again in (model, secret_model(network)):
        with pytest.raises(DPModelError):
            again.fit(rows, epochs=1)


def test_trusted_isolation_is_noted_in_the_ledger_and_verified_isolation_is_not(rows):
    trusted, verified = secret_model(body(), isolation="trust"), secret_model(body())
    for model in (trusted, verified):
        model.fit(rows, epochs=1)
    assert any("not verified" in note for note in trusted.ledger.notes)
    assert not any("not verified" in note for note in verified.ledger.notes)
