"""Laws of correlated noise: its cost holds for every participation pattern, is planned, and survives kills."""

import contextlib
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.linalg import toeplitz
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory
from dpmodel.callbacks.base import Callback
from dpmodel.planning.release import ReleasePlan
from dpmodel.saving.keeper import StateKeeper
from mechanisms import Fixed
from mechanisms.correlated.samplers import CyclicPoissonSampler, FixedOrderSampler
from mechanisms.correlated.toeplitz import optimal_coefficients
from mechanisms.correlated.workload import Workload
from mechanisms.engines import ENGINES, Batch
from mechanisms.sampling import SAMPLERS
from mechanisms.units import ClippedUnit
from monitors import Ledger, relation_of
from monitors.events import CorrelatedEvent
from monitors.relation import ADD_OR_REMOVE, ZERO_OUT

from ..dpmodel.power_cut import Interrupt, PowerCut

SAMPLINGS = ("cyclic_poisson", "fixed_order")
BOUND = 0.7


def c_matrix(bands, steps):
    workload = Workload.of_last_iterate(np.linspace(1, 0, steps, endpoint=False), momentum=0.9)
    column = np.zeros(max(steps, bands))
    column[:bands] = optimal_coefficients(bands, workload)
    return toeplitz(column[:steps], np.zeros(steps))


@settings(max_examples=60, deadline=None)
@given(
    bands=st.integers(1, 9), steps=st.integers(1, 40), gaps=st.lists(st.integers(0, 12), max_size=40), data=st.data()
)
def test_participations_that_far_apart_cost_what_independent_noise_would(bands, steps, gaps, data):
    # one example, with any gradients within the bound and any pattern that the samplings allow, stopped at any step
    matrix, at, pattern = c_matrix(bands, steps), data.draw(st.integers(0, bands - 1)), []
    for gap in [0, *gaps]:
        at += gap if not pattern else bands + gap
        if at >= steps:
            break
        pattern.append(at)
    lengths = data.draw(st.lists(st.floats(0, 1), min_size=len(pattern), max_size=len(pattern)))
    directions = np.random.default_rng(0).normal(size=(len(pattern), 3))
    moved = np.zeros((steps, 3))
    for step, length, direction in zip(pattern, lengths, directions, strict=True):
        moved[step] = length * BOUND * direction / np.linalg.norm(direction)
    seen = matrix @ moved
    assert np.linalg.norm(seen) <= BOUND * np.sqrt(len(pattern)) * (1 + 1e-9)
    # the rows that one participation moves are moved by no other
    for one, other in itertools.pairwise(pattern):
        assert not (matrix[:, one] * matrix[:, other]).any()
    # the bound is reached where the noise of later steps still follows
    if pattern and steps >= bands:
        whole = np.zeros(steps)
        whole[0] = BOUND
        assert np.linalg.norm(matrix @ whole) == pytest.approx(BOUND)


@pytest.mark.parametrize("make", [CyclicPoissonSampler, FixedOrderSampler])
@pytest.mark.parametrize("engine", ["loop", "bookkeeping"])
@pytest.mark.sample(4)
def test_no_neighbour_moves_the_sums_of_a_training_by_more_than_its_rounds_allow(make, engine):
    torch.manual_seed(0)
    bands, steps, n = 3, 24, 60
    network, loss, clip = nn.Linear(4, 2), nn.CrossEntropyLoss(), Fixed()
    clip.start(BOUND)
    x, y = torch.randn(n, 4) * 5, torch.randint(0, 2, (n,))
    engine = ENGINES.create(engine, ClippedUnit(1, 6), None)
    sampler = make(n, 6)
    sampler.separate(bands)
    batches = [torch.from_numpy(sampler.rows(step)) for step in range(steps)]
    matrix, reached = c_matrix(bands, steps), 0.0
    for one in range(0, n, 13):
        moved = np.zeros((steps, 10))
        for step, rows in enumerate(batches):
            with_it, without = (
                engine.clipped_sum(network, loss, Batch(x[part], y[part]), clip).flat_grad.clone()
                for part in (rows, rows[rows != one])
            )
            moved[step] = (with_it - without).double().numpy()
        drawn = sum(bool((rows == one).any()) for rows in batches)
        assert np.linalg.norm(matrix @ moved) <= BOUND * np.sqrt(drawn) * (1 + 1e-4)
        assert drawn <= -(-steps // sampler.period)
        reached = max(reached, np.linalg.norm(matrix @ moved) / (BOUND * np.sqrt(max(drawn, 1))))
    assert reached > 0.9


def build(sampling, bands, *, sigma=1.2, seed=0, network=None):
    network = network or nn.Linear(2, 2)
    return DPModel(
        network,
        nn.CrossEntropyLoss(),
        torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9),
        noise_mech=NoiseMechanismsFactory.create("BandedMF", initial_noise_multiplier=sigma, bands=bands, seed=seed),
        sampling=sampling,
        engine="loop",
    )


