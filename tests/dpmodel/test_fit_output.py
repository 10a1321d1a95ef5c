"""The run folder and the privacy report of a training that was written in Python."""

import json
import os
import pickle
import shutil

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import (
    Callback,
    ClipMechanismsFactory,
    DPModel,
    History,
    Ledger,
    NoiseMechanismsFactory,
    PrivacyMonitorFactory,
    StateKeeper,
    load_checkpoint,
    poisson_loader,
)
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from monitors.atomic import write_atomically
from monitors.errors import CheckpointError, ConfigError
from monitors.journal import ReleaseJournal
from monitors.ledger_file import ANNOUNCED_NOTE


def model_of(network=None, **options):
    network = nn.Linear(4, 2) if network is None else network
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.5)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **options)


def loader(batch_size=10):
    data = TensorDataset(torch.randn(60, 4), torch.randint(0, 2, (60,)))
    return poisson_loader(data, batch_size=batch_size)


def test_the_folder_holds_the_files_of_the_command_line_except_the_configuration(tmp_path):
    folder, model = RunFolder(tmp_path / "run"), model_of()
    history = model.fit(loader(), 2, output=folder.path)
    assert Ledger.load(folder.ledger).digest() == model.ledger.digest()
    assert History.from_csv(folder.history).column("step") == history.column("step")
    assert torch.equal(load_checkpoint(folder.checkpoint)["weight"], model.network.weight)
    assert folder.curve.is_file()
    assert folder.statement.read_text() == str(model.report())
    report = json.loads(folder.report.read_text())
    assert ReleaseJournal(folder.journal).follows(*report.pop("journals"))
    assert report.items() <= model.report().to_dict().items()
    assert sorted(path.name for path in folder.path.iterdir()) == sorted(
        path.name
        for path in (
            folder.ledger,
            folder.journal,
            folder.history,
            folder.checkpoint,
            folder.curve,
            folder.statement,
            folder.report,
            folder.page,
            folder.losses,
        )
    )


def test_the_ledger_on_disk_is_never_behind_the_training(tmp_path):
    folder, seen = RunFolder(tmp_path / "run"), []

    class Watcher(Callback):
        def on_train_step_end(self, run):
            on_disk = Ledger.load(folder.ledger)
            seen.append(on_disk.total >= run.ledger.total and ANNOUNCED_NOTE in on_disk.notes)

    model_of().fit(loader(), 2, output=folder.path, callbacks=Watcher())
    assert len(seen) == 12
    assert all(seen)


def test_a_folder_in_use_is_refused_before_anything_is_spent(tmp_path):
    model = model_of()
    (tmp_path / "ledger.json").write_text("{}")
    with pytest.raises(ConfigError, match="is not empty"):
        model.fit(loader(), output=tmp_path)
    assert len(model.ledger) == 0
    assert (tmp_path / "ledger.json").read_text() == "{}"


def test_a_training_that_is_refused_leaves_no_folder(tmp_path):
    with pytest.raises(ValueError, match="BatchNorm"):
        model_of(nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 2))).fit(loader(), output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_training_that_fails_leaves_its_ledger_and_says_so(tmp_path):
    class Fails(Callback):
        def on_train_step_end(self, run):
            if run.step == 3:
                raise RuntimeError("no more")

    folder, model = RunFolder(tmp_path / "run"), model_of()
    with pytest.raises(RuntimeError, match="no more"):
        model.fit(loader(), output=folder.path, callbacks=Fails())
    report = json.loads(folder.report.read_text())
    assert report["status"] == model.report().status == "failed: RuntimeError: no more"
    assert (report["steps"], report["planned_steps"]) == (3, 6)
    assert Ledger.load(folder.ledger).total == 3


def test_a_stopped_training_says_why():
    class Stops(Callback):
        def on_train_step_end(self, run):
            assert run.model.report().status == "under way"
            run.stop("enough")

    model = model_of()
    model.fit(loader(), callbacks=Stops())
    assert model.report().status == "stopped: enough"


def test_a_keeper_may_use_the_same_folder_and_resume_in_it(tmp_path):
    class PowerCut(Callback):
        def on_train_step_end(self, run):
            if run.step == 4:
                raise KeyboardInterrupt

    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        model_of().fit(
            loader(), 2, callbacks=PowerCut(), output=folder.path, keeper=StateKeeper(folder.path, every_n_steps=3)
        )

    class NoCut(Callback):
        pass

    NoCut.__name__ = "PowerCut"
    resumed = model_of()
    resumed.fit(loader(), 2, callbacks=NoCut(), output=folder.path, keeper=StateKeeper(folder.path, resume=True))
    assert Ledger.load(folder.ledger).digest() == resumed.ledger.digest()
    assert json.loads(folder.report.read_text())["status"] == "finished"
    assert json.loads(folder.report.read_text())["lost_steps"] == resumed.ledger.lost.total > 0


def test_the_folder_is_locked_while_the_training_runs(tmp_path):
    class Second(Callback):
        def on_train_step_end(self, run):
            with pytest.raises(ConfigError, match="is not empty"):
                model_of().fit(loader(), output=tmp_path / "run")

    model_of().fit(loader(30), output=tmp_path / "run", callbacks=Second())


def test_eval_on_the_command_line_says_what_the_folder_lacks(tmp_path):
    model_of().fit(loader(30), output=tmp_path / "run")
    with pytest.raises(ConfigError, match="load_checkpoint"):
        evaluate_run(tmp_path / "run")


def test_a_report_needs_a_training():
    with pytest.raises(ValueError, match="call fit first"):
        model_of().report()


def test_the_report_states_epsilon_as_the_monitor_does_unless_asked_otherwise():
    model = model_of()
    model.fit(loader(), callbacks=[PrivacyMonitorFactory.create("rdp", target_delta=1e-3)])
    assert model.report().spent == model.privacy_spent(1e-3, "rdp")
    assert model.report(1e-4, "pld").spent == model.privacy_spent(1e-4, "pld")
    with pytest.raises(ValueError, match="delta"):
        model.report(delta=2)


def test_the_report_names_mechanisms_and_first_bound_of_the_training():
    clip = ClipMechanismsFactory.create("Gaussian", learning_rate=0.3)
    model = model_of(clip_mech=clip, norm_bound=0.7, micro_batches=5)
    model.fit(loader())
    mechanism = model.report().to_dict()["mechanism"]
    assert (mechanism["noise"], mechanism["clipping"]) == ("Gaussian", "Gaussian")
    assert (mechanism["initial_norm_bound"], mechanism["micro_batches"]) == (0.7, 5)
    assert (mechanism["num_examples"], mechanism["batch_size"]) == (60, 10)


def test_the_report_covers_all_trainings_of_the_model():
    model = model_of()
    model.fit(loader(10))
    model.fit(loader(20))
    report = model.report()
    assert report.steps == report.planned_steps == model.steps_done == 9
    assert report.spent == model.privacy_spent(1e-5)
    assert "10/60" in report.spent.sampling
    assert "20/60" in report.spent.sampling


def test_a_report_without_noise_claims_nothing():
    network = nn.Linear(4, 2)
    model = DPModel(network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1))
    model.fit(loader())
    assert model.report().guarantee == "none"
    assert "NOT differentially private" in str(model.report())


