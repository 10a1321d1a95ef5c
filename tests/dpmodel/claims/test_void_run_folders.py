"""The run folder of a training whose claim is void."""

import json

import pytest

from dpmodel import Callback, StateKeeper, poisson_loader
from monitors import Ledger
from monitors.errors import CheckpointError, UnprotectedUpdateError
from monitors.journal import ReleaseJournal

from .violating import At, in_place, network


def test_a_violation_is_written_immediately_and_such_a_training_is_not_resumed(make_model, tmp_path, make_data):
    def build():
        return make_model(network())

    seen = []

    class Looks(Callback):
        def on_train_end(self, run):
            seen.extend(ReleaseJournal(tmp_path / "releases.jsonl").violations)

    loader, model = poisson_loader(make_data(), batch_size=16), build()
    with pytest.raises(UnprotectedUpdateError):
        model.fit(
            loader,
            epochs=2,
            callbacks=[At("on_train_step_end", in_place), Looks()],
            keeper=StateKeeper(tmp_path, every_n_steps=2),
        )
    assert tuple(seen) == model.ledger.violations != ()
    resumed = build()
    with pytest.raises(CheckpointError, match=r"cannot be resumed: the guarantee is void: .*fresh weights"):
        resumed.fit(loader, epochs=2, keeper=StateKeeper(tmp_path, every_n_steps=2, resume=True))
    assert resumed.ledger.total == 0


def test_a_resumed_training_is_guarded_from_its_first_step(make_model, tmp_path, make_data):
    class Cut(Callback):
        def on_train_step_end(self, run):
            if run.step == 6:
                raise KeyboardInterrupt

    class First(Callback):
        def on_train_step_begin(self, run):
            in_place(run)

    loader = poisson_loader(make_data(), batch_size=16)
    with pytest.raises(KeyboardInterrupt):
        make_model(network()).fit(loader, epochs=2, callbacks=[Cut()], keeper=StateKeeper(tmp_path, every_n_steps=4))
    resumed = make_model(network())
    with pytest.raises(UnprotectedUpdateError):
        resumed.fit(loader, epochs=2, callbacks=[First()], keeper=StateKeeper(tmp_path, every_n_steps=4, resume=True))
    assert "not verified since step 4" in resumed.ledger.violations[0]


def test_the_run_folder_of_a_void_training_says_so_and_the_command_fails(tmp_path, capsys, monkeypatch):
    from dpmodel.callbacks.registry import CALLBACKS
    from dpmodel.cli.application import run as run_command

    class Overwrites(Callback):
        def on_train_end(self, run):
            run.network.get_parameter(next(iter(dict(run.network.named_parameters())))).data.zero_()

    monkeypatch.setitem(CALLBACKS._builders, "Overwrites", Overwrites)
    config = tmp_path / "tiny.yaml"
    config.write_text(
        "data: {name: synthetic, shape: [1, 4, 4], num_train: 60, num_test: 20, num_classes: 3}\n"
        "network: linear\noptimizer: {name: SGD, lr: 0.5}\n"
        "privacy: {noise_multiplier: 1.5, delta: 1e-4, norm_bound: 0.5}\n"
        "training: {epochs: 1, batch_size: 12}\ncallbacks: [Overwrites]\noutput: {curve: false}\n"
    )
    folder = tmp_path / "out"
    assert run_command(["train", str(config), "--output", str(folder), "--quiet"]) == 1
    assert "void" in capsys.readouterr().err
    report = json.loads((folder / "privacy_report.json").read_text())
    assert report["guarantee"] == "void"
    assert report["epsilon"] == "inf"
    assert tuple(report["violations"]) == Ledger.load(folder / "ledger.json").violations != ()
    assert "The guarantee is void" in (folder / "privacy_report.md").read_text()
    assert run_command(["train", str(config), "--output", str(folder), "--resume", "--quiet"]) == 1
    assert "cannot be resumed" in capsys.readouterr().err