def loader(n=40, batch=4):
    return DataLoader(TensorDataset(torch.randn(n, 2), torch.randint(0, 2, (n,))), batch_size=batch)


@pytest.mark.sample(4)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("bands", [2, 3])
def test_the_planned_ledger_is_the_trained_ledger(sampling, bands):
    model, planned = build(sampling, bands), Ledger()
    for epochs in (2, 1):
        model.fit(loader(), epochs=epochs)
        sampler = SAMPLERS.create(sampling, 40, 4)
        noise = NoiseMechanismsFactory.create("BandedMF", initial_noise_multiplier=1.2, bands=bands)
        plan = ReleasePlan(noise, Fixed(), ClippedUnit(1, 4), sampler)
        assert plan.at(3.0).at(1.2).ledger(10 * epochs) == plan.ledger(10 * epochs)
        planned.extend(plan.ledger(10 * epochs))
    assert model.ledger == planned
    assert relation_of(model.ledger) == (ADD_OR_REMOVE if sampling == "cyclic_poisson" else ZERO_OUT)


class Witness(Callback):
    """Keeps the rows of each step that was released, under the number of its process."""

    def __init__(self, process, released):
        self.process, self.released = process, released

    def on_train_begin(self, run):
        draw, self.drawn = run.plan.sampler.rows, {}
        run.plan.sampler.rows = lambda step: self.drawn.setdefault(step, draw(step))

    def on_train_step_end(self, run):
        step = run.step - 1
        self.released[self.process, step] = set(self.drawn[step].tolist())


