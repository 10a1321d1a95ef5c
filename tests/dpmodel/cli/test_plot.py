import json
import shutil

import matplotlib.colors
import matplotlib.image
import pytest

from dpmodel.cli.application import run
from dpmodel.config import make_config
from dpmodel.figures import FIGURES
from dpmodel.figures.strand import strand_of_run
from dpmodel.runs.folder import RESERVED_NOTE
from dpmodel.runs.train import train_from_config
from dpmodel.training.history import History
from monitors import Ledger, RDPAccountant


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


def test_one_run_is_drawn_into_its_own_folder(runs, capsys):
    assert run(["plot", str(runs / "quiet"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    names = {f"{name}.{kind}" for name in (*FIGURES, "training_curve") for kind in ("png", "svg")}
    assert {path.name for path in (runs / "quiet/figures").iterdir()} == names
    assert len(written) == len(names)


def test_format_size_and_style_are_those_that_are_asked_for(runs, tmp_path):
    question = ["plot", str(runs / "quiet"), "-o", str(tmp_path), "--format", "png", "--format", "pdf"]
    assert run([*question, "--size", "3.4", "--style", "dark"]) == 0
    assert {path.suffix for path in tmp_path.iterdir()} == {".png", ".pdf"}
    for path in tmp_path.glob("*.png"):
        pixels = matplotlib.image.imread(path)
        assert pixels.shape[1] == pytest.approx(3.4 * 150, abs=1)
        assert matplotlib.colors.to_hex(pixels[0, 0]) == "#0d1117"


def test_a_run_without_a_test_metric_is_drawn_without_the_figure_of_it(runs, tmp_path, capsys):
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


def test_the_picture_of_a_run_has_epsilon_and_norm_bound_after_each_step(tmp_path):
    clip = {"name": "Gaussian", "learning_rate": 0.3, "fraction_stddev": 0.2}
    trained = train_from_config(small(1.0, ["accuracy"], {"clip": clip}), tmp_path / "run")
    strand = strand_of_run(tmp_path / "run")
    ledger, accountant = Ledger.load(tmp_path / "run/ledger.json"), RDPAccountant()
    assert strand.privacy.steps == tuple(range(7))
    for step, epsilon in zip(strand.privacy.steps[1:], strand.privacy.epsilons[1:], strict=True):
        assert epsilon == accountant.epsilon(ledger.head(step), 1e-5)
    kept = strand.histories[0].norm_bounds
    assert kept == trained.history.norm_bounds
    assert [step for step, _ in kept] == list(range(6))
    bounds = dict(kept)
    assert bounds[0] == 1.0
    assert bounds[3] == trained.history["norm_bound"][0]
    (line,) = FIGURES["noise_and_bound_against_step"]([strand], "", None).axes[1].get_lines()
    assert line.get_drawstyle() == "steps-post"
    assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == {**bounds, 6: trained.history["norm_bound"][1]}


def test_the_steps_that_a_broken_off_run_is_charged_for_are_drawn(runs, tmp_path):
    shutil.copytree(runs / "loud", tmp_path / "run")
    (tmp_path / "run/privacy_report.json").unlink()
    ledger = Ledger.load(tmp_path / "run/ledger.json")
    ((event, _),) = ledger.rows
    ledger.record(event, 3).add_note(RESERVED_NOTE)
    ledger.save(tmp_path / "run/ledger.json")
    privacy = strand_of_run(tmp_path / "run").privacy
    assert privacy.steps[-1] == 9
    assert privacy.epsilons[-1] == RDPAccountant().epsilon(ledger, 1e-5)
    assert privacy.epsilons[6] == RDPAccountant().epsilon(ledger.head(6), 1e-5)


def test_several_runs_share_the_figures(runs, tmp_path, capsys):
    assert run(["plot", str(runs / "quiet"), str(runs / "loud"), "-o", str(tmp_path)]) == 0
    assert "drawn:" in capsys.readouterr().out
    assert {"training_curve_quiet.png", "training_curve_loud.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("names", "metric"), [(["loud"], "f1"), (["loud", "quiet"], "accuracy"), (["lossy", "quiet"], "valid_loss")]
)
def test_the_first_metric_that_all_runs_have_is_drawn(runs, tmp_path, monkeypatch, names, metric):
    drawn = []
    monkeypatch.setattr("dpmodel.figures.runs.draw_all", lambda strands, metric, size: drawn.append(metric) or {})
    assert run(["plot", *(str(runs / name) for name in names), "-o", str(tmp_path)]) == 0
    assert drawn == [metric]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{runs}/nowhere"], "does not exist"),
        (["{runs}/quiet", "{runs}/loud"], "say where the pictures go"),
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
