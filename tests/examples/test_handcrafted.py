"""The rows of the table of handcrafted features, and the epsilon of the published settings."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from dpmodel.config import load_config
from monitors import privacy_spent

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    path = ROOT / "examples" / "handcrafted.py"
    spec = importlib.util.spec_from_file_location("handcrafted", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "handcrafted", module)
    spec.loader.exec_module(module)
    return module


def test_each_row_has_a_configuration_at_its_epsilon(script):
    assert set(script.ROWS) == {path.stem for path in script.CONFIGS.glob("*.yaml")}
    for name in script.ROWS:
        privacy = load_config(script.CONFIGS / f"{name}.yaml").privacy
        assert (privacy.target_epsilon, privacy.delta, privacy.accountant) == (3.0, 1e-5, "pld")


@pytest.mark.parametrize(
    ("name", "epsilon"),
    [
        ("mnist_cnn", 2.36),
        ("mnist_scattering_linear", 2.38),
        ("mnist_scattering_cnn", 3.13),  # above the stated 3
        ("fashion_mnist_cnn", 2.38),
        ("cifar10_cnn", 2.37),
        ("cifar10_scattering_cnn", 2.38),
    ],
)
def test_the_published_settings_spend_another_epsilon_than_stated(script, name, epsilon):
    assert privacy_spent(script.ROWS[name].ledger(), 1e-5, "pld").epsilon == pytest.approx(epsilon, abs=0.005)


@pytest.mark.slow
def test_rows_are_trained_once_and_written_to_a_page(script, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(script, "ROWS", {"mnist_cnn": script.ROWS["mnist_cnn"]})
    page = tmp_path / "page.md"
    small = ["data.limit=300", "data.test_limit=100", "training.batch_size=60", "training.epochs=1"]
    arguments = ["--seeds", "2", "--output", str(tmp_path / "runs"), "--docs", str(page)]
    arguments += [part for setting in small for part in ("--set", setting)]
    script.main(arguments)
    first = page.read_text()
    assert "| mnist_cnn | " in first
    assert "| 98.1 | 3.000 | 2.36 |" in first
    assert "training in" in capsys.readouterr().out
    script.main(arguments)
    assert "training in" not in capsys.readouterr().out
    assert page.read_text() == first


@pytest.mark.slow
def test_another_epsilon_is_not_compared_with_what_was_published(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script, "ROWS", {"mnist_cnn": script.ROWS["mnist_cnn"]})
    page = tmp_path / "page.md"
    small = ["data.limit=300", "data.test_limit=100", "training.batch_size=60", "training.epochs=1"]
    arguments = ["--seeds", "1", "--epsilon", "1", "--output", str(tmp_path / "runs"), "--docs", str(page)]
    script.main([*arguments, *(part for setting in small for part in ("--set", setting))])
    text = page.read_text()
    assert "--seeds 1 --epsilon 1 --set training.batch_size=60 --set training.epochs=1`" in text
    assert "at most 1. No epoch was selected" in text
    assert "ublished" not in text
    assert text.splitlines()[-1].endswith("| 1.000 |")


def test_an_unknown_row_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--only", "imagenet"])
    assert "no row contains 'imagenet'" in capsys.readouterr().err
