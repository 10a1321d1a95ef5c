import copy
import json
import math
import os
import random
import re
import signal
import statistics

import pytest
import yaml

from dpmodel.cli.application import run
from dpmodel.compare.runner import NullWatcher
from dpmodel.saving.lock import FolderLock
from dpmodel.tuning import load_tuning, make_tuning, run_tuning
from dpmodel.tuning.charge import CHARGES
from monitors import Ledger, RDPAccountant, best_of_random
from monitors.errors import ConfigError

VALUES = {
    "base": {
        "data": {"name": "synthetic", "num_train": 120, "num_test": 60, "num_classes": 3, "shape": [1, 4, 4]},
        "network": {"name": "linear"},
        "optimizer": {"name": "SGD", "lr": 0.5},
        "privacy": {"target_epsilon": 8.0},
        "training": {"epochs": 1, "batch_size": 20},
        "output": {"curve": False},
    },
    "search": {
        "optimizer.lr": {"low": 0.01, "high": 1.0, "scale": "log"},
        "privacy.norm_bound": {"values": [0.5, 1.0]},
    },
    "runs": 2,
    "charge": "random",
}


@pytest.fixture
def values():
    return copy.deepcopy(VALUES)


@pytest.fixture
def three_runs(monkeypatch):
    """The secret number of runs is three."""
    monkeypatch.setattr(CHARGES.get("random"), "number", lambda self, runs, generator: 3)


@pytest.mark.slow
def test_random_stopping_spends_the_target_for_the_search_as_a_whole(values, tmp_path, three_runs):
    found = run_tuning(make_tuning(values), tmp_path, jobs=1)
    assert found.ok
    assert len(found.trials) == 3
    ledger = Ledger.load(tmp_path / "ledger.json")
    assert 8.0 * 0.999 <= RDPAccountant().epsilon(ledger, 1e-5) <= 8.0
    one = Ledger.load(found.best.folder.ledger)
    assert RDPAccountant().epsilon(best_of_random(one, 2.0), 1e-5) == pytest.approx(found.spent.epsilon)
    assert RDPAccountant().epsilon(one, 1e-5) < found.spent.epsilon
    assert found.best.score == max(trial.score for trial in found.trials)
    report = (found.best.folder.path / "privacy_report.md").read_text()
    assert "Not covered: Validation; Tuning" in report
    assert "the report of the search (tuning.md) states what all runs spend together" in report


@pytest.mark.slow
def test_random_stopping_keeps_to_the_target_with_private_statistics(values, tmp_path, three_runs):
    values["base"]["normalise"] = {"name": "private", "noise_multiplier": 8.0, "norm_bound": 2.0, "square_bound": 4.0}
    result = run_tuning(make_tuning(values), tmp_path, jobs=1)
    assert result.ok
    assert 7.9 < result.spent.epsilon <= 8.0


def test_the_statement_of_a_secret_search_names_only_the_best_run(values, tmp_path, three_runs):
    found = run_tuning(make_tuning(values), tmp_path, jobs=1)
    text = json.dumps(found.to_dict())
    assert f"trials/{found.best.folder.path.name}" in text
    assert all(f"trials/{trial.folder.path.name}" not in text for trial in found.trials if trial is not found.best)
    assert "trials" not in found.to_dict()


@pytest.mark.slow
def test_nothing_publishable_reveals_the_position_of_the_best_run(values, tmp_path, three_runs):
    found = run_tuning(make_tuning(values), tmp_path, jobs=1)
    names = [trial.folder.path.name for trial in found.trials]
    assert len(set(names)) == 3
    assert all(re.fullmatch("[0-9a-f]{8}", name) for name in names)
    written = [file for file in found.best.folder.path.rglob("*") if file.suffix in {".yaml", ".json", ".md", ".csv"}]
    assert written
    for file in written:
        assert not re.search(rf"run {found.best.number}\b", file.read_text())  # names may begin with that digit


