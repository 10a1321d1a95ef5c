import json

import pytest

from dpmodel.cli.application import run
from dpmodel.config import make_config
from dpmodel.figures import FIGURES
from dpmodel.job import train_from_config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    kinds = {"quiet": (1.0, ["accuracy", "loss"]), "loud": (3.0, ["f1", "accuracy"]), "lossy": (1.0, ["loss", "auroc"])}
    for name, (multiplier, metrics) in kinds.items():
        config = make_config(
            {
                "data": {"name": "synthetic", "num_train": 60, "num_test": 30, "num_classes": 3, "shape": [1, 4, 4]},
                "network": {"name": "linear"},
                "optimizer": {"name": "SGD", "lr": 0.5},
                "privacy": {"noise_multiplier": multiplier},
                "training": {"epochs": 2, "batch_size": 20, "metrics": metrics},
                "output": {"curve": False},
            }
        )
        train_from_config(config, folder / name)
    return folder


def test_one_run_is_drawn_into_its_own_folder(runs, capsys):
    assert run(["plot", str(runs / "quiet"), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)["written"]
    names = {f"{name}.{kind}" for name in (*FIGURES, "training_curve") for kind in ("png", "svg")}
    assert {path.name for path in (runs / "quiet/figures").iterdir()} == names
    assert len(written) == len(names)


def test_several_runs_share_the_figures(runs, tmp_path, capsys):
    assert run(["plot", str(runs / "quiet"), str(runs / "loud"), "-o", str(tmp_path)]) == 0
    assert "drawn:" in capsys.readouterr().out
    assert {"training_curve_quiet.png", "training_curve_loud.png"} <= {path.name for path in tmp_path.iterdir()}


@pytest.mark.parametrize(
    ("names", "metric"), [(["loud"], "f1"), (["loud", "quiet"], "accuracy"), (["lossy", "quiet"], "valid_loss")]
)
def test_the_first_metric_that_all_runs_have_is_drawn(runs, tmp_path, monkeypatch, names, metric):
    drawn = []
    monkeypatch.setattr("dpmodel.figures.runs.draw_all", lambda strands, metric: drawn.append(metric) or {})
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
    ],
)
def test_what_cannot_be_drawn_is_refused_with_code_2(runs, capsys, arguments, message):
    assert run(["plot", *(text.format(runs=runs) for text in arguments)]) == 2
    assert message in capsys.readouterr().err
