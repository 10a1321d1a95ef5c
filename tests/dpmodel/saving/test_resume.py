"""Resume = uninterrupted, whatever breaks the training off; and what was lost is charged."""

import contextlib

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import (
    Callback,
    ClipMechanismsFactory,
    DPModel,
    EarlyStopping,
    LearningRateScheduler,
    NoiseMechanismsFactory,
    StateKeeper,
    load_checkpoint,
)
from dpmodel.data.loader import PrivateLoader
from dpmodel.optimizers import build_optimizer
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.state import read_state
from dpmodel.saving.tensor_file import read_tensor_file, write_tensor_file
from dpmodel.training.interrupt import INTERRUPTED
from monitors.errors import CheckpointError
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

from ..power_cut import PowerCut

EPOCHS, STEPS_PER_EPOCH = 3, 4
STEPS = EPOCHS * STEPS_PER_EPOCH

CLIPS = {
    "fixed": {"name": "Fixed"},
    "adaptive": {"name": "Gaussian", "decay_policy": "Geometric", "learning_rate": 0.3, "fraction_stddev": 0.2},
}
SCHEDULES = {
    "none": None,
    "falling": ("LinearLR", "step", {"start_factor": 1.0, "end_factor": 0.1}),
    "cycle": ("OneCycleLR", "step", {"max_lr": 0.5}),
    "by epoch": ("ExponentialLR", "epoch", {"gamma": 0.5}),
}
CASES = st.fixed_dictionaries(
    {
        "clip": st.sampled_from(sorted(CLIPS)),
        "sampling": st.sampled_from(["poisson", "shuffle"]),
        "micro_batches": st.sampled_from([None, 3]),
        "optimizer": st.sampled_from(["Momentum", "Adam"]),
        "schedule": st.sampled_from(sorted(SCHEDULES)),
        "decay": st.booleans(),
    }
)


