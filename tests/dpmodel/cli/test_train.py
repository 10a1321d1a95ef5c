import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpmodel.config import load_config
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.folder import RunFolder
from monitors.ledger import Ledger
from monitors.spent import epsilon_text, privacy_spent

ROOT = Path(__file__).parents[3]
FILES = {
    "config.resolved.yaml",
    "history.csv",
    "checkpoint.safetensors",
    "ledger.json",
    "releases.jsonl",
    "privacy_report.json",
    "privacy_report.md",
    "privacy_report.html",
    "privacy_loss.json",
    "test_data.json",
    "inputs.json",
    "training_curve.png",
}
#: Present while a training runs and after it was interrupted.
STATE = {"training_state.safetensors"}


@pytest.mark.slow
def test_lenet5_on_a_subset_of_mnist(command, tmp_path):
    settings = ["data.limit=600", "data.test_limit=200", "training.batch_size=60", "training.epochs=1"]
    overrides = [part for setting in settings for part in ("--set", setting)]
    out = tmp_path / "run"
    code, text, _ = command("train", ROOT / "configs" / "lenet5_mnist.yaml", *overrides, "--output", out, "--quiet")
    assert code == 0
    assert {path.name for path in out.iterdir()} == FILES
    report = json.loads((out / "privacy_report.json").read_text())
    assert report["epsilon"] <= 3.0
    assert report["epsilon"] == pytest.approx(3.0, rel=1e-3)
    assert report["ledger_digest"] == Ledger.load(out / "ledger.json").digest()
    assert report["status"] == "finished"
    words = (out / "privacy_report.md").read_text()
    assert "add or remove one example" in words
    assert "cyclic Poisson: 2 groups in turn, rate 2 x 60/600" in words
    assert "Hyper-parameter tuning" in words
    with (out / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 1
    assert float(rows[0]["epsilon"]) == pytest.approx(report["epsilon"])
    assert "3.000 at delta 1e-05" in text
    # the folder alone gives the same figures again
    code, text, _ = command("eval", out, "--json")
    assert code == 0
    again = json.loads(text)
    assert again["metrics"]["accuracy"] == pytest.approx(float(rows[0]["accuracy"]))
    assert again["privacy"]["epsilon"] == report["epsilon"]


PLANS = {
    "fixed": [],
    "solved for": ["privacy.noise_multiplier=null", "privacy.target_epsilon=4"],
    "decaying": ["privacy.noise={name: AdaGaussian, decay_policy: Time, noise_decay_rate: 0.05}"],
    "adaptive clipping": ["privacy.clip={name: Gaussian, fraction_stddev: 0.2}"],
    "micro-batches": ["privacy.micro_batches=4"],
    "shuffled": ["privacy.sampling=shuffle", "privacy.accountant=zcdp"],
    "all at once": [
        "privacy.noise={name: AdaGaussian, decay_policy: Exp, noise_decay_rate: 0.02}",
        "privacy.clip={name: Gaussian, decay_policy: Geometric, fraction_stddev: 0.2}",
        "privacy.micro_batches=3",
        "privacy.sampling=shuffle",
    ],
}


@pytest.mark.sample(7)
@pytest.mark.parametrize("settings", PLANS.values(), ids=PLANS)
def test_the_planned_ledger_is_the_trained_ledger(command, tiny, tmp_path, settings):
    overrides = [part for setting in settings for part in ("--set", setting)]
    code, text, _ = command("train", tiny, *overrides, "--output", tmp_path / "run", "--json")
    assert code == 0
    trained = Ledger.load(tmp_path / "run" / "ledger.json")
    plan = plan_training(load_config(tiny, settings), num_examples=120)
    assert trained == plan.ledger()
    assert json.loads(text)["privacy"]["epsilon"] == plan.privacy_spent().epsilon


SPEED = [
    "performance.engine=loop",
    "performance.engine=vmap",
    "performance.physical_batch_size=5",
    "performance.in_memory=false",
    "performance={in_memory: false, workers: 1}",
    "performance.device=cpu",
    "performance.threads=1",
]


@pytest.mark.sample(7)
@pytest.mark.parametrize("setting", SPEED)
def test_the_performance_section_changes_no_epsilon(command, tiny, tmp_path, setting):
    code, text, error = command("train", tiny, "--set", setting, "--output", tmp_path / "run", "--json")
    assert code == 0, error
    planned = plan_training(load_config(tiny), num_examples=120)
    assert Ledger.load(tmp_path / "run" / "ledger.json").digest() == planned.ledger().digest()
    assert json.loads(text)["privacy"]["epsilon"] == planned.privacy_spent().epsilon


def test_the_same_seed_gives_the_same_first_weights_and_no_caveat(tiny):
    import torch

    from dpmodel.runs.build import build_training

    def weights(seed):
        task = build_training(load_config(tiny, [f"training.seed={seed}"])).task
        return torch.cat([value.flatten() for value in task.network.state_dict().values()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
    assert plan_training(load_config(tiny), 120).ledger().notes == ()


@pytest.mark.sample(2)
@pytest.mark.parametrize(
    ("setting", "note"),
    [
        ("privacy.noise.seed=7", "reproducible noise: no guarantee"),
        ("privacy.sampling_seed=7", "reproducible sampling: no guarantee"),
    ],
)
def test_a_seed_that_voids_the_guarantee_is_in_the_report(command, tiny, tmp_path, setting, note):
    code, _, _ = command("train", tiny, "--set", setting, "--output", tmp_path / "run", "--quiet")
    assert code == 0
    assert note in (tmp_path / "run" / "privacy_report.md").read_text()
    assert note in json.loads((tmp_path / "run" / "privacy_report.json").read_text())["notes"]


def test_a_baseline_without_noise_says_so_everywhere(command, tiny, tmp_path):
    overrides = ["--set", "privacy.noise=null", "--set", "privacy.noise_multiplier=null"]
    code, text, _ = command("train", tiny, *overrides, "--output", tmp_path / "run", "--quiet")
    assert code == 0
    assert "infinite" in text
    assert re.search(r"caveat\W+epsilon is infinite: this training is NOT private", text)
    assert "NOT differentially private" in (tmp_path / "run" / "privacy_report.md").read_text()
    assert json.loads((tmp_path / "run" / "privacy_report.json").read_text())["epsilon"] == "inf"


def test_a_delta_that_is_too_large_has_a_caveat_even_in_quiet_mode(command, tiny, tmp_path):
    code, text, _ = command("train", tiny, "--set", "privacy.delta=0.02", "--output", tmp_path / "run", "--quiet")
    assert code == 0
    assert re.search(r"caveat\W+delta 0\.02 is not below 1 / 120 examples", text)
    assert "caveat" in command("eval", tmp_path / "run")[1]
    assert "caveat" not in command("eval", tmp_path / "run", "--set", "privacy.delta=1e-4")[1]


def test_max_eps_stops_before_it_is_passed(command, tiny, tmp_path):
    plan = plan_training(load_config(tiny), 120)
    most = plan.privacy_spent(epochs=1).epsilon
    setting = f"privacy.monitor.max_eps={most}"
    code, text, _ = command("train", tiny, "--set", setting, "--output", tmp_path / "run", "--json")
    assert code == 0
    privacy = json.loads(text)["privacy"]
    assert 0 < privacy["steps"] < privacy["planned_steps"]
    assert privacy["epsilon"] <= most
    assert "max_eps=" in privacy["status"]
    ledger = Ledger.load(tmp_path / "run" / "ledger.json")
    one_more = ledger.copy().record(plan.release.event(ledger.total))
    assert privacy_spent(one_more, 1e-4).epsilon > most


def test_max_eps_below_the_first_step_is_refused_with_what_a_step_spends(command, tiny, tmp_path):
    plan = plan_training(load_config(tiny), 120)
    first = privacy_spent(plan.ledger(1), 1e-4).epsilon
    for share, expected in ((0.9, 2), (1.0, 0)):
        setting = f"privacy.monitor.max_eps={share * first}"
        code, _, error = command("train", tiny, "--set", setting, "--output", tmp_path / f"run{expected}", "--quiet")
        assert code == expected
    assert not (tmp_path / "run2").exists()
    code, _, error = command("train", tiny, "--set", f"privacy.monitor.max_eps={0.9 * first}", "--quiet")
    assert "not even one step fits" in error
    assert f"epsilon {epsilon_text(first)} at delta 0.0001" in error


def test_a_run_folder_in_use_is_refused_and_force_loses_nothing(command, tiny, tmp_path):
    out = tmp_path / "run"
    assert command("train", tiny, "--output", out, "--quiet")[0] == 0
    first = (out / "ledger.json").read_bytes()
    code, _, error = command("train", tiny, "--output", out, "--quiet")
    assert code == 2
    assert "is not empty" in error
    assert command("train", tiny, "--output", out, "--quiet", "--force")[0] == 0
    assert (tmp_path / "run.previous-1" / "ledger.json").read_bytes() == first


def test_a_plain_run_shows_progress_and_the_claim(command, tiny, tmp_path):
    code, text, _ = command("train", tiny, "--output", tmp_path / "run")
    assert code == 0
    for words in ("synthetic: 120 training examples, 3 classes", "multiplier 1.5", "test accuracy", "at delta 0.0001"):
        assert words in text


REFUSED = [
    ("training.batch_size=121", 2, ["training.batch_size", "larger than the data set of 120"]),
    ("privacy.micro_batches=5", 2, ["batch_size=12 must be a multiple of micro_batches=5", "micro_batches=4"]),
    ("data.num_examples=1000", 2, ["data.num_examples is 1000", "has 120"]),
    ("data.name=minst", 2, ["data: unknown data set 'minst'", "did you mean 'mnist'"]),
    ("data.limit=121", 2, ["data: limit is 121, but there are only 120 examples; use at most 120"]),
    ("data.foo=3", 2, ["has no argument 'foo'; it takes: num_train"]),
    ("data.nun_train=3", 2, ["has no argument 'nun_train'", "did you mean 'num_train'"]),
    ("network.name=lenet", 2, ["unknown network 'lenet'", "did you mean 'lenet5'"]),
    ("network={name: linear, num_classes: 2}", 2, ["it has 2 outputs", "3 classes", "set num_classes: 3"]),
    ("network={name: lenet5}", 2, ["cannot take inputs of shape (1, 4, 4)"]),
    ("network.hiden=3", 2, ["has no argument 'hiden'"]),
    ("loss.name=cross_entopy", 2, ["loss: unknown loss 'cross_entopy'", "did you mean 'cross_entropy'"]),
    ("optimizer.name=Adan", 2, ["optimizer: unknown optimizer 'Adan'", "did you mean 'Adam'"]),
    ("optimizer.lrr=3", 2, ["has no argument 'lrr'", "did you mean 'lr'"]),
    ("optimizer.lr=.nan", 2, ["optimizer 'SGD': lr must be a finite number, got nan"]),
    ("optimizer.lr=-3", 2, ["optimizer", "-3"]),
    ("optimizer.schedule={name: LinearLRR}", 2, ["optimizer.schedule", "did you mean 'LinearLR'"]),
    ("optimizer.schedule={name: LinearLR, interval: hour}", 2, ["optimizer.schedule", "'hour'"]),
    ("training.metrics=[acuracy]", 2, ["training.metrics", "did you mean 'accuracy'"]),
    ("callbacks=[{name: LosMonitor}]", 2, ["callbacks.0", "did you mean 'LossMonitor'"]),
    ("callbacks=[{name: EarlyStopping, monitor: foo}]", 2, ["metric 'foo'", "the metrics are: accuracy, loss"]),
    ("callbacks=[{name: EarlyStopping, patience: -1}]", 2, ["callbacks.0", "patience", "-1"]),
    ("privacy.accountant=zcdp", 2, ["privacy.accountant", "Poisson", "sampling='shuffle'"]),
    ("privacy.noise_multiplier=null", 2, ["give exactly one of", "got neither\n"]),
    ("privacy.noise.decay_rate=1", 2, ["privacy.noise", "decay_rate=1", "Gaussian"]),
    ("privacy.noise={name: AdaGaussian, decay_policy: Sine}", 2, ["privacy.noise", "'Sine'", "Time"]),
    ("privacy.clip={name: Gaussian, target_unclipped_quantile: 90}", 2, ["privacy.clip", "90", "did you mean 0.9?"]),
    ("privacy.clip={name: Gaussian, min_norm_bound: 3}", 2, ["norm_bound=0.5 must lie in"]),
    ("performance.physical_batch_size=autoo", 2, ["physical_batch_size must be an integer", "'auto' or null"]),
    ("performance.engine=lop", 2, ["performance.engine", "did you mean 'loop'"]),
    ("performance.device=gpu", 2, ["performance.device", "unknown device 'gpu'; did you mean 'cuda'?"]),
    ("optimizer.lr=fast", 2, ["optimizer 'SGD': lr must be a number, got 'fast'"]),
    ("privacy.noise=Laplace", 2, ["unknown noise mechanism 'Laplace'. Known: AdaGaussian"]),
    ("performance.device=tpu9", 2, ["performance.device", "'tpu9'", "use 'auto' or 'cpu'"]),
    ("data={name: npz, root: nowhere.npz}", 1, ["nowhere.npz"]),
    ("data={name: mnist, root: nowhere, download: false}", 1, ["train-images-idx3-ubyte", "nowhere", "data.root"]),
]


@pytest.mark.parametrize(("setting", "expected", "words"), REFUSED, ids=[row[0] for row in REFUSED])
def test_bad_input_is_refused_before_any_budget_is_spent(command, tiny, tmp_path, setting, expected, words):
    out = tmp_path / "run"
    code, _, error = command("train", tiny, "--set", setting, "--output", out, "--quiet")
    assert code == expected, error
    for text in words:
        assert text in error
    assert "Traceback" not in error
    assert not out.exists()


def test_without_a_folder_there_is_nothing_to_resume(command, tiny, tmp_path):
    code, _, error = command("train", tiny, "--output", tmp_path / "run", "--resume")
    assert code == 2
    assert "does not exist: there is nothing to resume; leave out --resume to start" in error


def test_a_closed_terminal_before_the_first_step_leaves_no_folder(tiny, tmp_path):
    from dpmodel.runs.train import train_from_config

    def gone(training, folder):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        train_from_config(load_config(tiny), tmp_path / "run", announce=gone)
    assert not (tmp_path / "run").exists()


def test_an_unreachable_target_is_refused_with_the_smallest_reachable_one(command, tiny, tmp_path):
    settings = [
        "privacy.noise_multiplier=null",
        "privacy.target_epsilon=0.5",
        "privacy.clip={name: Gaussian, fraction_stddev: 0.01}",
    ]
    overrides = [part for setting in settings for part in ("--set", setting)]
    code, _, error = command("train", tiny, *overrides, "--output", tmp_path / "run")
    assert code == 2
    assert "privacy.target_epsilon" in error
    assert "no noise multiplier meets epsilon 0.5" in error
    assert "epsilon is still" in error
    found = re.search(r"whose fraction_stddev is 0\.01: set privacy\.clip\.fraction_stddev .* to ([\d.]+), with", error)
    enough = f"privacy.clip.fraction_stddev={found[1]}"
    code, text, _ = command("train", tiny, *overrides, "--set", enough, "--output", tmp_path / "run", "--json")
    assert code == 0
    assert json.loads(text)["privacy"]["epsilon"] <= 0.5


def test_batchnorm_is_refused_with_its_name_and_remedy(command, tiny, tmp_path, monkeypatch):
    (tmp_path / "batchnorm_net.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 3))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "run"
    code, _, error = command("train", tiny, "--set", "network={module: 'batchnorm_net:Net'}", "--output", out)
    assert code == 2
    assert "BatchNorm" in error
    assert "GroupNorm" in error
    assert not out.exists()


def test_a_failure_while_training_leaves_ledger_and_report(tiny, tmp_path):
    from dpmodel.callbacks import Callback
    from dpmodel.runs.train import train_from_config

    class Broken(Callback):
        def on_train_step_end(self, run):
            if run.step == 5:
                raise RuntimeError("the disk is on fire")

    with pytest.raises(RuntimeError, match="on fire"):
        train_from_config(load_config(tiny), tmp_path / "run", callbacks=[Broken()])
    folder = RunFolder(tmp_path / "run")
    assert Ledger.load(folder.ledger).total == 5
    report = json.loads(folder.report.read_text())
    assert report["status"] == "failed: RuntimeError: the disk is on fire"
    assert report["steps"] == 5


def _start(tiny, out, *overrides, **options):
    command = [
        sys.executable,
        "-m",
        "dpmodel",
        "train",
        str(tiny),
        "--output",
        str(out),
        "--set",
        "training.epochs=100000",
        *(part for override in overrides for part in ("--set", override)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )
    deadline = time.monotonic() + 60
    while not (out / "history.csv").exists():
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupt_finishes_the_step_and_writes_everything(tiny, tmp_path, number):
    out = tmp_path / "run"
    process = _start(tiny, out)
    process.send_signal(number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 1)
    assert f"interrupted ({number.name})" in text
    assert {path.name for path in out.iterdir()} == (FILES - {"training_curve.png"}) | STATE
    assert "repeat the command with --resume to continue" in text
    report = json.loads((out / "privacy_report.json").read_text())
    assert report["steps"] == Ledger.load(out / "ledger.json").total
    assert 0 < report["steps"] < report["planned_steps"]
    assert f"interrupted ({number.name})" in report["status"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_to_the_workers_too_finishes_the_step_and_writes_everything(tiny, tmp_path, number):
    out = tmp_path / "run"
    process = _start(tiny, out, "performance.workers=1", "performance.in_memory=false", start_new_session=True)
    os.killpg(process.pid, number)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == (143 if number == signal.SIGTERM else 1), text
    assert "Traceback" not in text
    assert "repeat the command with --resume to continue" in text
    report = json.loads((out / "privacy_report.json").read_text())
    assert report["steps"] == Ledger.load(out / "ledger.json").total > 0


@pytest.mark.slow
def test_a_killed_training_is_charged_for_at_least_the_steps_that_it_made(tiny, tmp_path):
    out = tmp_path / "run"
    process = _start(tiny, out)
    process.kill()
    process.communicate(timeout=60)
    with (out / "history.csv").open() as stream:
        steps_done = int(list(csv.DictReader(stream))[-1]["step"])
    ledger = Ledger.load(out / "ledger.json")
    assert ledger.total >= steps_done
    assert ledger.total % 10 == 0


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["output", "output and error"])
def test_a_training_finishes_when_the_reader_of_its_output_is_gone(tiny, tmp_path, both):
    out = tmp_path / "run"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-m", "dpmodel", "train", str(tiny), "--output", str(out)],
        stdout=writer,
        stderr=writer if both else subprocess.PIPE,
        check=False,
    )
    os.close(writer)
    assert ended.returncode == 0
    assert not ended.stderr
    assert json.loads((out / "privacy_report.json").read_text())["status"] == "finished"


def test_a_callback_that_cannot_write_names_the_setting(command, tiny, tmp_path):
    (tmp_path / "file").write_text("")
    path = tmp_path / "file" / "history.csv"
    callbacks = f"callbacks=[{{name: CSVLogger, path: {path}}}]"
    code, _, error = command("train", tiny, "--set", callbacks, "--output", tmp_path / "run", "--quiet")
    assert code == 2
    assert "callbacks.0.path: " in error
    assert "cannot be written" in error


def test_an_error_about_an_unrelated_file_names_no_callback(tiny):
    from dpmodel.config.faults import locating_file_errors

    config = load_config(tiny, ["callbacks=[{name: EarlyStopping, metric: accuracy}]"])
    with pytest.raises(FileNotFoundError), locating_file_errors(config):
        raise FileNotFoundError(2, "gone", str(Path.cwd()))


@pytest.mark.sample(2)
@pytest.mark.parametrize("columns", ["30", "60"])
def test_the_path_of_the_report_is_complete_in_a_narrow_terminal(command, tiny, tmp_path, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    out = tmp_path / ("a_long_name_" * 5)
    text = command("train", tiny, "--output", out)[1]
    assert f"report: {out / 'privacy_report.md'}" in text
    assert str(out) in command("eval", out)[1].splitlines()
