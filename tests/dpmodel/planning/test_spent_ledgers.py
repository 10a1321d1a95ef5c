"""Ledgers that a configuration counts as spent: in plans, budgets and trainings."""

import pytest

from dpmodel.budget.answer import answer_budget
from dpmodel.callbacks import Silence
from dpmodel.compare.comparison import make_comparison
from dpmodel.config import load_config, make_config
from dpmodel.planning.longest import longest_training
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.evaluate import evaluate_run
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.train import train_from_config
from dpmodel.tuning.search import make_tuning
from monitors import GaussianEvent, Ledger, ViolationEvent
from monitors.errors import CalibrationError, ConfigError, UnprotectedUpdateError
from monitors.spent import privacy_spent

from ..journey import SETTINGS
from ..power_cut import PowerCut

BEFORE = Ledger().record(GaussianEvent(2.0), 2)


@pytest.fixture
def spent(tmp_path):
    BEFORE.save(tmp_path / "statistics.ledger.json")
    return str(tmp_path / "statistics.ledger.json")


def config(spent, **privacy):
    stated = {} if "noise_multiplier" in privacy else {"target_epsilon": 8.0}
    return make_config({**SETTINGS, "privacy": {**stated, "spent": [spent], **privacy}})


@pytest.mark.sample(2)
@pytest.mark.parametrize("sampling", ["poisson", "shuffle"])
def test_the_target_covers_them_and_the_training_continues_them(tmp_path, spent, sampling):
    plan = plan_training(config(spent, sampling=sampling), 60)
    assert plan.ledger().rows[0] == (GaussianEvent(2.0), 2)
    assert 7.9 < plan.privacy_spent().epsilon <= 8.0
    alone = plan_training(make_config({**SETTINGS, "privacy": {"target_epsilon": 8.0, "sampling": sampling}}), 60)
    assert plan.noise_multiplier > 1.03 * alone.noise_multiplier
    result = train_from_config(config(spent, sampling=sampling), tmp_path / "run", callbacks=[Silence()])
    ledger = Ledger.load(result.folder.ledger)
    assert ledger.rows == plan.ledger().rows
    assert result.report.spent.epsilon == privacy_spent(ledger, 1e-5).epsilon <= 8.0
    assert result.history.column("epsilon")[-1] == result.report.spent.epsilon


def test_steps_of_an_earlier_shuffled_training_do_not_share_the_partitions(tmp_path):
    earlier = plan_training(make_config({**SETTINGS, "privacy": {"noise_multiplier": 3.0, "sampling": "shuffle"}}), 60)
    earlier.ledger().save(tmp_path / "earlier.json")
    plan = plan_training(config(str(tmp_path / "earlier.json"), noise_multiplier=3.0, sampling="shuffle"), 60)
    twice = earlier.ledger().merge(earlier.ledger())
    assert plan.privacy_spent("zcdp").epsilon == pytest.approx(privacy_spent(twice, 1e-5, "zcdp").epsilon)


@pytest.mark.slow
def test_a_resumed_training_counts_them_once(tmp_path, spent):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config(spent), folder.path, callbacks=[Silence(), PowerCut(17)])
    train_from_config(config(spent), folder.path, resume=True, callbacks=[Silence()])
    ledger = Ledger.load(folder.ledger)
    assert ledger.kept.rows == plan_training(config(spent), 60).ledger().rows