class Interrupt(Callback):
    """Stops after a step, as a first Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, run):
        if run.step == self.step:
            run.stop(f"{INTERRUPTED} (test)")


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, 4, generator=generator)
    return TensorDataset(x, (x[:, 0] > 0).long())


def build(case, seed=3):
    network = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Dropout(0.4), nn.Linear(6, 2))
    clip = dict(CLIPS[case["clip"]])
    if clip["name"] == "Gaussian":
        clip["seed"] = seed
    noise = {"name": "AdaGaussian", "decay_policy": "Exp", "noise_decay_rate": 0.05}
    return DPModel(
        network,
        nn.CrossEntropyLoss(),
        build_optimizer(case["optimizer"], network.parameters(), lr=0.1),
        micro_batches=case["micro_batches"],
        norm_bound=0.5,
        noise_mech=NoiseMechanismsFactory.create(
            **(noise if case["decay"] else {"name": "Gaussian"}), initial_noise_multiplier=0.8, seed=seed
        ),
        clip_mech=ClipMechanismsFactory.create(**clip),
        metrics=["accuracy", "loss"],
        sampling=case["sampling"],
        seed=seed or None,
        engine="vmap",
    )


def callbacks_of(case):
    schedule = SCHEDULES[case["schedule"]]
    found = [EarlyStopping("accuracy", patience=50)]
    return found if schedule is None else [*found, LearningRateScheduler(schedule[0], schedule[1], **schedule[2])]


def fit(model, case, *extra, keeper=None, epochs=EPOCHS):
    loader = PrivateLoader(data(), 6, sampling=case["sampling"])
    callbacks = [Quiet(), *callbacks_of(case), *extra]
    return model.fit(loader, epochs, valid_loader=data(), callbacks=callbacks, keeper=keeper)


class Quiet(Callback):
    """Keeps a run from printing."""

    def on_train_begin(self, run):
        run.printer = lambda text: None


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


def begun_anew(case, breaks, every, folder):
    """Train with a break at each of ``breaks``, every process with other global randomness."""
    for number, stop in enumerate(breaks):
        torch.manual_seed(0 if number == 0 else 100 + number)
        with contextlib.suppress(KeyboardInterrupt):
            fit(build(case), case, stop, keeper=StateKeeper(folder, every, resume=number > 0))
    torch.manual_seed(200)
    resumed = build(case)
    return resumed, fit(resumed, case, keeper=StateKeeper(folder, every, resume=True))


@pytest.mark.sample(4)
@pytest.mark.parametrize("part", range(4))
@settings(max_examples=2, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
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
    resumed, resumed_history = begun_anew(case, breaks, every, tmp_path_factory.mktemp("run"))
    same(whole, resumed)
    assert str(rows(history)) == str(rows(resumed_history))
    assert nowhere_less(resumed_history, history)
    if not resumed.ledger.lost.total:
        assert [row.epsilon for row in resumed_history] == [row.epsilon for row in history]


@pytest.mark.sample(5)
@pytest.mark.parametrize("step", range(1, STEPS + 1))
@pytest.mark.parametrize("kind", [PowerCut, Interrupt])
def test_every_step_may_be_the_last_one_of_a_process(kind, step, tmp_path):
    case = {**dict.fromkeys(("micro_batches",)), "clip": "adaptive", "sampling": "poisson", "optimizer": "Momentum"}
    case |= {"schedule": "falling", "decay": True}
    torch.manual_seed(0)
    whole = build(case)
    history = fit(whole, case)
    resumed, resumed_history = begun_anew(case, [kind(step)], STEPS_PER_EPOCH, tmp_path)
    same(whole, resumed)
    assert str(rows(history)) == str(rows(resumed_history))
    # a polite stop loses nothing; a kill loses the block that was running, and no more
    assert resumed.ledger.lost.total == (STEPS_PER_EPOCH if kind is PowerCut else 0)


@pytest.mark.sample(4)
@pytest.mark.parametrize("part", range(4))
@settings(max_examples=2, deadline=None)
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
        """Sees what really leaves the steps, and the epsilon that users see."""

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


SECRET = {
    "clip": "adaptive",
    "sampling": "poisson",
    "micro_batches": None,
    "optimizer": "Momentum",
    "schedule": "none",
    "decay": False,
}


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
    # neither that of the same step, nor that of the same place in a stream under another norm bound
    for _, before in noise[:6]:
        assert all(torch.cosine_similarity(before, after, dim=0).abs() < 0.95 for _, after in noise[6:])


def test_a_seeded_training_keeps_the_places_of_its_streams(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(tmp_path, 4))
    assert set(read_state(RunFolder(tmp_path).state).run["streams"]) == {"noise", "clip", "sampling"}


def test_under_shuffled_batches_an_epoch_goes_on_in_its_own_order_and_lost_steps_are_an_epoch_apart(tmp_path):
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
    # beyond those of all epochs that are planned
    assert [event.partition for event, _ in lost] == [EPOCHS, EPOCHS + 1]
    assert privacy_spent(lost, 1e-5, "zcdp").epsilon > privacy_spent(once, 1e-5, "zcdp").epsilon


def test_a_second_fit_of_a_model_is_resumed_with_what_the_first_had_released(tmp_path):
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


def test_a_training_that_is_done_is_restored_and_no_step_is_taken(tmp_path):
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


# refusals


@pytest.fixture
def broken_off(tmp_path):
    """A folder with a training that was broken off after step 6, its state that of step 4."""
    with pytest.raises(KeyboardInterrupt):
        fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(tmp_path, 4))
    return RunFolder(tmp_path)


def resumed(folder, model=None, case=SECRET, **options):
    return fit(model or build(case), case, keeper=StateKeeper(folder.path, 4, resume=True), **options)


def test_the_state_of_another_training_is_refused_by_what_differs(broken_off):
    other = build(SECRET)
    other.network[0] = nn.Linear(4, 7)
    other.network[3] = nn.Linear(7, 2)
    other.optimizer = build_optimizer("Momentum", other.network.parameters(), lr=0.1)
    before = [value.clone() for value in other.network.state_dict().values()]
    with pytest.raises(CheckpointError, match=r"0\.weight is \(6, 4\) .* in the checkpoint and \(7, 4\)"):
        resumed(broken_off, other)
    assert all(map(torch.equal, before, other.network.state_dict().values()))
    assert other.ledger.total == 0
    with pytest.raises(CheckpointError, match="epochs is 4 here and 3 in the state"):
        resumed(broken_off, epochs=4)
    decaying = {**SECRET, "decay": True}
    with pytest.raises(CheckpointError, match="noise_decay_mode is 'Exp' here and None in the state"):
        resumed(broken_off, build(decaying), decaying)
    with pytest.raises(CheckpointError, match="optimizer is 'Adam' here and 'Momentum'"):
        resumed(broken_off, build({**SECRET, "optimizer": "Adam"}))
    with pytest.raises(CheckpointError, match="reproducible is"):
        resumed(broken_off, build(SECRET, seed=0))
    with pytest.raises(CheckpointError, match="callbacks EarlyStopping, but the training has EarlyStopping, Learn"):
        resumed(broken_off, build(SECRET), {**SECRET, "schedule": "falling"})
    # none of the refusals has spoilt anything
    torch.manual_seed(0)
    resumed(broken_off)


def test_a_model_that_has_trained_already_is_refused(broken_off):
    used = build(SECRET)
    fit(used, SECRET)
    with pytest.raises(CheckpointError, match="already holds 12 releases"):
        resumed(broken_off, used)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(where=st.floats(0, 1, exclude_max=True), truncated=st.booleans())
def test_a_damaged_state_is_refused_and_named(where, truncated, tmp_path_factory):
    folder = RunFolder(tmp_path_factory.getbasetemp() / "damaged")
    if not folder.state.exists():
        with pytest.raises(KeyboardInterrupt):
            fit(build(SECRET), SECRET, PowerCut(6), keeper=StateKeeper(folder.path, 4))
    whole = folder.state.read_bytes()
    at = int(where * len(whole))
    damaged = whole[:at] if truncated else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]
    try:
        folder.state.write_bytes(damaged)
        model = build(SECRET)
        with pytest.raises(CheckpointError, match=r"training_state\.safetensors"):
            resumed(folder, model)
        assert model.ledger.total == 0
    finally:
        folder.state.write_bytes(whole)


def test_a_missing_state_and_a_mere_checkpoint_are_refused(broken_off):
    tensors, values = read_tensor_file(broken_off.state)
    write_tensor_file(broken_off.state, tensors, {key: values[key] for key in ("info", "optimizer")})
    with pytest.raises(CheckpointError, match="is a checkpoint, not a training state"):
        resumed(broken_off)
    broken_off.state.unlink()
    with pytest.raises(CheckpointError, match="there is nothing to resume"):
        resumed(broken_off)


def test_a_journal_that_is_missing_older_or_changed_is_refused(broken_off):
    whole = broken_off.journal.read_bytes()
    broken_off.journal.unlink()
    with pytest.raises(CheckpointError, match=r"releases\.jsonl is missing, or older"):
        resumed(broken_off)
    broken_off.journal.write_bytes(whole.replace(b'"step": 4', b'"step": 9'))
    with pytest.raises(CheckpointError, match=r"line \d: the record of releases was changed"):
        resumed(broken_off)
    broken_off.journal.write_bytes(whole.splitlines(keepends=True)[1])
    with pytest.raises(CheckpointError, match="line 1: the record of releases was changed"):
        resumed(broken_off)


def test_a_state_of_another_format_is_refused_by_its_number(broken_off):
    tensors, values = read_tensor_file(broken_off.state)
    values["training"]["mapping"] = [entry for entry in values["training"]["mapping"] if entry[0] != "format"]
    write_tensor_file(broken_off.state, tensors, values)
    with pytest.raises(CheckpointError, match=r"format 'dpmodel-training-state/1'.*reads 'dpmodel-training-state/2'"):
        resumed(broken_off)


def test_a_folder_that_holds_a_training_is_not_written_over(broken_off):
    before = broken_off.state.read_bytes()
    with pytest.raises(CheckpointError, match="resume=True"):
        fit(build(SECRET), SECRET, keeper=StateKeeper(broken_off.path, 4))
    assert broken_off.state.read_bytes() == before


def test_what_cannot_be_saved_is_refused_before_any_budget_is_spent(tmp_path):
    class Strange(Callback):
        def state_dict(self):
            return {"thing": object()}

    model = build(SECRET)
    with pytest.raises(CheckpointError, match=r"thing of type object.*no keeper"):
        fit(model, SECRET, Strange(), keeper=StateKeeper(tmp_path))
    assert model.ledger.total == 0


def test_a_keeper_that_is_used_again_finds_what_lies_in_its_folder(make_model, loader, tmp_path):
    keeper = StateKeeper(tmp_path)
    make_model().fit(loader, epochs=1, keeper=keeper)
    before = read_state(RunFolder(tmp_path).state).step
    other = make_model()
    with pytest.raises(CheckpointError):
        other.fit(loader, epochs=1, keeper=keeper)
    assert other.ledger.total == 0
    assert read_state(RunFolder(tmp_path).state).step == before
