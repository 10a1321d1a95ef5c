"""``dpmodel attack``: a run folder is attacked and not changed; exit codes say what was found."""

import hashlib
import json
import shutil

import pytest

from dpmodel.attack import Limit, attack, subject
from monitors import GaussianEvent, Ledger

QUICK = ["--shadows", 2, "--fpr", 0.1, "--jobs", 1]


@pytest.fixture
def run_dir(trained_once, tmp_path):
    shutil.copytree(trained_once, tmp_path / "run")
    return tmp_path / "run"


def digests(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.slow
def test_the_network_of_a_run_is_attacked_and_its_folder_untouched(run_dir, tmp_path, command):
    before = digests(run_dir)
    out, cache, scores = tmp_path / "out", tmp_path / "shadows", tmp_path / "scores.csv"
    code, shown, _ = command("attack", run_dir, *QUICK, "-o", out, "--cache", cache, "--scores", scores)
    assert code == 0
    assert "no attack contradicts the ledger" in shown
    assert "statistics of private data" in shown
    assert "120 training examples" in shown
    assert digests(run_dir) == before
    assert sorted(path.name for path in out.iterdir()) == ["attack.json", "attack.md", "attack.png"]
    assert scores.read_text().startswith("attack,network,example,member,score\nloss_threshold,0,train 0,1,")
    assert sorted(path.name for path in cache.glob("*.safetensors")) == [
        "shadow-0000.safetensors",
        "shadow-0001.safetensors",
    ]

    code, shown, _ = command("attack", run_dir, *QUICK, "--cache", cache, "-m", "lira", "--json")
    answer = json.loads(shown)
    assert (code, answer["ok"], answer["files"]) == (0, True, [])
    assert answer["attacks"]["lira"]["references"] == 2
    assert digests(run_dir) == before


def test_success_beyond_the_ledger_is_an_error(run_dir, command, monkeypatch):
    monkeypatch.setattr(
        "dpmodel.attack.methods.LossThreshold.scores", lambda self, evidence: evidence.pool.members.astype(float)
    )
    monkeypatch.setattr("dpmodel.runs.folder.RunFolder.read_ledger", lambda self: Ledger().record(GaussianEvent(10.0)))
    code, shown, _ = command("attack", run_dir, *QUICK, "--method", "loss_threshold")
    assert code == 1
    assert "CONTRADICTION" in shown
    assert "an attack reaches more than the ledger allows" in shown


def test_weights_of_a_training_that_goes_on_meanwhile_are_covered_by_the_ledger(run_dir, monkeypatch):
    loaded = []
    right = subject.load_weights
    monkeypatch.setattr(subject, "load_weights", lambda *args: loaded.append(1) or right(*args))
    monkeypatch.setattr(
        "dpmodel.runs.folder.RunFolder.read_ledger",
        lambda self: Ledger().record(GaussianEvent(10.0), 5 if loaded else 1),
    )
    report = attack(run_dir, methods="loss_threshold", rates=0.1)
    assert report.limit.true_positive_rate(0.1) == Limit.of(
        [Ledger().record(GaussianEvent(10.0), 5)], 2
    ).true_positive_rate(0.1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shadows", 0], "lira needs at least 2 shadow models here, got 0"),
        (["--fpr", 0.001], "32 examples that are not members cannot show a false-positive rate of 0.1 %"),
        (["--method", "lyra"], "unknown attack 'lyra'"),
        (["--set", "privacy.noise_multiplier=3"], "is a fact of the training in the folder"),
    ],
)
def test_what_can_show_nothing_is_bad_usage(run_dir, command, arguments, message):
    code, _, said = command("attack", run_dir, *QUICK[:2], "--fpr", 0.1, *arguments)
    assert code == 2
    assert message in said


def test_a_run_folder_takes_no_files_of_an_attack(run_dir, command):
    for option in ("--output", "--scores", "--cache"):
        code, _, said = command("attack", run_dir, *QUICK, option, run_dir / "attack")
        assert code == 2
        assert f"is a run folder, which an attack does not change; choose a different place with {option}" in said


def test_a_folder_that_is_not_that_of_a_run_or_was_changed_is_refused(run_dir, tmp_path, command):
    assert command("attack", tmp_path / "none")[0] == 2
    (run_dir / "ledger.json").write_text((run_dir / "ledger.json").read_text().replace("1.5", "2.5"))
    code, _, said = command("attack", run_dir, *QUICK)
    assert code == 1
    assert "ledger.json" in said


@pytest.mark.slow  # starts processes
def test_shadows_of_a_configuration_are_attacked_in_two_processes(tiny, command):
    code, shown, _ = command(
        "attack", tiny, "--method", "lira", "--shadows", 4, "--fpr", 0.1, "--jobs", 2, "--no-noise", "--examples", 30
    )
    assert code == 0
    assert "the ledger limits no attack" in shown
