import json
import shutil
from pathlib import Path

import pytest

from dpmodel import card_of_run, load_config
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.report.fields import MISSING
from monitors import Ledger
from monitors.errors import ConfigError

ALL = {
    "privacy_report.md",
    "privacy_report.json",
    "privacy_report.html",
    "model_card.md",
    "registry.jsonl",
    "registry.csv",
    "privacy_card.png",
    "privacy_loss.json",
}


@pytest.fixture
def trained(trained_once, tmp_path):
    """A copy of a run folder, which tests may change."""
    return Path(shutil.copytree(trained_once, tmp_path / "run"))


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def audit_report(folder, **changes):
    values = {
        "format": 1,
        "ok": True,
        "epsilon": 4.0,
        "delta": 1e-5,
        "lines": [{"section": "bounds", "name": "epsilon, one run", "value": 0.61}],
        "run_ledger_digest": RunFolder(folder).read_ledger().digest(),
    }
    return json.dumps({**values, **changes})


def test_the_card_is_the_report_of_the_folder_and_changes_nothing(command, trained):
    before = contents(trained)
    code, text, _ = command("card", trained)
    assert code == 0
    assert text == (trained / "privacy_report.md").read_text()
    assert contents(trained) == before


def test_all_forms_are_written(command, trained, tmp_path):
    code, text, _ = command("card", trained, "-o", tmp_path / "card")
    assert code == 0
    assert {path.name for path in (tmp_path / "card").iterdir()} == ALL
    assert {Path(line).name for line in text.split()} == ALL
    page = (tmp_path / "card" / "privacy_report.html").read_text()
    assert "<svg" in page
    losses = json.loads((tmp_path / "card" / "privacy_loss.json").read_text())
    assert losses["ledger_digest"] == RunFolder(trained).read_ledger().digest()
    assert (trained / "privacy_loss.json").read_bytes() == (tmp_path / "card" / "privacy_loss.json").read_bytes()


def test_a_form_is_chosen_by_name(command, trained, tmp_path):
    code, text, _ = command("card", trained, "--format", "huggingface")
    assert code == 0
    assert text.startswith("---\nlibrary_name: dpmodel\n")
    assert json.loads(command("card", trained, "--json")[1])["card"]["curve"]["mu"] > 0
    assert json.loads(command("card", trained, "--format", "registry")[1])["trust_model"] == "central"
    code, text, _ = command("card", trained, "-o", tmp_path / "card", "--format", "registry", "--json")
    assert {path.name for path in (tmp_path / "card").iterdir()} == {
        "registry.jsonl",
        "privacy_card.png",
        "privacy_loss.json",
    }
    assert json.loads(text)["guarantee"] == "holds"


def test_what_is_declared_afterwards_stands_on_the_card(command, trained):
    code, text, _ = command("card", trained, "--set", "card.contributions_per_person=2", "--set", "privacy.delta=1e-6")
    assert code == 0
    assert "at most 2 examples per person" in text
    assert "at delta 1e-06 (group privacy)" in text


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--set", "training.epochs=9"], "training.epochs is a fact of the training"),
        (["--set", "privacy.sampling=shuffle"], "privacy.sampling is a fact of the training"),
        (["--set", "card.nothing=1"], "nothing"),
        (["--format", "markdwn"], "did you mean 'markdown'"),
        (["--format", "json", "--format", "html"], "2 formats cannot be printed at once"),
        (["--set", "card.audit=nowhere"], "is not a report of dpmodel audit"),
        (
            ["--set", "card.subgroups={file: nowhere.csv, column: a}", "--set", "card.evaluation_data=public"],
            "nowhere.csv cannot be read",
        ),
    ],
)
def test_bad_usage_is_refused_before_anything_is_written(command, trained, tmp_path, arguments, words):
    code, _, error = command(
        "card", trained, *arguments, *(() if "--format" in arguments else ("-o", tmp_path / "new"))
    )
    assert code == 2
    assert words in error
    assert not (tmp_path / "new").exists()


def test_a_card_is_never_written_into_a_run_folder(command, trained):
    before = contents(trained)
    for place in (trained, trained / "card"):
        code, _, error = command("card", trained, "-o", place)
        assert code == 2
        assert "is a run folder, which a card does not change" in error
    assert contents(trained) == before


def test_folders_without_a_report_or_training_are_refused(command, trained, tmp_path):
    (trained / "privacy_report.json").unlink()
    code, _, error = command("card", trained)
    assert code == 2
    assert "a training writes its report when it ends" in error
    assert command("card", tmp_path / "nothing")[0] == 2


def test_a_changed_ledger_is_refused(command, trained):
    path = trained / "ledger.json"
    path.write_text(path.read_text().replace("1.5", "9.5"))
    code, _, error = command("card", trained)
    assert code == 1
    assert "was changed after it was written" in error


def test_metrics_are_published_only_if_declared_public(command, trained):
    metric = "accuracy"
    assert "omitted: the evaluation data are not declared public" in command("card", trained)[1]
    shown = command("card", trained, "--set", "card.evaluation_data=public")[1]
    assert f"| Measured after the training | {metric} " in shown


