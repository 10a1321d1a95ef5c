"""The write-ahead record: what a process that is killed at any instant leaves behind."""

import json
import os
import signal
from itertools import count

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import Callback, DPModel, NoiseMechanismsFactory, StateKeeper
from dpmodel.data.loader import PrivateLoader
from dpmodel.runs.folder import RunFolder
from dpmodel.saving.record import ReleaseRecord
from monitors.errors import CheckpointError
from monitors.events import event_from_dict
from monitors.ledger import ANNOUNCED_NOTE, Ledger
from monitors.spent import privacy_spent

EPOCHS, STEPS_PER_EPOCH, BLOCK = 2, 3, 2
STEPS = EPOCHS * STEPS_PER_EPOCH
KILLED = 9


class Quiet(Callback):
    """Keeps a run from printing, and a private count of the data on its ledger."""

    def on_train_begin(self, run):
        run.printer = lambda text: None


class Stop(Callback):
    """Ends the training politely after a step."""

    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, run):
        if run.step == self.step:
            run.stop("interrupted (test)")


def build(sampling="poisson"):
    """A model whose noise decays, so that every step has an event of its own."""
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
    model.fit(loader, EPOCHS, callbacks=[Quiet(), *callbacks], **where)
    return model


def killed_at(instant, witness, action):
    """Whether ``action`` came to its end in a process that is killed at its ``instant``-th write, rename or release."""
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
    from mechanisms.noise import NoiseMechanism

    passed, fsync, replace = count(), os.fsync, os.replace
    record, add = Ledger.record, NoiseMechanism.add
    latest = []

    def pass_instant():
        if next(passed) == instant:
            os._exit(KILLED)

    def before_fsync(handle):
        pass_instant()  # what was written may or may not be there after a power cut; here it is
        fsync(handle)

    def after_replace(source, target, **options):
        replace(source, target, **options)
        pass_instant()

    def recording(ledger, event, count=1, **options):
        latest[:] = [event]
        return record(ledger, event, count, **options)

    def releasing(mechanism, summed, step):
        noisy = add(mechanism, summed, step)
        with witness.open("ab") as stream:
            stream.write(json.dumps(latest[0].to_dict()).encode() + b"\n")
        pass_instant()
        return noisy

    os.fsync, os.replace, Ledger.record, NoiseMechanism.add = before_fsync, after_replace, recording, releasing


def witnessed(witness):
    """The ledger of what really left the steps of all processes."""
    lines = witness.read_bytes().splitlines() if witness.exists() else []
    ledger = Ledger()
    for line in lines:
        ledger.record(event_from_dict(json.loads(line)))
    return ledger


def require_covered(folder, witness):
    """The ledger on the disk states all that was released; it may be missing only while nothing was."""
    released = witnessed(witness)
    if not folder.ledger.exists():
        assert released.total == 0
        return
    stated = Ledger.load(folder.ledger)
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


@pytest.mark.parametrize("name", WHERE)
def test_the_ledger_on_the_disk_covers_what_was_released_after_a_kill_at_any_instant(name, tmp_path):
    for instant in count():
        where, witness = WHERE[name](tmp_path / str(instant)), tmp_path / f"released-{instant}"
        ended = killed_at(instant, witness, lambda where=where: fit(where))
        for folder in folders(where):
            require_covered(folder, witness)
            if not ended and folder.ledger.exists():
                assert Ledger.load(folder.ledger).total <= witnessed(witness).total + BLOCK + 100 * (name != "keeper")
        if ended:
            assert witnessed(witness).total == STEPS
            assert instant > 3 * STEPS
            break


@pytest.mark.parametrize("first", ["block", "epoch", "stopped"])
def test_a_resumed_process_may_be_killed_at_any_instant_too(first, tmp_path):
    """The first process is killed after a block, after an epoch, or stopped politely within a block."""
    for instant in count():
        where, witness = WHERE["both"](tmp_path / str(instant)), tmp_path / f"released-{instant}"
        stop, at = (Stop(3), None) if first == "stopped" else (Stop(99), _release_instant(first, tmp_path, instant))
        assert killed_at(at, witness, lambda where=where, stop=stop: fit(where, stop)) == (first == "stopped")
        ended = killed_at(instant, witness, lambda where=where: fit(where, resume=True))
        (folder,) = folders(where)
        require_covered(folder, witness)
        if not ended:
            model = fit(where, resume=True)
            assert model.ledger.covers(witnessed(witness))
            assert model.ledger.kept.total == STEPS
            # each killed process was charged for at most one block beyond what it released
            assert model.ledger.total <= witnessed(witness).total + STEPS + 2 * BLOCK
        else:
            break


def _release_instant(first, tmp_path, instant, known={}):  # noqa: B006 - a cache
    """The instant just after the release of the second step of a block, or of the first step of the second epoch."""
    if first not in known:
        wanted = {"block": 4, "epoch": STEPS_PER_EPOCH + 1}[first]
        for at in count():
            witness = tmp_path / f"sought-{at}"
            killed_at(at, witness, lambda at=at: fit(WHERE["both"](tmp_path / f"seeking-{at}")))
            if witnessed(witness).total == wanted:
                known[first] = at
                break
    return known[first]


def test_lost_epochs_of_shuffled_batches_are_charged_one_by_one_from_the_disk(tmp_path):
    where = {"output": None, "keeper": tmp_path}
    with pytest.raises(KeyboardInterrupt):
        fit(where, Cut(2), sampling="shuffle")
    ledger = Ledger.load(RunFolder(tmp_path).ledger)
    assert ledger.total == 2
    model = fit(where, resume=True, sampling="shuffle")
    assert [event.partition for event, _ in model.ledger.lost] == [EPOCHS] * len(model.ledger.lost)
    assert Ledger.load(RunFolder(tmp_path).ledger) == model.ledger


class Cut(Callback):
    """Breaks off at a step, as a second Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_train_step_end(self, run):
        if run.step == self.step:
            raise KeyboardInterrupt


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
    assert not folder.journal.exists()


def test_the_ledger_of_another_training_is_not_written_over(tmp_path):
    fit({"output": tmp_path / "run", "keeper": None})
    before, model = (tmp_path / "run/ledger.json").read_bytes(), build()
    with pytest.raises(CheckpointError, match="already holds the ledger of a training"):
        fit({"output": None, "keeper": tmp_path / "run"}, model=model)
    assert model.ledger.total == 0
    assert (tmp_path / "run/ledger.json").read_bytes() == before


def test_a_record_needs_blocks_of_at_least_one_step(tmp_path):
    with pytest.raises(ValueError, match="every_n_steps"):
        ReleaseRecord(tmp_path, 0)