def test_every_run_is_on_the_ledger_when_all_are_charged(values, tmp_path):
    values.update(charge="all", runs=3)
    values["search"]["training.batch_size"] = {"values": [20, 30]}
    found = run_tuning(make_tuning(values), tmp_path, jobs=1)
    together = Ledger().merge(*(Ledger.load(trial.folder.ledger) for trial in found.trials))
    assert found.spent.epsilon == pytest.approx(RDPAccountant().epsilon(together, 1e-5))
    assert 8.0 * 0.999 <= found.spent.epsilon <= 8.0


def test_a_search_that_is_not_charged_says_so_everywhere(values, tmp_path, capsys):
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump(values))
    assert run(["tune", str(path), "--not-accounted", "--json", "-o", str(tmp_path / "out"), "-j", "1"]) == 0
    stated = json.loads(capsys.readouterr().out)
    assert stated["tuning"].startswith("NOT ACCOUNTED")
    assert stated["privacy"]["notes"] == ["tuning: not accounted"]
    assert "NOT ACCOUNTED" in (tmp_path / "out/tuning.md").read_text()
    assert Ledger.load(tmp_path / "out/ledger.json").notes == ("tuning: not accounted",)
    assert stated["privacy"]["epsilon"] <= 8.0


@pytest.mark.slow
def test_an_interrupted_search_resumes_the_same_runs_and_charges_interrupted_ones(values, tmp_path, three_runs):
    class Interrupting(NullWatcher):
        def stepped(self, job, step):
            if job.number == 1 and step == 1:
                os.kill(os.getpid(), signal.SIGINT)

    broken_off = run_tuning(make_tuning(values), tmp_path, jobs=1, watcher=Interrupting())
    assert not broken_off.ok
    resumed = run_tuning(make_tuning(values), tmp_path, jobs=1)
    assert resumed.ok
    assert len(resumed.outcomes) == 2
    assert [trial.values for trial in resumed.trials] == [trial.values for trial in broken_off.trials]
    planned = best_of_random(resumed.trials[0].plan.ledger(), 2.0)
    # its last step was saved, so nothing was lost
    assert resumed.spent.epsilon == pytest.approx(RDPAccountant().epsilon(planned, 1e-5))
    assert not list(tmp_path.glob("trials/*.previous-*"))


@pytest.mark.slow
def test_lost_steps_of_a_killed_run_are_charged_in_addition(values, tmp_path, three_runs):
    class PowerCut(NullWatcher):
        def stepped(self, job, step):
            if job.number == 1 and step == 3:
                raise KeyboardInterrupt

    values["base"].setdefault("output", {})["save_every_steps"] = 2
    assert not run_tuning(make_tuning(values), tmp_path, jobs=1, watcher=PowerCut()).ok
    resumed = run_tuning(make_tuning(values), tmp_path, jobs=1)
    assert resumed.ok
    lost = Ledger.load(resumed.trials[1].folder.ledger).lost
    assert lost.total == 2
    planned = best_of_random(resumed.trials[0].plan.ledger(), 2.0)
    charged = RDPAccountant().epsilon(planned.merge(lost), 1e-5)
    assert resumed.spent.epsilon == pytest.approx(charged)
    assert charged > RDPAccountant().epsilon(planned, 1e-5)


@pytest.mark.slow
def test_lost_steps_of_the_best_run_are_charged_even_if_the_search_is_not(values, tmp_path):
    class PowerCut(NullWatcher):
        def stepped(self, job, step):
            if step == 3 and not Ledger.load(f"{job.directory}/ledger.json").lost.total:
                raise KeyboardInterrupt

    values.update(charge="none")
    values["base"]["output"]["save_every_steps"] = 2
    while not (found := run_tuning(make_tuning(values), tmp_path, jobs=1, watcher=PowerCut())).ok:
        pass
    alone = Ledger.load(found.best.folder.ledger)
    assert alone.lost.total == 2
    assert found.spent.epsilon == pytest.approx(RDPAccountant().epsilon(alone, 1e-5))


def test_a_search_that_a_different_process_runs_is_refused(values, tmp_path, three_runs):
    with FolderLock(tmp_path), pytest.raises(ConfigError, match=f"in use by process {os.getpid()}"):
        run_tuning(make_tuning(values), tmp_path, jobs=1)