def test_a_report_can_be_saved_separately_and_after_pickling(tmp_path):
    model = model_of()
    model.fit(loader())
    written = pickle.loads(pickle.dumps(model)).report().save(tmp_path / "new")
    assert written.read_text() == str(model.report())


class Moves(Callback):
    """Moves the run folder after a step, and fills a new one at the old path."""

    def __init__(self, folder, step=3):
        self.folder, self.step = folder, step

    def on_train_step_end(self, run):
        if run.step == self.step:
            self.folder.path.rename(self.folder.path.with_name("moved"))
            model_of().fit(loader(30), output=self.folder.path, keeper=StateKeeper(self.folder.path))
            self.before = contents(self.folder.path)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("every", [1, 2, 100])
@pytest.mark.sample(3)
def test_a_folder_that_is_moved_takes_its_training_along_and_the_new_one_at_its_path_is_unchanged(tmp_path, every):
    folder, moved, model = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "moved"), model_of()
    moves = Moves(folder)
    model.fit(loader(), 2, output=folder.path, callbacks=moves, keeper=StateKeeper(folder.path, every))
    assert contents(folder.path) == moves.before
    assert Ledger.load(moved.ledger).digest() == model.ledger.digest()
    assert json.loads(moved.report.read_text())["status"] == "finished"
    assert History.from_csv(moved.history).column("epoch") == [1, 2]
    assert torch.equal(load_checkpoint(moved.checkpoint)["weight"], model.network.weight)
    assert moved.curve.is_file()


def test_the_files_of_a_training_stay_in_its_folder_if_the_current_folder_changes(tmp_path, monkeypatch):
    class Leaves(Callback):
        def on_train_step_end(self, run):
            if run.step == 3:
                os.chdir(tmp_path / "elsewhere")

    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = model_of()
    model.fit(loader(), 2, output="run", keeper=StateKeeper("run", 2), callbacks=Leaves())
    assert Ledger.load(tmp_path / "run" / "ledger.json").digest() == model.ledger.digest()
    assert json.loads((tmp_path / "run" / "privacy_report.json").read_text())["status"] == "finished"
    assert not any((tmp_path / "elsewhere").iterdir())


@pytest.mark.slow
def test_a_moved_folder_whose_training_fails_is_resumed_where_it_is(tmp_path):
    class Fails(Moves):
        def on_train_epoch_begin(self, run):
            if run.epoch == 2:
                raise RuntimeError("no more")

    class Goes(Callback):
        pass

    Goes.__name__ = "Fails"
    folder, moves = RunFolder(tmp_path / "run"), Fails(RunFolder(tmp_path / "run"))
    with pytest.raises(RuntimeError, match="no more"):
        model_of().fit(loader(), 2, output=folder.path, callbacks=moves, keeper=StateKeeper(folder.path, 2))
    assert contents(folder.path) == moves.before
    resumed, moved = model_of(), tmp_path / "moved"
    resumed.fit(loader(), 2, output=moved, callbacks=Goes(), keeper=StateKeeper(moved, resume=True))
    assert Ledger.load(moved / "ledger.json").total == resumed.ledger.total == 12


