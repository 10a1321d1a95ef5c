import json
import shutil

import matplotlib.colors
import matplotlib.image
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from dpmodel import ClipMechanismsFactory, DPModel, NoiseMechanismsFactory, poisson_loader
from dpmodel.cli.application import run
from dpmodel.config import make_config
from dpmodel.figures import FIGURES
from dpmodel.figures.curve import curve_of_run
from dpmodel.runs.train import train_from_config
from dpmodel.training.history import History
from monitors import Ledger, RDPAccountant
from monitors.journal import ReleaseJournal


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"quiet": (1.0, ["accuracy", "loss"]), "loud": (3.0, ["f1", "accuracy"]), "lossy": (1.0, ["loss", "auroc"])}
    for name, (multiplier, metrics) in kinds.items():
        train_from_config(small(multiplier, metrics), folder / name)
    return folder


def small(multiplier, metrics, privacy=None):
    return make_config(
        {
            "data": {"name": "synthetic", "num_train": 60, "num_test": 30, "num_classes": 3, "shape": [1, 4, 4]},
            "network": {"name": "linear"},
            "optimizer": {"name": "SGD", "lr": 0.5},
            "privacy": {"noise_multiplier": multiplier, **(privacy or {})},
            "training": {"epochs": 2, "batch_size": 20, "metrics": metrics},
            "output": {"curve": False},
        }
    )


