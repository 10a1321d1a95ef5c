"""What a resumed training restores, and what lost steps cost: it equals the uninterrupted training."""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpmodel import Callback, StateKeeper, load_checkpoint
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.state import read_state
from dpmodel.saving.tensor_file import read_tensor_file
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

from ..power_cut import Interrupt, PowerCut
from .trainings import CLIPS, EPOCHS, SCHEDULES, SECRET, STEPS, STEPS_PER_EPOCH, build, fit

CASES = st.fixed_dictionaries(
    {
        "clip": st.sampled_from(sorted(CLIPS)),
        "sampling": st.sampled_from(["poisson", "shuffle"]),
        "micro_batches": st.sampled_from([None, 3]),
        "optimizer": st.sampled_from(["Momentum", "Adam"]),
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "decay": st.booleans(),
        "views": st.sampled_from([None, 1, 3]),
    }
)


def rows(history):
    return [[row.epoch, row.step, row.loss, row.metrics, row.norm_bound] for row in history]


def nowhere_less(history, other):
    """Whether epsilon is at least that of ``other`` in each epoch, and never falls."""
    epsilons = [row.epsilon for row in history]
    return epsilons == sorted(epsilons) and all(a >= b.epsilon for a, b in zip(epsilons, other, strict=True))


def same(one, other):
    pairs = zip(one.network.state_dict().values(), other.network.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert one.clip_mech.norm_bound == other.clip_mech.norm_bound
    assert str(one.optimizer.state_dict()) == str(other.optimizer.state_dict())
    assert one.ledger.kept == other.ledger.kept
    assert one.steps_done == other.steps_done


def with_breaks(case, breaks, every, folder):
    """Train with a break at each of ``breaks``; every process has different global randomness."""
    for number, stop in enumerate(breaks):
        torch.manual_seed(0 if number == 0 else 100 + number)
        with contextlib.suppress(KeyboardInterrupt):
            fit(build(case), case, stop, keeper=StateKeeper(folder, every, resume=number > 0))
    torch.manual_seed(200)
    resumed = build(case)
    return resumed, fit(resumed, case, keeper=StateKeeper(folder, every, resume=True))


@pytest.mark.sample(8)
@pytest.mark.parametrize("part", range(8))
@settings(max_examples=1, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    case=CASES,
    every=st.integers(1, STEPS + 2),
    breaks=st.lists(
        st.builds(lambda kind, step: kind(step), st.sampled_from([PowerCut, Interrupt]), st.integers(1, STEPS)),
        max_size=2,
        min_size=1,
    ),
)
def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(part, case, every, breaks, tmp_path_factory):
    torch.manual_seed(0)
    whole = build(case)
    history = fit(whole, case)
    resumed, resumed_history = with_breaks(case, breaks, every, tmp_path_factory.mktemp("run"))
    same(whole, resumed)
    assert str(rows(history)) == str(rows(resumed_history))
    assert nowhere_less(resumed_history, history)
    if not resumed.ledger.lost.total:
        assert [row.epsilon for row in resumed_history] == [row.epsilon for row in history]


@pytest.mark.sample(24)
@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("kind", [PowerCut, Interrupt])
def test_a_process_may_end_after_any_step(kind, step, tmp_path):
    case = {**dict.fromkeys(("micro_batches",)), "clip": "adaptive", "sampling": "poisson", "optimizer": "Momentum"}
    case |= {"schedule": "falling", "decay": True}
    torch.manual_seed(0)
    whole = build(case)
    history = fit(whole, case)
    resumed, resumed_history = with_breaks(case, [kind(step)], STEPS_PER_EPOCH, tmp_path)
    same(whole, resumed)
    assert str(rows(history)) == str(rows(resumed_history))
    # an interrupt loses nothing; a kill loses the running block and no more
    assert resumed.ledger.lost.total == (STEPS_PER_EPOCH if kind is PowerCut else 0)


@pytest.mark.sample(8)
@pytest.mark.parametrize("part", range(8))
@settings(max_examples=1, deadline=None)
@given(
    every=st.integers(1, 6),
    breaks=st.lists(st.integers(1, STEPS), min_size=1, max_size=3),
    sampling=st.sampled_from(["poisson", "shuffle"]),
)
def test_epsilon_covers_every_step_that_any_process_took_and_never_falls(
    part, every, breaks, sampling, tmp_path_factory
):
    case, folder = {**SECRET, "sampling": sampling}, tmp_path_factory.mktemp("run")
    accountant, witnesses, shown = "zcdp" if sampling == "shuffle" else "rdp", [], []

    class Witness(Callback):
        """Records what the steps really release, and the epsilon that users see."""

        def on_train_begin(self, run):
            self.first, self.released, record = run.step, [], run.ledger.record
            witnesses.append(self)

            def witnessed(event, count=1, **options):
                self.released.append(event)
                return record(event, count, **options)

            run.ledger.record = witnessed

        def on_train_step_end(self, run):
            shown.append(run.privacy_spent(accountant=accountant).epsilon)

    for number, stop in enumerate([*breaks, STEPS + 1]):
        model = build(case, seed=0)
        with contextlib.suppress(KeyboardInterrupt):
            fit(model, case, Witness(), PowerCut(stop), keeper=StateKeeper(folder, every, resume=number > 0))
    assert shown == sorted(shown)
    ends = [witness.first for witness in witnesses[1:]] + [STEPS]
    kept, lost = Ledger(), []
    for witness, end in zip(witnesses, ends, strict=True):
        kept.extend(
            ledger_of(witness.released[: end - witness.first]), shift=0
        )  # they share the epochs of one training
        lost.append(ledger_of(witness.released[end - witness.first :]))
    true = kept.merge(*lost)
    assert (model.ledger.kept, kept.total) == (kept, STEPS)
    assert model.ledger.lost.total >= sum(ledger.total for ledger in lost)
    assert model.privacy_spent(1e-5, accountant).epsilon >= privacy_spent(true, 1e-5, accountant).epsilon


def ledger_of(events):
    ledger = Ledger()
    for event in events:
        ledger.record(event)
    return ledger


def test_secret_streams_leave_no_trace_in_the_state_and_are_fresh_after_a_resume(tmp_path):
    noise = []

    class Remember(Callback):
        def on_train_begin(self, run):
            self.plan = run.plan
            add = run.plan.noise.add

            def remembering(summed, step):
                before = summed.flat_grad.clone()
                noisy = add(summed, step)
                noise.append((step, noisy - before))
                return noisy

            run.plan.noise.add = remembering

    with pytest.raises(KeyboardInterrupt):
        fit(build(SECRET, seed=0), SECRET, Remember(), PowerCut(6), keeper=StateKeeper(tmp_path, 4))
    state = read_state(RunFolder(tmp_path).state)
    assert state.run["streams"] == {}
    assert state.settings["reproducible"] == []
    assert "key" not in {name.rpartition(".")[2] for name in read_tensor_file(RunFolder(tmp_path).state)[0]}
    fit(build(SECRET, seed=0), SECRET, Remember(), keeper=StateKeeper(tmp_path, 4, resume=True))
    steps = [step for step, _ in noise]
    assert steps == [0, 1, 2, 3, 4, 5, *range(4, STEPS)]
    # neither the noise of the same step, nor that of the same place in a stream at a different norm bound
    for _, before in noise[:6]:
        assert all(torch.cosine_similarity(before, after, dim=0).abs() < 0.95 for _, after in noise[6:])


def test_a_seeded_training_keeps_the_places_of_its_streams(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(tmp_path, 4))
    assert set(read_state(RunFolder(tmp_path).state).run["streams"]) == {"noise", "clip", "sampling"}


@pytest.mark.slow
def test_a_shuffled_epoch_keeps_its_order_and_lost_steps_count_as_a_separate_epoch(tmp_path):
    case = {**SECRET, "sampling": "shuffle"}
    drawn = []

    class Rows(Callback):
        def on_train_begin(self, run):
            take = run.plan.sampler.rows

            def rows(step):
                drawn.append((step, take(step).tolist()))
                return drawn[-1][1]

            run.plan.sampler.rows = rows

    with pytest.raises(KeyboardInterrupt):
        fit(build(case, seed=0), case, Rows(), PowerCut(3), keeper=StateKeeper(tmp_path, 2))
    model = build(case, seed=0)
    fit(model, case, Rows(), keeper=StateKeeper(tmp_path, 2, resume=True))
    first = {step: part for step, part in drawn[3:] if step < STEPS_PER_EPOCH} | dict(drawn[:2])
    assert sorted(row for part in first.values() for row in part) == list(range(24))
    assert model.ledger.lost.total == 2
    alone = privacy_spent(model.ledger.kept, 1e-5, "zcdp").epsilon
    assert model.privacy_spent(1e-5, "zcdp").epsilon > alone


@pytest.mark.slow
def test_epochs_that_were_lost_in_two_processes_are_charged_one_by_one(tmp_path):
    case = {**SECRET, "sampling": "shuffle"}
    for number in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(build(case, seed=0), case, PowerCut(3), keeper=StateKeeper(tmp_path, 2, resume=number > 0))
    model = build(case, seed=0)
    fit(model, case, keeper=StateKeeper(tmp_path, 2, resume=True))
    lost = model.ledger.lost
    once = Ledger().record(*lost.rows[0])
    assert lost.total == 4
    # numbered after all planned epochs
    assert [event.partition for event, _ in lost] == [EPOCHS, EPOCHS + 1]
    assert privacy_spent(lost, 1e-5, "zcdp").epsilon > privacy_spent(once, 1e-5, "zcdp").epsilon


@pytest.mark.slow
def test_a_second_fit_is_resumed_with_the_releases_of_the_first(tmp_path):
    case = SECRET
    torch.manual_seed(0)
    whole = build(case)
    fit(whole, case)
    fit(whole, case)
    torch.manual_seed(0)
    model = build(case)
    fit(model, case)
    with pytest.raises(KeyboardInterrupt):
        fit(model, case, PowerCut(STEPS + 7), keeper=StateKeeper(tmp_path, 5))
    resumed = build(case)
    fit(resumed, case, keeper=StateKeeper(tmp_path, 5, resume=True))
    same(whole, resumed)
    assert (resumed.ledger.kept.total, resumed.ledger.lost.total) == (2 * STEPS, 5)


def test_a_finished_training_is_restored_and_no_step_is_taken(tmp_path):
    model = build(SECRET)
    history = fit(model, SECRET, keeper=StateKeeper(tmp_path, 5))
    again = build(SECRET)
    assert str(rows(fit(again, SECRET, keeper=StateKeeper(tmp_path, 5, resume=True)))) == str(rows(history))
    same(model, again)
    assert again.ledger == model.ledger


def test_the_state_is_a_checkpoint_too(tmp_path):
    model = build(SECRET)
    fit(model, SECRET, keeper=StateKeeper(tmp_path, 5))
    loaded = load_checkpoint(RunFolder(tmp_path).state)
    assert all(torch.equal(value, loaded[name]) for name, value in model.network.state_dict().items())
