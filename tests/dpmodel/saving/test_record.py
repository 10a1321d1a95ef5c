"""The write-ahead record: what a process leaves behind that is killed at any moment."""

import copy
import hashlib
import json
import os
import pickle
import signal
from itertools import count

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import Callback, DPModel, NoiseMechanismsFactory, StateKeeper
from dpmodel.callbacks import Silence
from dpmodel.data.loader import PrivateLoader
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.marks import TrainingMark
from dpmodel.saving.record import ReleaseRecord
from dpmodel.training.update import Update
from monitors.errors import CheckpointError
from monitors.events import GaussianEvent, ViolationEvent, event_from_dict
from monitors.journal import ReleaseJournal
from monitors.ledger import Ledger
from monitors.ledger_file import ANNOUNCED_NOTE
from monitors.spent import privacy_spent

from ..power_cut import PowerCut

EPOCHS, STEPS_PER_EPOCH, BLOCK = 2, 3, 2
STEPS = EPOCHS * STEPS_PER_EPOCH
KILLED = 9


class Stop(Callback):
    """Stops the training after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, run):
        if run.step == self.step:
            run.stop("interrupted (test)")


def build(sampling="poisson"):
    """A model whose noise decays, so that every step has a different event."""
    torch.manual_seed(0)
    network = nn.Linear(3, 2)
    noise = NoiseMechanismsFactory.create(
        "AdaGaussian", initial_noise_multiplier=1.5, decay_policy="Exp", noise_decay_rate=0.05
    )
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, engine="vmap", sampling=sampling)


def fit(where, *callbacks, resume=False, sampling="poisson", model=None):
    model = build(sampling) if model is None else model
    data = TensorDataset(torch.randn(12, 3), torch.arange(12) % 2)
    where = {name: path for name, path in where.items() if path is not None}
    if "keeper" in where:
        where["keeper"] = StateKeeper(where["keeper"], BLOCK, resume=resume)
    loader = PrivateLoader(data, 12 // STEPS_PER_EPOCH, sampling=sampling)
    model.fit(loader, EPOCHS, callbacks=[Silence(), *callbacks], **where)
    return model


def killed_at(instant, witness, action):
    """Whether ``action`` finished in a process that is killed at its ``instant``-th write, rename or release."""
    process = os.fork()
    if process == 0:
        status = 1
        try:
            signal.alarm(60)
            torch.set_num_threads(1)
            _kill_at(instant, witness)
            action()
            status = 0
        finally:
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    assert status in (0, KILLED)
    return status == 0


def _kill_at(instant, witness):
    passed, fsync, replace, update = count(), os.fsync, os.replace, Update.__call__

    def pass_instant():
        if next(passed) == instant:
            os._exit(KILLED)

    def before_fsync(handle):
        pass_instant()  # after a power cut, the written bytes may or may not be there; here they are
        fsync(handle)

    def after_replace(source, target, **options):
        replace(source, target, **options)
        pass_instant()

    def after_release(self, summed, step):
        with witness.open("ab") as stream:
            stream.write(json.dumps(self.plan.event(step).to_dict()).encode() + b"\n")
        pass_instant()
        update(self, summed, step)

    os.fsync, os.replace, Update.__call__ = before_fsync, after_replace, after_release


@pytest.fixture(scope="module", autouse=True)
def _warm(tmp_path_factory):
    """Import the modules of a training once, rather than in each child."""
    folder = tmp_path_factory.mktemp("warm") / "run"
    fit({"output": folder, "keeper": folder})


def witnessed(witness):
    """The ledger of what the steps of all processes really released."""
    lines = witness.read_bytes().splitlines() if witness.exists() else []
    ledger = Ledger()
    for line in lines:
        ledger.record(event_from_dict(json.loads(line)))
    return ledger


def require_covered(folder, witness):
    """The ledger on disk states everything that was released; it may be missing only before the first release."""
    released = witnessed(witness)
    if not folder.ledger.exists():
        assert released.total == 0
        return
    stated = folder.read_ledger()  # no kill leaves files or marks that contradict each other
    assert stated.covers(released)
    assert privacy_spent(stated, 1e-5).epsilon >= privacy_spent(released, 1e-5).epsilon


WHERE = {
    "output": lambda path: {"output": path / "run", "keeper": None},
    "keeper": lambda path: {"output": None, "keeper": path / "run"},
    "both": lambda path: {"output": path / "run", "keeper": path / "run"},
    "apart": lambda path: {"output": path / "run", "keeper": path / "state"},
}


def folders(where):
    return {RunFolder(path) for path in where.values() if path is not None}


#: Every 11th moment is tried, or every third or fifth in the slow tests; all of them take minutes.
STRIDES = [19, pytest.param(3, marks=pytest.mark.slow)]


@pytest.mark.parametrize("stride", STRIDES)
@pytest.mark.parametrize("name", WHERE)
@pytest.mark.sample(4)
def test_the_ledger_on_disk_covers_every_release_after_a_kill_at_any_moment(name, stride, tmp_path):
    for instant in count(0, stride):
        where, witness = WHERE[name](tmp_path / str(instant)), tmp_path / f"released-{instant}"
        ended = killed_at(instant, witness, lambda where=where: fit(where))
        for folder in folders(where):
            require_covered(folder, witness)
        if ended:
            break
    assert witnessed(witness).total == STEPS
    assert instant > 2 * STEPS


@pytest.mark.slow
#: Releases of the first process: killed before its first, within a block, and after an epoch; 0 stops without a kill.
@pytest.mark.parametrize("first", [1, 2, 4, 0])
def test_a_resumed_process_may_be_killed_at_any_moment_too(first, tmp_path):
    for instant in count(first, 5):
        where, witness = WHERE["both"](tmp_path / str(instant)), tmp_path / f"released-{instant}"
        callback = Stop(3) if first == 0 else Kill(first)
        assert killed_at(None, witness, lambda where=where, callback=callback: fit(where, callback)) == (first == 0)
        before = witnessed(witness).total
        assert before == (first or 3)
        callback.step = None
        ended = killed_at(instant, witness, lambda where=where, callback=callback: fit(where, callback, resume=True))
        (folder,) = folders(where)
        require_covered(folder, witness)
        if ended:
            break
        if folder.ended() is None:
            model = fit(where, callback, resume=True)
            assert model.ledger.covers(witnessed(witness))
            assert model.ledger.kept.total == STEPS
            assert model.ledger.lost.total <= 2 * BLOCK  # each killed process loses at most one block
    assert instant > 2 * STEPS


class Kill(Callback):
    """Kills the process after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, run):
        if run.step == self.step:
            os._exit(KILLED)


