"""Each variant chooses some of its settings on held-out training examples before it is compared."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from dpmodel.cli.application import run
from dpmodel.compare import make_comparison, run_comparison
from dpmodel.compare.equal_epsilon import calibrate_variants
from dpmodel.compare.folder import ComparisonFolder
from dpmodel.compare.output import write_outputs
from dpmodel.compare.runner import NullWatcher
from dpmodel.data.datasets import load_dataset
from dpmodel.data.fingerprint import Fingerprint
from dpmodel.metrics import METRICS
from monitors import Ledger
from monitors.errors import ConfigError, DataError
from monitors.spent import privacy_spent

from .started import PATIENCE, ledgers, until


@pytest.fixture
def tuned(tiny):
    return {**tiny, "tune": {"search": {"optimizer.lr": [0.01, 0.5]}, "seeds": [7], "validation": 20}}


@pytest.fixture
def comparison(tuned):
    return make_comparison(tuned)


def data_of(config):
    return load_dataset(**config.data.reader_arguments)


def test_the_trials_train_without_the_test_examples_and_without_those_held_out(comparison):
    whole = data_of(comparison.variants[0].config)
    for trial in comparison.search.trials.variants:
        part = data_of(trial.config)
        assert (len(part.train), len(part.test)) == (100, 20)
        rows = [row.flatten().tolist() for row in [*part.train.x, *part.test.x]]
        assert sorted(rows) == sorted(row.flatten().tolist() for row in whole.train.x)
        assert not {tuple(row) for row in rows} & {tuple(row.flatten().tolist()) for row in whole.test.x}


def test_no_digest_of_held_back_training_examples_is_offered_to_other_processes(comparison):
    found = calibrate_variants(comparison.search.trials, None)
    assert {variant.test_data for variant in found} == {Fingerprint(20, None)}


def test_every_variant_tries_every_combination_at_the_target(tuned):
    tuned["tune"]["search"]["privacy.norm_bound"] = [0.1, 1.0]
    search = make_comparison(tuned).search
    names = [variant.name for variant in search.trials.variants]
    expected = [
        f"{name} lr {lr} norm_bound {bound}"
        for name in ("fixed", "Exp strong")
        for lr, bound in ((0.01, 0.1), (0.01, 1.0), (0.5, 0.1), (0.5, 1.0))
    ]
    assert names == expected
    for variant in search.trials.variants:
        config, values = variant.config, search.candidates[variant.name].tuned
        assert config.privacy.target_epsilon == 3.0
        assert (config.optimizer.options["lr"], config.privacy.norm_bound) == tuple(values.values())
        assert search.candidates[variant.name].config.data.validation is None


def scores(folder, column):
    """The mean last metric of each trial, read from the histories."""
    found = {}
    for path in (folder / "tune/runs").rglob("history.csv"):
        last = list(csv.DictReader(path.open()))[-1]
        found.setdefault(path.parents[1].name, []).append(float(last[column]))
    return {slug: sum(values) / len(values) for slug, values in found.items()}


def best(found, slug, better):
    """The rate with the best score, the first one if several have it."""
    return better([0.01, 0.5], key=lambda rate: found[f"{slug}-lr-{rate}"])


@pytest.mark.slow
def test_the_better_value_is_taken_and_all_trainings_are_charged(comparison, tmp_path):
    found = run_comparison(comparison, tmp_path, jobs=1)
    assert found.ok
    result, read = found.result, scores(tmp_path, "accuracy")
    rates = [best(read, "fixed", max), best(read, "exp-strong", max)]
    assert [variant.tuned for variant in result.comparison.variants] == [{"optimizer.lr": rate} for rate in rates]
    configs = [row.plan.config for row in result.variants]
    assert [config.optimizer.options["lr"] for config in configs] == rates
    assert [config.data.validation for config in configs] == [None] * 2
    every = ledgers(tmp_path)
    assert len(every) == result.trainings == 4 + 4
    merged = Ledger().merge(*(Ledger.load(path) for path in every))
    assert result.composed.epsilon == privacy_spent(merged, 1e-5, "rdp").epsilon
    again = run_comparison(comparison, tmp_path, jobs=1)
    assert (again.reused, again.outcomes, again.result.to_dict()) == (8, (), result.to_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "column", "better"), [("accuracy", "accuracy", max), ("loss", "valid_loss", min)])
def test_the_mean_over_the_seeds_of_the_metric_decides(tuned, tmp_path, metric, column, better):
    tuned["tune"]["seeds"] = [7, 8]
    comparison = make_comparison({**tuned, "metric": metric, "seeds": [1]})
    result = run_comparison(comparison, tmp_path, jobs=1).result
    read = scores(tmp_path, column)
    assert len(read) == 4
    for variant in result.comparison.variants:
        assert variant.tuned == {"optimizer.lr": best(read, variant.slug, better)}


@pytest.mark.slow
def test_the_outputs_state_the_rule_the_scores_and_the_choice(comparison, tmp_path):
    found = run_comparison(comparison, tmp_path, jobs=1)
    write_outputs(found.result, found.folder)
    rule = "chose optimizer.lr by its mean accuracy on 20 training examples that were held out (seeds 7)"
    for path in (found.folder.markdown, found.folder.html):
        text = path.read_text()
        assert rule in text
        assert "held-out accuracy (%)" in text
    stated, read = json.loads(found.folder.json.read_text())["tune"], scores(tmp_path, "accuracy")
    slugs = {"fixed": "fixed", "Exp strong": "exp-strong"}
    chosen = {name: best(read, slug, max) for name, slug in slugs.items()}
    assert stated["chosen"] == {name: {"optimizer.lr": rate} for name, rate in chosen.items()}
    assert stated["trials"] == {
        f"{name} lr {rate}": pytest.approx(read[f"{slug}-lr-{rate}"])
        for name, slug in slugs.items()
        for rate in (0.01, 0.5)
    }
    rows = [
        line
        for line in found.folder.markdown.read_text().splitlines()
        if line.startswith("| fixed | 0.") and line.count("|") == 5
    ]
    assert [row.split(" | ")[-1].rstrip(" |") for row in rows] == [
        "yes" if rate == chosen["fixed"] else "" for rate in (0.01, 0.5)
    ]


@pytest.mark.slow
def test_an_interrupted_search_states_no_results_and_goes_on_where_it_stopped(comparison, tmp_path, monkeypatch):
    from dpmodel.compare import jobs

    whole = jobs._train
    trained = []

    def interrupted(job, watcher, lock):
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append(job.label)
        return whole(job, watcher, lock)

    monkeypatch.setattr(jobs, "_train", interrupted)
    found = run_comparison(comparison, tmp_path, jobs=1)
    assert (found.result, found.missing, found.interrupted, found.ok) == (None, 1 + 4, True, False)
    monkeypatch.setattr(jobs, "_train", whole)
    found = run_comparison(comparison, tmp_path, jobs=1)
    assert (found.ok, found.reused, len(found.outcomes)) == (True, 3, 5)


def spent(folders):
    """Epsilon of all ledgers that ever lay in the folders."""
    return privacy_spent(Ledger().merge(*folders), 1e-5, "rdp").epsilon


@pytest.mark.slow
@pytest.mark.parametrize("gone", ["tune/runs/fixed-lr-0.5", "tune", "runs"])
def test_trainings_whose_folders_vanished_stay_charged_with_what_they_released(tuned, tmp_path, gone):
    tuned["seeds"] = [1]
    tuned["target"]["epsilon"] = 8.0
    run_comparison(make_comparison(tuned), tmp_path, jobs=1)
    ever = {path: ledger.copy() for path, ledger in ledgers(tmp_path).items()}
    shutil.rmtree(tmp_path / gone)
    lost = [ledger for path, ledger in ever.items() if not path.exists()]
    assert lost
    tuned["target"]["epsilon"] = 0.5
    tuned["tune"]["search"]["optimizer.lr"] = [0.01, 0.3]
    result = run_comparison(make_comparison(tuned), tmp_path, jobs=1).result
    present = list(ledgers(tmp_path).values())
    assert result.trainings == len(present) + len(lost)
    assert result.composed.epsilon == pytest.approx(spent([*present, *lost]), rel=1e-12)
    assert sum("has vanished: it is charged in full" in text for text in result.caveats) == len(lost)


NORMALISE = {"name": "private", "noise_multiplier": 8.0, "norm_bound": 2.0, "square_bound": 4.0}


@pytest.mark.slow
def test_private_statistics_of_a_vanished_training_stay_charged(tiny, tmp_path):
    tiny["base"]["normalise"] = NORMALISE
    tiny["seeds"] = [1]
    comparison = make_comparison(tiny)
    run_comparison(comparison, tmp_path, jobs=1)
    ever = [ledger.copy() for ledger in ledgers(tmp_path).values()]
    shutil.rmtree(tmp_path / "runs")
    result = run_comparison(comparison, tmp_path, jobs=1).result
    assert result.composed.epsilon == pytest.approx(spent([*ever, *ledgers(tmp_path).values()]), rel=1e-12)


def test_the_mark_is_there_before_private_statistics_are_released(tiny, tmp_path, monkeypatch):
    tiny["base"]["normalise"] = NORMALISE
    tiny["seeds"] = [1]
    found = []

    def released(*arguments, **options):
        found.append((tmp_path / "begun/fixed/seed-1").read_text())
        raise KeyboardInterrupt

    monkeypatch.setattr("dpmodel.statistics.normalisation.private_mean_and_variance", released)
    run_comparison(make_comparison(tiny), tmp_path, jobs=1)
    assert len(found[0].split()) == 2
    assert (tmp_path / "begun/fixed/seed-1").read_text() == ""  # nothing was recorded, so nothing is charged


@pytest.mark.slow
def test_a_damaged_mark_of_a_trial_is_refused_before_more_is_spent(tuned, tmp_path):
    run_comparison(make_comparison(tuned), tmp_path, jobs=1)
    before = len(ledgers(tmp_path))
    (tmp_path / "begun_tune/fixed-lr-0.5/seed-7").write_text("garbage\n")
    tuned["tune"]["search"]["optimizer.lr"] = [0.01, 0.5, 0.6]
    with pytest.raises(DataError, match=r"fixed-lr-0.5/seed-7 has the line 'garbage' instead of an ID and a digest"):
        run_comparison(make_comparison(tuned), tmp_path, jobs=1)
    assert len(ledgers(tmp_path)) == before


@pytest.mark.slow
def test_a_changed_planned_ledger_of_a_vanished_training_is_refused(tuned, tmp_path):
    run_comparison(make_comparison(tuned), tmp_path, jobs=1)
    shutil.rmtree(tmp_path / "tune/runs/fixed-lr-0.5")
    for path in (tmp_path / "begun_tune/.planned").iterdir():
        path.write_text(Ledger().to_json())
    with pytest.raises(DataError, match="was going to release cannot be read"):
        run_comparison(make_comparison(tuned), tmp_path, jobs=1)


@pytest.mark.slow
def test_a_signal_during_the_last_trial_stops_before_the_comparison(comparison, tmp_path):
    class AtTheLast(NullWatcher):
        def ended(self, outcome):
            if outcome.job.number == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    found = run_comparison(comparison, tmp_path, jobs=2, watcher=AtTheLast())
    assert (found.result, found.signal) == (None, signal.SIGTERM)
    assert not (tmp_path / "runs").exists()


def test_what_the_comparison_cannot_train_is_refused_before_the_search(tuned, tmp_path):
    tuned["base"]["data"]["num_examples"] = 100  # 120 in truth
    with pytest.raises(ConfigError, match=r"data\.num_examples is 100"):
        run_comparison(make_comparison(tuned), tmp_path, jobs=1)
    assert not (tmp_path / "tune/runs").exists()


@pytest.mark.slow
def test_trials_without_a_finite_metric_choose_nothing(tuned, tmp_path):
    comparison = make_comparison({**tuned, "metric": "loss", "seeds": [1]})
    run_comparison(comparison, tmp_path, jobs=1)
    for path in (tmp_path / "tune/runs").glob("fixed-*/*/history.csv"):
        rows = list(csv.DictReader(path.open()))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows({**row, "valid_loss": "nan"} for row in rows)
    with pytest.raises(DataError, match="no training of the search of variant 'fixed' ended with a finite loss"):
        run_comparison(comparison, tmp_path, jobs=1)


def test_whether_a_metric_of_ones_own_is_better_higher_or_lower_must_be_said(tuned, monkeypatch):
    monkeypatch.setattr(METRICS, "_builders", dict(METRICS._builders))
    METRICS.register("rmse")(lambda: None)
    tuned["base"]["training"]["metrics"] = ["rmse"]
    with pytest.raises(ConfigError, match=r"not known whether a higher .rmse. is better"):
        make_comparison({**tuned, "metric": "rmse"})
    tuned["tune"]["mode"] = "min"
    assert make_comparison({**tuned, "metric": "rmse"}).search.sign == -1


@pytest.mark.slow
def test_a_process_joins_the_search_and_the_comparison(tuned, write, tmp_path):
    path, out = write(tuned), tmp_path / "out"
    command = [sys.executable, "-m", "dpmodel", "compare", str(path), "-o", str(out), "--jobs", "1", "--join", "--json"]
    helping = []

    class UntilHelped(NullWatcher):
        """Leaves the other process the time to take a run of each phase."""

        def began(self, job):
            if not helping:
                helping.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
            if job.number == 0:
                until(lambda: list(Path(job.directory).parents[1].glob("*/*/releases.jsonl")), "a run is taken")

    found = run_comparison(make_comparison(tuned), out, jobs=1, watcher=UntilHelped())
    said, _ = helping[0].communicate(timeout=PATIENCE)
    assert helping[0].returncode == 0
    assert not found.faults
    assert found.ok
    assert found.result.trainings == 8
    mine = sum(outcome.finished and not outcome.reused for outcome in found.outcomes)
    assert json.loads(said)["trained"] + mine == 8
    assert json.loads(said)["trained"] >= 2
    assert not ComparisonFolder(out).plan.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["tune"]["search"].update({"training.seed": [1, 2]}), "tune searches training.seed, which is set"),
        (lambda v: v["tune"]["search"].update({"privacy": [1]}), "tune searches 'privacy'; use section.key"),
        (
            lambda v: v["variants"][1]["set"].update({"optimizer.lr": 1.0}),
            "tune searches optimizer.lr, but variant 'Exp strong' sets optimizer.lr",
        ),
        (lambda v: v["base"]["data"].update(validation=10), "tune: the base sets data.validation"),
        (lambda v: v["tune"]["search"].update({"optimizer.lr": [1, 1.0]}), "search has optimizer.lr 1.0 twice"),
        (lambda v: v["tune"].update(seeds=[7, 7]), "tune.seeds: 7 is given twice"),
        (lambda v: v["tune"].update(search={}), "search must name at least one field"),
        (lambda v: v["tune"].update(mode="best"), "mode"),
        (lambda v: v["tune"]["search"].update({"data.validation": [30, 40]}), "tune searches data.validation; it can"),
        (lambda v: v["tune"]["search"].update({"performance.threads": [1, 2]}), "tune searches performance.threads"),
        (lambda v: v["tune"]["search"].update({"privacy.sampling_seed": [1, 2]}), "and not .*privacy.sampling_seed"),
        (
            lambda v: v["tune"].update(search={"optimizer": [{"name": "SGD", "lr": 0.1}], "optimizer.lr": [0.1]}),
            "tune searches optimizer, but it also searches optimizer.lr",
        ),
        (
            lambda v: (
                v["tune"].update(search={"network": [{"name": "mlp"}]}),
                v["variants"][1]["set"].update({"network.name": "mlp"}),
            ),
            "tune searches network, but variant 'Exp strong' sets network.name",
        ),
        (
            lambda v: v["variants"][1]["set"].update({"data.validation": 10}),
            "data.validation is None in variant 'fixed'",
        ),
        (lambda v: v["tune"]["search"].update({"optimizer.lr": []}), "tune.search.optimizer.lr"),
        (lambda v: v["tune"].pop("validation"), "tune.validation"),
        (lambda v: v["tune"]["search"].update({"optimizer.lr": [0.5, -1.0]}), "lr"),
    ],
)
def test_what_cannot_be_searched_is_refused(tuned, tmp_path, change, message):
    change(tuned)
    with pytest.raises(ConfigError, match=message):
        run_comparison(make_comparison(tuned), tmp_path / "new", jobs=1)
    assert not (tmp_path / "new" / "runs").exists()
    assert not (tmp_path / "new" / "tune" / "runs").exists()


def test_a_validation_set_that_leaves_nothing_is_refused_before_anything_is_trained(tuned, tmp_path):
    tuned["tune"]["validation"] = 120
    with pytest.raises(ValueError, match="validation is 120, but of 120 training examples at least 1 must be left"):
        run_comparison(make_comparison(tuned), tmp_path, jobs=1)


@pytest.mark.slow
def test_the_command_counts_the_trainings_of_the_search(tuned, write, tmp_path, capsys):
    path = write(tuned)
    assert run(["compare", str(path), "--dry-run"]) == 0
    assert "one of these for each variant, after 4 trainings that choose it (tune)" in capsys.readouterr().out
    assert run(["compare", str(path), "-o", str(tmp_path / "out"), "--jobs", "1"]) == 0
    out = capsys.readouterr().out
    assert "optimizer.lr" in out
    assert "Nothing was chosen on the test examples." in out