def most_in_one_round(steps, period):
    """How often an example is drawn in one round, at most; ``steps`` are pairs of number and rows."""
    counted = Counter((step // period, row) for step, rows in steps for row in rows)
    return max(counted.values(), default=0)


@pytest.mark.sample(2)
@pytest.mark.parametrize("sampling", SAMPLINGS)
@settings(max_examples=1, deadline=None)
@given(
    every=st.integers(1, 7),
    breaks=st.lists(
        st.builds(lambda kind, step: kind(step), st.sampled_from([PowerCut, Interrupt]), st.integers(1, 17)),
        min_size=1,
        max_size=3,
    ),
)
@example(every=4, breaks=[Interrupt(4), Interrupt(11)])  # within a round and a pass, and nothing is lost
def test_over_any_kills_no_example_is_released_twice_in_a_round_and_each_round_is_charged(
    sampling, every, breaks, tmp_path_factory
):
    folder, released, period = tmp_path_factory.mktemp("run"), {}, 3
    torch.manual_seed(0)
    data = loader(n=39, batch=13)  # each row is drawn in each round and each pass

    def train(number, *ends):
        torch.manual_seed(0)
        model, keeper = build(sampling, 3), StateKeeper(folder, every, resume=number > 0)
        with contextlib.suppress(KeyboardInterrupt):
            model.fit(data, epochs=6, keeper=keeper, callbacks=[Witness(number, released), *ends])
        return model

    for number, end in enumerate(breaks):
        train(number, end)
    model = train(len(breaks))
    last = {step: max(process for process, other in released if other == step) for step in range(18)}
    kept = [(step, released[last[step], step]) for step in range(18)]
    assert most_in_one_round(kept, period) == 1
    charged = {event.partition for event, _ in model.ledger.kept if isinstance(event, CorrelatedEvent)}
    assert len(charged) == 6
    lost_rounds = 0
    for number in range(len(breaks)):
        lost = [(step, rows) for (process, step), rows in released.items() if process == number < last[step]]
        assert most_in_one_round(lost, period) <= 1
        lost_rounds += len({step // period for step, _ in lost})
    charged_as_lost = {event.partition for event, _ in model.ledger.lost}
    assert len(charged_as_lost) >= lost_rounds
    assert not charged & charged_as_lost


def test_one_band_trains_like_gaussian_noise_bit_for_bit():
    weights = []
    for name, options in (("BandedMF", {"bands": 1}), ("Gaussian", {})):
        torch.manual_seed(0)
        network = nn.Linear(2, 2)
        model = DPModel(
            network,
            nn.CrossEntropyLoss(),
            torch.optim.SGD(network.parameters(), lr=0.1),
            noise_mech=NoiseMechanismsFactory.create(name, initial_noise_multiplier=1.2, seed=4, **options),
            sampling="cyclic_poisson",
            seed=7,
        )
        model.fit(loader(), epochs=1)
        weights.append(torch.cat([value.detach().flatten() for value in network.parameters()]))
    assert torch.equal(*weights)


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [*SAMPLINGS, "shuffle"])
def test_a_training_inside_a_resumed_one_shares_no_partition_with_it(sampling, tmp_path):
    bands = 1 if sampling == "shuffle" else 4

    class Rest(Callback):
        def on_train_step_end(self, run):
            if run.step == 6:
                run.stop("rest")

    class Inner(Callback):
        def on_train_step_end(self, run):
            if run.step == 7:
                inner = build(sampling, bands)
                inner.ledger = run.ledger
                inner.fit(loader(), epochs=1)

    data = loader()
    torch.manual_seed(0)
    build(sampling, bands).fit(data, epochs=4, callbacks=[Rest()], keeper=StateKeeper(tmp_path, 2))

    class Rest(Inner):  # the callbacks of the state, by name
        pass

    torch.manual_seed(0)
    model = build(sampling, bands)
    model.fit(data, epochs=4, callbacks=[Rest()], keeper=StateKeeper(tmp_path, 2, resume=True))
    steps = Counter()
    for event, count in model.ledger:
        steps[event.partition] += count
    assert model.ledger.total == 50
    assert max(steps.values()) <= (4 if sampling == "cyclic_poisson" else 10)


@pytest.mark.parametrize("change", [{"bands": 2}, {"bands": 1}])
def test_a_plan_refuses_a_sampler_that_another_plan_has_changed(change):
    sampler = CyclicPoissonSampler(60, 4)
    plan = ReleasePlan(NoiseMechanismsFactory.create("BandedMF", bands=8), Fixed(), ClippedUnit(1, 4), sampler)
    plan.event(3)
    other = ReleasePlan(NoiseMechanismsFactory.create("BandedMF", **change), Fixed(), ClippedUnit(1, 4), sampler)
    assert other.event(3)
    with pytest.raises(ValueError, match="correlated over 8 steps"):
        plan.event(3)


def test_a_plan_with_open_bands_states_no_event():
    plan = ReleasePlan(
        NoiseMechanismsFactory.create("BandedMF"), Fixed(), ClippedUnit(1, 4), CyclicPoissonSampler(60, 4)
    )
    with pytest.raises(ValueError, match="bands='auto'"):
        plan.ledger(3)


@pytest.mark.slow
def test_a_training_that_begins_while_the_bands_are_chosen_shares_no_partition(monkeypatch):
    model, other = build("cyclic_poisson", "auto"), build("cyclic_poisson", 4)
    other.ledger = model.ledger

    def chosen(plan_of, workload):
        other.fit(loader(), epochs=1)
        return 4

    monkeypatch.setattr("dpmodel.model.best_for_multiplier", chosen)
    model.fit(loader(), epochs=1)
    assert [count for _, count in model.ledger] == [4, 4, 2] * 2
    assert len({event.partition for event, _ in model.ledger}) == 6