@pytest.mark.slow
def test_lost_epochs_of_shuffled_batches_are_charged_one_by_one_from_disk(tmp_path):
    where = {"output": None, "keeper": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        fit(where, PowerCut(2), sampling="shuffle")
    ledger = Ledger.load(RunFolder(tmp_path).ledger)
    assert ledger.total == 2
    model = fit(where, resume=True, sampling="shuffle")
    assert [event.partition for event, _ in model.ledger.lost] == [EPOCHS] * len(model.ledger.lost)
    assert Ledger.load(RunFolder(tmp_path).ledger) == model.ledger


def test_while_a_training_runs_its_ledger_needs_the_journal_beside_it(tmp_path):
    folder, seen = RunFolder(tmp_path / "run"), []

    class Watcher(Callback):
        def on_train_step_end(self, run):
            seen.append(Ledger.load(folder.ledger))
            text = folder.ledger.read_text()
            with pytest.raises(ValueError, match="under way or was killed"):
                Ledger.from_json(text)
            (tmp_path / "ledger.json").write_text(text)
            with pytest.raises(ValueError, match=r"releases\.jsonl beside it is missing"):
                Ledger.load(tmp_path / "ledger.json")

    model = fit({"output": folder.path, "keeper": None}, Watcher())
    assert [ledger.total for ledger in seen] == [STEPS] * STEPS
    assert all(ANNOUNCED_NOTE in ledger.notes for ledger in seen)
    assert Ledger.load(folder.ledger) == Ledger.from_json(folder.ledger.read_text()) == model.ledger


def test_the_ledger_of_a_different_training_is_not_overwritten(tmp_path):
    fit({"output": tmp_path / "run", "keeper": None})
    before, model = (tmp_path / "run/ledger.json").read_bytes(), build()
    with pytest.raises(CheckpointError, match="already holds the ledger of a training"):
        fit({"output": None, "keeper": tmp_path / "run"}, model=model)
    assert model.ledger.total == 0
    assert (tmp_path / "run/ledger.json").read_bytes() == before


def test_a_record_needs_blocks_of_at_least_one_step(tmp_path):
    with pytest.raises(ValueError, match="every_n_steps"):
        ReleaseRecord(tmp_path, 0)


class Publishes(Callback):
    """Records a release of its own after the first epoch, and is killed an epoch later if asked to."""

    def __init__(self, *, dies):
        self.dies = dies

    def on_train_epoch_begin(self, run):
        if run.epoch == 2:
            run.ledger.record(GaussianEvent(0.3))

    def on_train_end(self, run):
        if self.dies:
            os._exit(KILLED)


def test_a_resumed_training_charges_what_only_the_ledger_on_disk_states(tmp_path):
    folder, witness = RunFolder(tmp_path / "run"), tmp_path / "released"
    where = WHERE["keeper"](tmp_path)
    assert not killed_at(10_000, witness, lambda: fit(where, Publishes(dies=True)))
    stated = Ledger.load(folder.ledger)
    head = ReleaseJournal(folder.journal).head
    stated.record(GaussianEvent(0.7)).save(folder.ledger, journal=head)  # as a training without a line for it would
    resumed = fit(where, resume=True)
    assert resumed.ledger.covers(stated)
    assert resumed.ledger.lost.covers(Ledger().record(GaussianEvent(0.7)))
    assert Ledger.load(folder.ledger) == resumed.ledger


class Asks(Callback):
    """Records a release that is not a step, and is killed at once."""

    def __init__(self, hook="on_train_step_end", step=3):
        setattr(self, hook, lambda run: self._ask(run) if run.step == step else None)

    def _ask(self, run):
        run.ledger.record(GaussianEvent(0.3), 2)
        self._leave()

    def _leave(self):
        os._exit(KILLED)


class AsksAndFails(Asks):
    """Records a release that is not a step, and raises an error."""

    def _leave(self):
        raise RuntimeError("the answer is lost")


HOOKS = [("on_train_begin", 0), ("on_train_epoch_begin", 0), ("on_train_step_begin", 0), ("on_train_end", STEPS)]


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.parametrize(("hook", "step"), HOOKS)
@pytest.mark.sample(16)
def test_a_release_of_a_callback_is_on_the_disk_at_every_hook(name, hook, step, tmp_path):
    where, asked = WHERE[name](tmp_path), Ledger().record(GaussianEvent(0.3), 2)
    assert not killed_at(10_000, tmp_path / "released", lambda: fit(where, Asks(hook, step)))
    for folder in folders(where):
        assert folder.read_ledger().covers(asked)
    failing = WHERE[name](tmp_path / "failing")
    with pytest.raises(RuntimeError, match="the answer is lost"):
        fit(failing, AsksAndFails(hook, step))
    for folder in folders(failing):
        assert folder.read_ledger().covers(asked)


@pytest.mark.slow
def test_a_release_before_the_first_step_of_a_resumed_training_is_on_the_disk(tmp_path):
    where, asked = WHERE["both"](tmp_path), Ledger().record(GaussianEvent(0.3), 2)
    assert not killed_at(10_000, tmp_path / "released", lambda: fit(where, Asks()))
    (folder,) = folders(where)
    before = folder.read_ledger()
    assert not killed_at(10_000, tmp_path / "released", lambda: fit(where, Asks("on_train_begin", 2), resume=True))
    assert folder.read_ledger().covers(before.merge(asked))
    assert fit(where, resume=True).ledger.covers(before.merge(asked))


@pytest.mark.parametrize("name", WHERE)
@pytest.mark.sample(4)
def test_a_release_of_a_callback_is_on_the_disk_at_once(name, tmp_path):
    where = WHERE[name](tmp_path)
    assert not killed_at(10_000, tmp_path / "released", lambda: fit(where, Asks()))
    for folder in folders(where):
        assert folder.read_ledger().covers(Ledger().record(GaussianEvent(0.3), 2))
    if name in ("keeper", "both"):
        resumed = fit(where, resume=True)
        assert resumed.ledger.lost.covers(Ledger().record(GaussianEvent(0.3), 2))


class AsksAlike(Callback):
    """Releases something else of the cost of the next step, and compares the disk with the ledger at each moment."""

    def __init__(self, folder, raises):
        self.folder, self.raises, self.lacking = folder, raises, {}

    def on_train_step_begin(self, run):
        run.ledger.record(run.event(run.step))
        self._compare(run, "asked")
        if self.raises:
            run.plan.noise.schedule = lambda step: 50.0  # the block is announced again

    def on_train_step_end(self, run):
        self._compare(run, "stepped")

    def _compare(self, run, when):
        missing = run.ledger.beyond(self.folder.read_ledger()).total
        self.lacking |= {(run.step, when): missing} if missing else {}


@pytest.mark.parametrize("raises", [False, True])
def test_a_release_of_a_callback_that_equals_the_next_step_is_on_the_disk_at_once(raises, tmp_path):
    where = WHERE["keeper"](tmp_path)
    (folder,) = folders(where)
    asks = AsksAlike(folder, raises)
    assert fit(where, asks).ledger.total == 2 * STEPS
    assert asks.lacking == {}


class Voids(Callback):
    """Declares the claim void, and is killed at once."""

    def on_train_step_end(self, run):
        run.ledger.record(ViolationEvent("the labels were read"))
        os._exit(KILLED)


def test_a_violation_that_a_callback_records_is_on_the_disk_at_once(tmp_path):
    where = WHERE["both"](tmp_path)
    assert not killed_at(10_000, tmp_path / "released", lambda: fit(where, Voids()))
    (folder,) = folders(where)
    assert folder.read_ledger().violations == ("the labels were read",)
    with pytest.raises(CheckpointError, match="the labels were read"):
        fit(where, resume=True)


def test_a_violation_counts_even_if_it_cannot_be_written(tmp_path):
    class Blocks(Callback):
        def on_train_step_end(self, run):
            (tmp_path / "run/releases.jsonl").unlink(missing_ok=True)
            run.ledger.record(ViolationEvent("the labels were read"))

    model = build()
    with pytest.raises(CheckpointError):
        fit(WHERE["both"](tmp_path), Blocks(), model=model)
    assert model.ledger.violations == ("the labels were read",)


def test_a_failure_before_the_first_release_leaves_no_record_even_after_a_note(tmp_path):
    class Fails(Callback):
        def on_train_epoch_begin(self, run):
            run.ledger.add_note("a note")
            raise RuntimeError("no disk for the logs")

    where = WHERE["both"](tmp_path)
    with pytest.raises(RuntimeError):
        fit(where, Fails())
    assert not RunFolder(tmp_path / "run").in_use


def test_a_copy_of_a_ledger_announces_nothing(tmp_path):
    folder = RunFolder(tmp_path)

    class Copies(Callback):
        def on_train_step_end(self, run):
            before = folder.journal.read_bytes()
            for ledger in (run.ledger.copy(), copy.deepcopy(run.ledger), pickle.loads(pickle.dumps(run.ledger))):
                ledger.record(GaussianEvent(0.3))
            assert folder.journal.read_bytes() == before

    fit({"keeper": folder.path, "output": None}, Copies())


def test_marks_are_written_after_the_lines_and_name_the_configuration(tmp_path):
    folder = RunFolder(tmp_path)
    folder.config.write_text("network: linear\n")
    fit({"keeper": folder.path, "output": None})
    journal = ReleaseJournal(folder.journal)
    assert TrainingMark.of(journal.training) == TrainingMark(
        journal.training, len(journal), journal.head, hashlib.sha256(folder.config.read_bytes()).hexdigest()
    )


@pytest.mark.slow
def test_the_report_is_withdrawn_before_the_steps_that_it_does_not_state(tmp_path):
    folder, witness = RunFolder(tmp_path / "run"), tmp_path / "released"
    where = WHERE["both"](tmp_path)
    fit(where, Stop(3))
    assert folder.report.exists()
    assert folder.statement.exists()
    assert not killed_at(10_000, witness, lambda: fit(where, Publishes(dies=True), resume=True))
    assert not folder.report.exists()
    assert not folder.statement.exists()
    fit(where, resume=True)
    assert json.loads(folder.report.read_text())["ledger_digest"] == Ledger.load(folder.ledger).digest()