@pytest.mark.slow
def test_one_run_is_drawn_into_its_own_folder(runs, capsys):
    assert run(["plot", str(runs / "quiet"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    names = {f"{name}.{kind}" for name in (*FIGURES, "training_curve") for kind in ("png", "svg")}
    assert {path.name for path in (runs / "quiet/figures").iterdir()} == names
    assert {path.stat().st_mode & 0o777 for path in (runs / "quiet/figures").iterdir()} == {0o600}
    assert len(written) == len(names)


@pytest.mark.slow
def test_format_size_and_style_are_as_requested(runs, tmp_path):
    question = ["plot", str(runs / "quiet"), "-o", str(tmp_path), "--format", "png", "--format", "pdf"]
    assert run([*question, "--size", "3.4", "--style", "dark"]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf"}
    modes = {path.stat().st_mode for path in tmp_path.iterdir()}
    (tmp_path / "usual").touch()
    assert modes == {(tmp_path / "usual").stat().st_mode}
    for path in tmp_path.glob("*.png"):
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] == pytest.approx(3.4 * 150, abs=1)
        assert matplotlib.colors.to_hex(pixels[0, 0]) == "#0d1117"


@pytest.mark.slow
def test_a_run_without_a_test_metric_is_drawn_without_its_figure(runs, tmp_path, capsys):
    shutil.copytree(runs / "loud", tmp_path / "run")
    History.from_dict(without_metrics(History.from_csv(tmp_path / "run/history.csv"))).to_csv(
        tmp_path / "run/history.csv"
    )
    assert run(["plot", str(tmp_path / "run")]) == 0
    assert "not drawn: metric_against_epsilon" in capsys.readouterr().out
    drawn = {path.stem for path in (tmp_path / "run/figures").iterdir()}
    assert drawn == {"epsilon_against_step", "noise_and_bound_against_step", "training_curve"}


def without_metrics(history):
    values = history.to_dict()
    return {**values, "epochs": [{**row, "metrics": {}} for row in values["epochs"]]}


def test_the_figure_of_a_run_has_epsilon_and_norm_bound_after_each_step(tmp_path):
    clip = {"name": "Gaussian", "learning_rate": 0.3, "fraction_stddev": 0.2}
    trained = train_from_config(small(1.0, ["accuracy"], {"clip": clip}), tmp_path / "run")
    curve = curve_of_run(tmp_path / "run")
    ledger, accountant = Ledger.load(tmp_path / "run/ledger.json"), RDPAccountant()
    assert curve.privacy.steps == tuple(range(7))
    for step, epsilon in zip(curve.privacy.steps[1:], curve.privacy.epsilons[1:], strict=True):
        assert epsilon == accountant.epsilon(ledger.head(step), 1e-5)
    kept = curve.histories[0].norm_bounds
    assert kept == trained.history.norm_bounds
    assert [step for step, _ in kept] == list(range(6))
    bounds = dict(kept)
    assert bounds[0] == 1.0
    assert bounds[3] == trained.history["norm_bound"][0]
    (line,) = FIGURES["noise_and_bound_against_step"]([curve], "", None).axes[1].get_lines()
    assert line.get_drawstyle() == "steps-post"
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == {**bounds, 6: trained.history["norm_bound"][1]}


def test_all_charged_steps_of_an_interrupted_run_are_drawn(runs, tmp_path):
    shutil.copytree(runs / "loud", tmp_path / "run")
    (tmp_path / "run/privacy_report.json").unlink()
    ((event, _),) = Ledger.load(tmp_path / "run/ledger.json").rows
    journal = ReleaseJournal(tmp_path / "run/releases.jsonl")
    journal.begin(6)
    journal.announce(6, [event] * 3)
    ledger = Ledger.load(tmp_path / "run/ledger.json")
    privacy = curve_of_run(tmp_path / "run").privacy
    assert privacy.steps[-1] == 9
    assert privacy.epsilons[-1] == RDPAccountant().epsilon(ledger, 1e-5)
    assert privacy.epsilons[6] == RDPAccountant().epsilon(ledger.head(6), 1e-5)


@pytest.mark.slow
def test_several_runs_share_the_figures(runs, tmp_path, capsys):
    assert run(["plot", str(runs / "quiet"), str(runs / "loud"), "-o", str(tmp_path)]) == 0
    assert "figure:" in capsys.readouterr().out
    assert {"training_curve_quiet.png", "training_curve_loud.png"} <= {path.name for path in tmp_path.iterdir()}


def model_in_python(**options):
    network = nn.Linear(4, 2)
    clip = ClipMechanismsFactory.create("Gaussian", learning_rate=0.3, fraction_stddev=0.2)
    noise = NoiseMechanismsFactory.create("AdaGaussian", initial_noise_multiplier=1.5, noise_decay_rate=0.05)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    return DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, clip_mech=clip, **options)


def data_in_python(examples=60):
    return TensorDataset(torch.randn(examples, 4), torch.randint(0, 2, (examples,)))


@pytest.mark.slow
def test_a_training_in_python_is_drawn_from_its_ledger_and_schedule(tmp_path):
    model = model_in_python(metrics="accuracy", micro_batches=5)
    loader = poisson_loader(data_in_python(), batch_size=10)
    for number in ("first", "second"):
        model.fit(loader, 2, valid_loader=data_in_python(20), output=tmp_path / number)
        curve = curve_of_run(tmp_path / number)
        done = curve.privacy.steps[-1]
        assert done == model.steps_done
        assert curve.multiplier_steps == tuple(range(done))
        expected = [model.noise_mech.noise_multiplier(step) for step in range(done)]
        assert curve.multipliers == pytest.approx(expected)
        assert curve.privacy.epsilons[-1] == model.privacy_spent(1e-5).epsilon
        assert curve.initial_norm_bound == model.report().mechanism["initial_norm_bound"]
    assert run(["plot", str(tmp_path / "first"), str(tmp_path / "second"), "-o", str(tmp_path / "both")]) == 0
    names = {*FIGURES, "training_curve_first", "training_curve_second"}
    assert {path.stem for path in (tmp_path / "both").iterdir()} == names


@pytest.mark.slow
def test_a_schedule_that_the_ledger_does_not_state_is_drawn_at_the_ends_of_the_epochs(tmp_path):
    model_in_python().fit(poisson_loader(data_in_python(), batch_size=10), 2, output=tmp_path / "run")
    history = History.from_csv(tmp_path / "run/history.csv").to_dict()
    history["epochs"] = [{**row, "noise_multiplier": 2.0} for row in history["epochs"]]
    History.from_dict(history).to_csv(tmp_path / "run/history.csv")
    curve = curve_of_run(tmp_path / "run")
    assert curve.multiplier_steps == (0, 5, 11)
    assert curve.multipliers == (1.5, 2.0, 2.0)


@pytest.mark.slow
def test_trainings_in_python_without_validation_share_the_other_figures(tmp_path, capsys):
    for name in ("one", "other"):
        model_in_python().fit(poisson_loader(data_in_python(), batch_size=10), output=tmp_path / name)
    assert run(["plot", str(tmp_path / "one"), str(tmp_path / "other"), "-o", str(tmp_path / "both")]) == 0
    assert "not drawn: metric_against_epsilon" in capsys.readouterr().out
    assert (tmp_path / "both/epsilon_against_step.png").is_file()


@pytest.mark.slow
def test_a_training_in_python_without_a_report_is_refused(tmp_path, capsys):
    model_in_python().fit(poisson_loader(data_in_python(), batch_size=10), output=tmp_path / "run")
    (tmp_path / "run/privacy_report.json").unlink()
    assert run(["plot", str(tmp_path / "run")]) == 2
    assert "privacy_report.json that fit(output=...) writes when the training ends" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("names", "metric"), [(["loud"], "f1"), (["loud", "quiet"], "accuracy"), (["lossy", "quiet"], "valid_loss")]
)
@pytest.mark.sample(3)
def test_the_first_metric_that_all_runs_have_is_drawn(runs, tmp_path, monkeypatch, names, metric):
    drawn = []
    monkeypatch.setattr("dpmodel.figures.runs.draw_all", lambda curves, metric, size: drawn.append(metric) or {})
    assert run(["plot", *(str(runs / name) for name in names), "-o", str(tmp_path)]) == 0
    assert drawn == [metric]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/nowhere"], "does not exist"),
        (["{runs}/quiet", "{runs}/loud"], "choose a folder for the figures"),
        (["{runs}/quiet", "{runs}/quiet", "-o", "{runs}/out"], "given twice"),
        (["{runs}/quiet", "--metric", "acuracy"], "did you mean 'accuracy'"),
        (["{runs}/loud", "{runs}/lossy", "-o", "{runs}/out"], "no test metric in common (loud: f1, accuracy; lossy: "),
        (["{runs}/quiet", "--style", "drak"], "did you mean 'dark'"),
        (["{runs}/quiet", "--format", "pgn"], "did you mean 'png'"),
        (["{runs}/quiet", "--size", "340"], "width of the figure in inches, from 2.5 to 40, got 340"),
        (["{runs}/quiet", "--size", "-1"], "size must be a positive finite number"),
    ],
)
def test_what_cannot_be_drawn_is_refused_with_code_2(runs, capsys, arguments, message):
    assert run(["plot", *(text.format(runs=runs) for text in arguments)]) == 2
    assert message in capsys.readouterr().err