def test_accuracy_by_subgroup_is_measured_on_the_evaluation_data(command, trained, tmp_path):
    accuracy = json.loads(command("eval", trained, "--json")[1])["metrics"]["accuracy"]
    examples = json.loads((trained / "test_data.json").read_text())["examples"]
    file = tmp_path / "groups.csv"
    file.write_text("id,group\n" + "".join(f"{row},{'ab'[row % 3 == 0]}\n" for row in range(examples)))
    public = ["--set", "card.evaluation_data=public"]
    given = [*public, "--set", f"card.subgroups={{file: {file}, column: group}}"]
    groups = json.loads(command("card", trained, "--json", *given)[1])["card"]["utility"]["subgroups"]
    assert [one["group"] for one in groups] == ["a", "b"]
    assert sum(one["examples"] for one in groups) == examples
    mean = sum(one["accuracy"] * one["examples"] for one in groups) / examples
    assert mean == pytest.approx(accuracy, abs=1e-6)
    file.write_text("group\na\n")
    code, _, error = command("card", trained, *given)
    assert code == 2
    assert "has 1 lines, but there are" in error
    wrong = [*public, "--set", f"card.subgroups={{file: {file}, column: sex}}"]
    assert "has no column 'sex'; it has group" in command("card", trained, *wrong)[2]


@pytest.mark.slow
def test_an_audit_counts_only_with_the_digest_of_the_ledger(command, trained):
    assert "no report of dpmodel audit was found" in command("card", trained)[1]
    found = trained.with_name("run-audit")
    found.mkdir()
    file = found / "audit.json"
    file.write_text(audit_report(trained))
    text = command("card", trained)[1]
    assert "no line contradicts its ledger" in text
    assert "one run 0.61" in text
    file.write_text(audit_report(trained, ok=False))
    assert "THE TRAINING CONTRADICTS ITS LEDGER" in command("card", trained)[1]
    for changes in ({"run_ledger_digest": None}, {"run_ledger_digest": Ledger().digest()}):
        file.write_text(audit_report(trained, **changes))
        values = json.loads(command("card", trained, "--json")[1])["card"]["audit"]["result"]
        assert values["counts"] is False
        assert "epsilon" not in values
        assert "not counted: it names" in command("card", trained)[1]
        code, _, error = command("card", trained, "--set", f"card.audit={file}")
        assert code == 2
        assert "does not belong to this run" in error
    for damaged in ("", "[]", audit_report(trained, epsilon="nan"), audit_report(trained, lines=3)):
        file.write_text(damaged)
        assert "not counted: it cannot be read" in command("card", trained)[1]


def test_the_audit_of_a_resolved_configuration_names_the_ledger_of_its_run(trained):
    from dpmodel.audit.request import run_digest

    path = RunFolder(trained).config
    digest = RunFolder(trained).read_ledger().digest()
    assert run_digest(path) == digest
    assert run_digest(load_config(path)) == digest
    assert run_digest(load_config(path, ["network=mlp"])) is None
    other = trained.parent / "mine.yaml"
    other.write_bytes(path.read_bytes())
    assert run_digest(other) is None


def test_a_folder_of_an_earlier_version_is_rendered_with_what_it_has(command, trained):
    report = json.loads((trained / "privacy_report.json").read_text())
    del report["card"], report["verified"]
    (trained / "privacy_report.json").write_text(json.dumps(report))
    assert "No verification is recorded" in command("card", trained)[1]
    # Without its configuration, only the stored report says anything but figures.
    (trained / "config.resolved.yaml").unlink()
    code, text, _ = command("card", trained)
    assert code == 0
    assert f"| Randomness | {MISSING} |" in text
    assert "| Advantage (true- minus false-positive rate) | at most" in text
    code, _, error = command("card", trained, "--set", "card.release=weights")
    assert code == 2
    assert "model.report(card=" in error


def test_a_training_without_noise_has_a_card_without_figures(command, trained_once, tmp_path):
    config = load_config(trained_once.parent / "tiny.yaml", ["privacy.noise=null", "privacy.noise_multiplier=null"])
    from dpmodel import train_from_config

    train_from_config(config, tmp_path / "open")
    assert not (tmp_path / "open" / "privacy_loss.json").exists()
    code, _, _ = command("card", tmp_path / "open", "-o", tmp_path / "card")
    assert code == 0
    assert {path.name for path in (tmp_path / "card").iterdir()} == ALL - {"privacy_card.png", "privacy_loss.json"}
    text = (tmp_path / "card" / "privacy_report.md").read_text()
    assert "NOT differentially private" in text
    assert "| mu of Gaussian DP | no guarantee |" in text


@pytest.mark.slow
def test_files_of_an_earlier_card_with_figures_are_removed(command, trained, trained_once, tmp_path):
    command("card", trained, "-o", tmp_path / "card")
    (tmp_path / "card" / "privacy_loss.json").write_text("stale")
    from dpmodel import train_from_config

    config = load_config(trained_once.parent / "tiny.yaml", ["privacy.noise=null", "privacy.noise_multiplier=null"])
    train_from_config(config, tmp_path / "open")
    command("card", tmp_path / "open", "-o", tmp_path / "card")
    assert not (tmp_path / "card" / "privacy_loss.json").exists()
    assert not (tmp_path / "card" / "privacy_card.png").exists()


def test_python_returns_the_same_report(trained):
    with pytest.raises(ConfigError, match="does not exist"):
        card_of_run(trained / "nothing")
    report = card_of_run(trained, ["card.governance.owner=ACME"])
    assert report.card["governance"]["statements"] == {"owner": "ACME"}
    assert report.to_dict().keys() == json.loads((trained / "privacy_report.json").read_text()).keys()