@pytest.mark.sample(3)
@pytest.mark.parametrize("removed", ["folder", "lock file", "journal"])
def test_a_training_whose_record_is_removed_ends_before_its_next_release_and_brings_nothing_back(tmp_path, removed):
    class Removes(Callback):
        def on_train_step_end(self, run):
            if run.step == 3:
                names = {"lock file": ".lock", "journal": "releases.jsonl"}
                if removed == "folder":
                    shutil.rmtree(tmp_path / "run")
                else:
                    (tmp_path / "run" / names[removed]).unlink()
                self.left = contents(tmp_path / "run") if removed == "lock file" else {}

    model, removes = model_of(), Removes()
    with pytest.raises(CheckpointError, match=r"run/(\.lock was removed|releases\.jsonl cannot be written)"):
        model.fit(loader(), 2, output=tmp_path / "run", keeper=StateKeeper(tmp_path / "run", 3), callbacks=removes)
    assert model.ledger.total == 3
    if removed == "lock file":
        assert contents(tmp_path / "run") == removes.left
    elif removed == "folder":
        assert not (tmp_path / "run").exists()
    else:
        assert Ledger.load(tmp_path / "run" / "ledger.json").total == 3


@pytest.mark.parametrize("name", ["ledger.json", "releases.jsonl", "training_state.safetensors"])
def test_a_record_that_is_a_named_pipe_is_refused_without_waiting_for_its_other_end(tmp_path, name):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / name)
    for resume in (False, True):
        with pytest.raises(CheckpointError, match=f"run/{name} is not a regular file"):
            model_of().fit(loader(), keeper=StateKeeper(tmp_path / "run", resume=resume))


@pytest.mark.parametrize("name", ["ledger.json", "releases.jsonl", "training_state.safetensors"])
@pytest.mark.parametrize("resume", [False, True])
def test_a_record_that_is_a_link_is_refused_and_its_target_is_unchanged(tmp_path, name, resume):
    other = tmp_path / "other"
    other.write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).symlink_to(other)
    model = model_of()
    with pytest.raises(CheckpointError, match=f"run/{name} is a link"):
        model.fit(loader(), keeper=StateKeeper(tmp_path / "run", resume=resume))
    assert model.ledger.total == 0
    assert other.read_text() == "mine"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [name]


@pytest.mark.slow
def test_a_link_that_appears_while_training_is_replaced_or_refused_and_its_target_is_unchanged(tmp_path):
    folder, other = RunFolder(tmp_path / "run"), tmp_path / "other"
    other.write_text("mine")

    class Links(Callback):
        def __init__(self, *names):
            self.names = names

        def on_train_step_end(self, run):
            if run.step == 4:
                for name in self.names:
                    (folder.path / name).unlink(missing_ok=True)
                    (folder.path / name).symlink_to(other)

    replaced = ["ledger.json", "privacy_report.md", "checkpoint.safetensors", "history.csv", "training_curve.png"]
    model_of().fit(loader(), 2, output=folder.path, callbacks=Links(*replaced))
    assert not any((folder.path / name).is_symlink() for name in replaced)
    for name in ("releases.jsonl", "history.csv"):
        folder = RunFolder(tmp_path / f"with {name}")
        links = Links(name)
        with pytest.raises((CheckpointError, OSError), match=f"{name}.*it is a link|it is a link.*{name}") as caught:
            model_of().fit(loader(20), 4, output=folder.path, keeper=StateKeeper(folder.path, 3), callbacks=links)
        assert "\n" not in str(caught.value)
    assert other.read_text() == "mine"


def test_a_run_folder_and_its_files_are_private(tmp_path):
    model_of().fit(loader(), output=tmp_path / "run", keeper=StateKeeper(tmp_path / "state"))
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "run", tmp_path / "state")} == {0o700}
    assert {path.stat().st_mode & 0o777 for path in tmp_path.glob("*/*")} == {0o600}


def test_the_history_grows_by_a_line_per_epoch_and_keeps_up_with_new_metrics(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(
        "dpmodel.training.table_file.write_atomically",
        lambda path, content, **options: (written.append(path.name), write_atomically(path, content, **options)),
    )

    class Measures(Callback):
        def on_eval_end(self, run):
            if run.epoch >= 4:
                run.metrics = {**run.metrics, "late": 1.0}

    history = model_of(clip_mech=ClipMechanismsFactory.create("Gaussian", learning_rate=0.3)).fit(
        loader(60), 8, output=tmp_path / "run", callbacks=Measures(), valid_loader=loader().dataset
    )
    read = History.from_csv(tmp_path / "run" / "history.csv")
    assert read.to_dict()["epochs"] == history.to_dict()["epochs"]
    read.read_norm_bounds(tmp_path / "run" / "norm_bounds.csv")
    assert read.norm_bounds == history.norm_bounds
    assert sorted(written) == ["history.csv", "history.csv", "norm_bounds.csv"]