@pytest.mark.slow
def test_a_folder_of_a_different_search_is_refused(values, tmp_path, three_runs):
    run_tuning(make_tuning(values), tmp_path, jobs=1)
    values["runs"] = 5
    with pytest.raises(ConfigError, match="holds a different search"):
        run_tuning(make_tuning(values), tmp_path, jobs=1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"search": {"training.batch_size": {"values": [20, 30]}}}, "every run must release the same"),
        ({"search": {"optimiser.lr": {"values": [0.1]}}}, "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ({"search": {"privacy.noise.noise_decay_rate": {"values": [0.1]}}}, "every run must release the same"),
        ({"search": {"privacy.delta": {"values": [1e-5]}}}, "epsilons at different deltas"),
        ({"search": {"optimizer.lr": {"low": 2.0, "high": 1.0}}}, "low must be below high"),
        ({"search": {"optimizer.lr": {"low": 0.0, "high": 1.0, "scale": "log"}}}, "a log scale needs low above 0"),
        ({"search": {"optimizer.lr": {"values": [1.0], "low": 0.5}}}, "either values"),
        ({"search": {"privacy.norm_bound": {"values": [1.0, -1.0]}}}, "norm_bound must be a positive finite number"),
        ({"search": {"optimizer.lr": []}}, "values must hold at least one entry"),
        ({"search": {}}, "search"),
        ({"runs": 1}, "runs must be at least 2"),
        ({"charge": "randon"}, "did you mean 'random'"),
        ({"metric": "f2"}, "not among training.metrics"),
        ({"rums": 3}, "did you mean 'runs'"),
    ],
)
def test_a_faulty_search_is_refused_before_anything_is_trained(values, change, message):
    with pytest.raises(ConfigError, match=message):
        make_tuning({**values, **change})


def test_a_list_of_values_may_stand_alone(values):
    found = [make_tuning({**values, "search": {"optimizer.lr": one}}) for one in ([0.1, 0.2], {"values": [0.1, 0.2]})]
    assert found[0].definition == found[1].definition


def test_random_stopping_needs_accountant_rdp(values):
    values["base"]["privacy"]["accountant"] = "pld"
    with pytest.raises(ConfigError, match="got 'pld'; set accountant: rdp"):
        make_tuning(values)
    assert make_tuning({**values, "accountant": "rdp"}).config().privacy.accountant == "rdp"


@pytest.mark.parametrize("mean", [2, 6, 20])
def test_the_number_of_runs_is_geometric(mean):
    charge, generator = CHARGES.create("random"), random.Random(7)
    drawn = [charge.number(mean, generator) for _ in range(20_000)]
    assert min(drawn) == 1
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.05)
    # the chance of k runs is (1/m) (1 - 1/m)^(k - 1)
    for count in (1, 2, 3):
        expected = (1 / mean) * (1 - 1 / mean) ** (count - 1)
        slack = 5 * math.sqrt(expected / len(drawn))
        assert drawn.count(count) / len(drawn) == pytest.approx(expected, abs=slack)


def test_the_bundled_search_is_valid(pytestconfig):
    assert load_tuning(pytestconfig.rootpath / "configs/tune_lenet5.yaml").definition.charge == "random"


def test_an_argument_unknown_to_the_base_is_refused_as_a_fault_of_the_search_before_anything_is_written(
    values, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("dpmodel.tuning.trials.calibrate_noise_multiplier", lambda *_: pytest.fail("it was solved"))
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(values["base"]))
    path = tmp_path / "search.yaml"
    path.write_text("base: base.yaml\nruns: 2\nsearch:\n  optimizer.lrr: {values: [0.1, 0.2]}\n")
    out = tmp_path / "out"
    assert run(["tune", str(path), "--output", str(out), "--quiet"]) == 2
    assert f"{path}:4: optimizer: optimizer 'SGD' has no argument 'lrr'" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.slow
def test_a_steep_schedule_is_calibrated_as_long_as_some_noise_is_left(values, tmp_path, three_runs):
    values["base"]["privacy"]["noise"] = {"name": "AdaGaussian", "decay_policy": "Exp", "noise_decay_rate": 1.2}
    found = run_tuning(make_tuning(values), tmp_path, jobs=1)
    assert 8.0 * 0.999 <= found.spent.epsilon <= 8.0
    assert found.best.plan.noise_multiplier > 50