def test_a_training_is_not_resumed_if_the_ledger_has_grown(tmp_path, spent):
    folder = RunFolder(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        train_from_config(config(spent), folder.path, callbacks=[Silence(), PowerCut(17)])
    BEFORE.copy().record(GaussianEvent(2.0)).save(spent)
    with pytest.raises(UnprotectedUpdateError, match="lacks 1 of them"):
        train_from_config(config(spent), folder.path, resume=True, callbacks=[Silence()])


def test_a_run_folder_is_evaluated_without_the_files(tmp_path, spent):
    result = train_from_config(config(spent), tmp_path / "run", callbacks=[Silence()])
    (tmp_path / "statistics.ledger.json").unlink()
    assert evaluate_run(result.folder.path).spent.epsilon == result.report.spent.epsilon


def test_a_budget_counts_them_in_every_figure(spent):
    with_them = answer_budget(config(spent, noise_multiplier=2.0), 60, accountants=("rdp", "pld"))
    without = answer_budget(make_config({**SETTINGS, "privacy": {"noise_multiplier": 2.0}}), 60)
    assert with_them.epsilon > without.epsilon
    assert any("2 releases before the first step" in note for note in with_them.notes)
    for ours, theirs in zip(with_them.scenarios, without.scenarios, strict=True):
        assert ours.figures["rdp"] > theirs.figures["rdp"]


def test_the_longest_training_leaves_room_for_them(spent):
    most = longest_training(config(spent, noise_multiplier=2.0), 6.0, 60)
    free = longest_training(make_config({**SETTINGS, "privacy": {"noise_multiplier": 2.0}}), 6.0, 60)
    assert most.config.training.epochs < free.config.training.epochs
    with pytest.raises(CalibrationError, match="not even one epoch"):
        longest_training(config(spent, noise_multiplier=2.0), 2.0, 60)


def test_more_than_the_target_is_refused(spent):
    with pytest.raises(ConfigError, match=r"privacy\.target_epsilon|target"):
        plan_training(config(spent, target_epsilon=1.0), 60)


def test_paths_are_relative_to_the_configuration(tmp_path, spent):
    text = make_config({**SETTINGS, "privacy": {"target_epsilon": 8.0}}).to_yaml()
    written = text.replace("spent: []", "spent: [statistics.ledger.json]")
    (tmp_path / "own.yaml").write_text(written)
    assert load_config(tmp_path / "own.yaml").privacy.spent == (spent,)


@pytest.mark.parametrize("fault", ["missing", "damaged", "twice", "void", "folder"])
def test_a_ledger_that_cannot_be_counted_is_refused_by_name(tmp_path, spent, fault):
    paths = [spent]
    if fault == "missing":
        paths = [str(tmp_path / "absent.json")]
    elif fault == "damaged":
        text = (tmp_path / "statistics.ledger.json").read_text()
        (tmp_path / "statistics.ledger.json").write_text(text.replace("2.0", "9.0"))
    elif fault == "twice":
        (tmp_path / "link.json").symlink_to(spent)
        paths.append(str(tmp_path / "link.json"))
    elif fault == "void":
        BEFORE.copy().record(ViolationEvent("the weights were overwritten")).save(spent)
    else:
        paths = [str(tmp_path)]
    asked = make_config({**SETTINGS, "privacy": {"noise_multiplier": 2.0, "spent": paths}})
    with pytest.raises(ConfigError, match=r"absent\.json|changed after|same file|no epsilon|cannot be read"):
        plan_training(asked, 60)


def test_comparisons_and_searches_refuse_them(tmp_path, spent):
    base = {**SETTINGS, "privacy": {"target_epsilon": 8.0, "spent": [spent]}}
    with pytest.raises(ConfigError, match=r"privacy\.spent is for a single training; a search"):
        make_tuning({"base": base, "runs": 5, "search": {"optimizer.lr": {"values": [0.1, 1.0]}}}).config()
    variants = [{"name": "one"}, {"name": "two", "set": {"optimizer.lr": 0.3}}]
    asked = {"target": {"epsilon": 8.0, "delta": 1e-5}, "seeds": [1, 2]}
    comparison = {"base": {**base, "privacy": {"spent": [spent]}}, "variants": variants, **asked}
    with pytest.raises(ConfigError, match=r"privacy\.spent is for a single training; a comparison"):
        make_comparison(comparison, str(tmp_path / "compare.yaml"))
