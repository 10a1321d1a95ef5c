import copy
import json
from pathlib import Path

import pytest
import yaml

from dpmodel.cli.application import run
from dpmodel.compare import load_comparison

VALUES = {
    "base": {
        "data": {"name": "synthetic", "num_train": 120, "num_test": 60, "num_classes": 3, "shape": [1, 4, 4]},
        "network": {"name": "linear"},
        "optimizer": {"name": "SGD", "lr": 0.5},
        "privacy": {"noise_multiplier": 1.0},
        "training": {"epochs": 1, "batch_size": 20},
        "output": {"curve": False},
    },
    "target": {"epsilon": 3.0, "accountant": "rdp"},
    "seeds": [1],
    "variants": [{"name": "fixed"}, {"name": "tight", "set": {"privacy.norm_bound": 0.5}}],
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(VALUES, sort_keys=False))
    return path


@pytest.mark.slow
def test_compare_prints_one_json_object_and_a_second_call_reuses_everything(file, tmp_path, capsys):
    command = ["compare", str(file), "--output", str(tmp_path / "out"), "--docs", str(tmp_path / "t.md"), "--json"]
    assert run(command) == 0
    first = json.loads(capsys.readouterr().out)
    assert (first["ok"], first["reused"], first["missing"]) == (True, 0, 0)
    assert [row["name"] for row in first["comparison"]["variants"]] == ["fixed", "tight"]
    assert (tmp_path / "t.md").read_text() == (tmp_path / "out/comparison.md").read_text()
    assert (tmp_path / "t.md").stat().st_mode == file.stat().st_mode
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "out").rglob("*") if path.is_file()} == {0}
    assert run([*command, "--seeds", "1,2"]) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["reused"] == 2
    assert [row["summary"]["count"] for row in second["comparison"]["variants"]] == [2, 2]


@pytest.mark.slow
def test_compare_for_people_shows_table_caveats_and_report(file, tmp_path, capsys):
    assert run(["compare", str(file), "-o", str(tmp_path / "out"), "--seeds", "1", "--epsilon", "1", "-q"]) == 0
    out = capsys.readouterr().out
    assert "epsilon 1 at delta 1e-05" in out
    assert "not accounted as one release" in out
    assert "report.html" in out


def test_a_dry_run_solves_and_trains_nothing(file, tmp_path, capsys):
    assert run(["compare", str(file), "--dry-run", "--json", "-o", str(tmp_path / "out")]) == 0
    stated = json.loads(capsys.readouterr().out)
    assert all(2.997 <= row["epsilon"] <= 3.0 for row in stated["variants"])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({"seeds": [1, 1]}, [], "seeds: 1 is given twice"),
        ({"variants": [{"name": "a"}, {"name": "A"}]}, [], "is already the name of a variant"),
        ({"variants": [{"name": "a"}, {"name": "b", "set": {"privacy.norm": 1}}]}, [], "unknown key 'privacy.norm'"),
        ({}, ["--epsilon", "-1"], "target.epsilon must be a positive finite number"),
        ({}, ["--set", "training.epoch=2"], "did you mean 'epochs'"),
        ({}, ["--seeds", "one"], "integers separated by commas"),
    ],
)
def test_bad_input_ends_with_code_2_before_anything_is_written(tmp_path, capsys, change, options, message):
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump({**copy.deepcopy(VALUES), **change}, sort_keys=False))
    assert run(["compare", str(path), "-o", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


COMPARISONS = sorted((Path(__file__).parents[3] / "configs").glob("compare_*.yaml"))


@pytest.mark.parametrize("path", COMPARISONS, ids=lambda path: path.stem)
def test_the_bundled_comparisons_are_valid(path):
    comparison = load_comparison(path)
    assert len(comparison.variants) >= 3
    assert len(comparison.definition.seeds) >= 3
    assert comparison.definition.baseline_name == comparison.variants[0].name
    assert f"dpmodel compare configs/{path.name}" in path.read_text()
