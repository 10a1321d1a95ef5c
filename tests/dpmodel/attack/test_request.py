"""Attacks on a model, a configuration and a run: what they find, what they refuse, and that they change nothing."""

import copy
import csv
import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import dpmodel.audit
from dpmodel import DPModel
from dpmodel.attack import ATTACKS, Attack, attack
from dpmodel.config import make_config
from mechanisms.rng import SecureGenerator
from monitors import GaussianEvent, Ledger
from monitors.errors import ConfigError, DataError, DPModelError
from monitors.events import PrivacyEvent

from .simulated import LEARNT

SMALL = {
    "data": {"name": "synthetic", "shape": [1, 4, 4], "num_train": 60, "num_test": 75, "num_classes": 3},
    "network": "linear",
    "optimizer": {"name": "SGD", "lr": 0.5},
    "privacy": {"noise_multiplier": 1.0},
    "training": {"epochs": 1, "batch_size": 20},
}
QUICK = {"shadows": 4, "rates": [0.02], "jobs": 1}


def learnt(ledger, count=120):
    """A network that knows ``count`` random labels by heart, and as many examples that it has never seen."""
    x, y = torch.randn(2 * count, 10), torch.randint(0, 2, (2 * count,))
    network = nn.Sequential(nn.Linear(10, 128), nn.Tanh(), nn.Linear(128, 2))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[:count]), y[:count]).backward()
        optimizer.step()
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, ledger=ledger)
    return model, TensorDataset(x[:count], y[:count]), TensorDataset(x[count:], y[count:])


def test_an_overfitted_network_gives_its_members_away():
    model, data, held_out = learnt(Ledger())
    weights, total = copy.deepcopy(model.network.state_dict()), model.ledger.total
    report = attack(model, DataLoader(data, batch_size=50, shuffle=True), held_out, rates=[0.02])
    assert report.measure("loss_threshold").low > 0.75
    assert report.measure("label_only_sampling").low > 0.55
    assert report.measure("loss_threshold", "TPR at FPR 2 %").high > 0.02
    assert all(torch.equal(value, weights[name]) for name, value in model.network.state_dict().items())
    assert (model.ledger.total, model.network.training) == (total, True)


def test_a_ledger_that_understates_is_contradicted(tmp_path):
    report = attack(*learnt(Ledger().record(GaussianEvent(30.0))), methods="loss_threshold", rates=[0.02])
    assert not report.ok
    assert report.contradictions[0].name == "AUC"
    assert "reaches more than the ledger allows" in report.verdict
    assert "different populations" in report.verdict
    assert "CONTRADICTION" in report.to_markdown()
    report.save(tmp_path)
    assert json.loads((tmp_path / "attack.json").read_text())["ok"] is False


def test_the_limit_of_one_network_is_applied_twice():
    report = attack(*learnt(Ledger().record(GaussianEvent(1.0)), 80), methods="loss_threshold", rates=[0.02])
    assert report.limit.true_positive_rate(0.02) == pytest.approx(0.478, abs=0.001)  # that of mu 2


@pytest.mark.slow
def test_a_report_is_told_in_four_ways_and_holds_no_scores_unless_asked(tmp_path):
    config = make_config(SMALL)
    report = attack(config, **QUICK)
    assert report.ok, report.verdict
    assert report.limit.hops == 1
    methods = [one.method for one in report.scored]
    assert methods == ["loss_threshold", "lira", "rmia", "label_only_sampling"]
    assert [one.references for one in report.scored] == [0, 2, 2, 0]
    assert report.scored[0].scores.shape == (4, 120)
    assert report.scored[0].included.sum() == 240  # complementary halves
    assert report.table().row_count == len(report.measures) == 8
    paths = report.save(tmp_path / "attack")
    assert [path.name for path in paths] == ["attack.json", "attack.md", "attack.png"]
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in paths)
    written = json.loads(paths[0].read_text())
    assert [measure["name"] for measure in written["measures"]] == ["AUC", "TPR at FPR 2 %"] * 4
    assert "statistics of private data" in written["limits"]
    assert "statistics of private data" in paths[1].read_text()
    assert len(paths[0].read_text()) < 8000
    with pytest.raises(ValueError, match="the report has no 'x' of 'lira'"):
        report.measure("lira", "x")

    lines = list(csv.DictReader(report.save_scores(tmp_path / "scores.csv").open()))
    assert len(lines) == 4 * 4 * 120
    inside = [float(line["score"]) for line in lines if line["attack"] == "lira" and line["member"] == "1"]
    assert sorted(inside) == pytest.approx(np.sort(report.scored[1].roc.inside), rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "hops"),
    [
        ({}, 1),
        ({"privacy": {"noise_multiplier": 1.0, "num_examples_public": 70}}, 1),
        ({"privacy": {"noise_multiplier": 3.0, "sampling": "shuffle"}}, 2),
        ({"normalise": {"name": "private", "noise_multiplier": 5.0, "norm_bound": 4.0, "square_bound": 4.0}}, 2),
    ],
    ids=["poisson", "stated", "shuffle", "normalise"],
)
def test_the_limit_is_applied_once_only_if_nothing_depends_on_the_size_of_a_half(changes, hops):
    report = attack(make_config({**SMALL, **changes}), methods="loss_threshold", **{**QUICK, "shadows": 2})
    assert report.limit.hops == hops
    assert ("applied twice" in report.description["limit"]) is (hops == 2)
    assert report.one_population


def test_shadows_in_the_cache_are_used_again(tmp_path, monkeypatch):
    first = attack(make_config(SMALL), methods=["lira"], cache=tmp_path / "shadows", **QUICK)

    def fit(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr("dpmodel.attack.shadows.fit_shadow", fit)
    second = attack(make_config(SMALL), methods=["lira", "rmia"], cache=tmp_path / "shadows", **QUICK)
    assert (first.scored[0].scores == second.scored[0].scores).all()


def test_a_shadow_that_fails_ends_the_attack(tmp_path, monkeypatch):
    def fit(*args):
        raise RuntimeError("out of luck")

    monkeypatch.setattr("dpmodel.attack.shadows.fit_shadow", fit)
    with pytest.raises(DPModelError, match="4 shadows could not be trained; shadow 0: RuntimeError: out of luck"):
        attack(make_config(SMALL), **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": "lyra"}, "unknown attack 'lyra'; did you mean 'lira'"),
        ({"methods": []}, "give each attack once, and at least one"),
        ({"methods": ["lira", "lira"]}, "give each attack once"),
        ({"methods": [3]}, "methods must be names or attacks, got 3"),
        ({"shadows": -1}, "shadows must be"),
        ({"shadows": 0}, "loss_threshold needs at least 1 shadow models here, got 0"),
        ({"shadows": 0, "methods": "lira"}, "lira needs at least 4 shadow models here, got 0"),
        ({"shadows": 2, "methods": "rmia"}, "rmia needs at least 3 shadow models here, got 2"),
        ({"rates": [0.001]}, "cannot show a false-positive rate of 0.1 %: at least 1,000 are needed"),
        ({"rates": []}, "rates must be one or more"),
        ({"rates": [0.0]}, "rates"),
        ({"targets": "nobody"}, "targets"),
        ({"targets": "run"}, "a configuration has no trained network"),
        ({"examples": 0}, "examples"),
        ({"examples": 10}, "at least 20 training examples, got 10"),
        ({"jobs": 0}, "jobs"),
        ({"data": [], "held_out": []}, "leave out data and held_out"),
    ],
)
def test_what_can_show_nothing_is_refused_before_any_training(options, message, monkeypatch):
    monkeypatch.setattr("dpmodel.attack.shadows.build_training", lambda *args: pytest.fail("trained"))
    with pytest.raises(ValueError, match=message):
        attack(make_config(SMALL), **{**QUICK, **options})


def test_what_is_not_a_model_with_data_is_refused():
    model, data, held_out = learnt(Ledger(), 30)
    with pytest.raises(ValueError, match="needs a configuration: attack a run folder"):
        attack(model, data, held_out, methods="lira", rates=[0.2])
    with pytest.raises(ValueError, match="a model is attacked with its training data and others"):
        attack(model, data)
    with pytest.raises(ValueError, match="attack takes a run folder"):
        attack(3)
    with pytest.raises(ValueError, match="does not exist"):
        attack("no/such/folder")


def test_data_that_the_network_has_no_scores_for_are_refused():
    model, data, held_out = learnt(Ledger(), 30)
    x, y = data.tensors
    for wrong, message in (
        ((x, y + 1), "classes must lie between 0 and 1; the targets lie between 0 and 2"),
        ((x[:0], y[:0]), "data holds 0 examples; an attack needs at least 20"),
        ((x[:1], y[:1]), "data holds 1 examples; an attack needs at least 20"),
    ):
        with pytest.raises(DataError, match=message):
            attack(model, wrong, held_out, methods="loss_threshold", rates=0.2)
    assert attack(model, data, held_out, methods="loss_threshold", rates=0.2).rates == (0.2,)


def test_a_ledger_that_no_accountant_knows_limits_nothing():
    @dataclass(frozen=True)
    class UnknownEvent(PrivacyEvent):
        pass

    model, data, held_out = learnt(Ledger().record(UnknownEvent()), 30)
    report = attack(model, data, held_out, methods="loss_threshold", rates=0.2)
    assert (report.ok, report.limit.exists, report.epsilon) == (True, False, np.inf)
    assert "the ledger limits no attack" in report.verdict


def test_a_link_into_a_run_folder_is_refused(tmp_path):
    run = tmp_path / "run"
    (run / "part").mkdir(parents=True)
    (run / "ledger.json").write_text("{}")
    (tmp_path / "link").symlink_to(run / "part")
    for place in (run / "cache", tmp_path / "link", tmp_path / "link" / "cache"):
        with pytest.raises(ConfigError, match="is a run folder, which an attack does not change"):
            attack(make_config(SMALL), cache=place, **QUICK)
    assert not list((run / "part").iterdir())


def test_an_attack_of_ones_own_is_available_by_name(monkeypatch):
    monkeypatch.setattr(ATTACKS, "_builders", dict(ATTACKS._builders))

    @ATTACKS.register("oracle")
    class Oracle(Attack):
        knows = "everything"

        def scores(self, evidence):
            return evidence.pool.members.astype(float)

    model, data, held_out = learnt(Ledger(), 80)
    assert attack(model, data, held_out, methods="oracle", rates=[0.02]).measure("oracle").value == 1.0


@pytest.mark.slow
def test_without_noise_members_are_found_and_with_noise_the_ledger_holds():
    exposed = attack(make_config(LEARNT), shadows=8, rates=[0.01], jobs=1)
    assert not exposed.limit.exists
    for name in ("loss_threshold", "lira", "rmia"):
        assert exposed.measure(name).low > 0.55
    noisy = {**LEARNT, "privacy": {"noise_multiplier": 6.0}, "training": {"epochs": 10, "batch_size": 30}}
    private = attack(make_config(noisy), shadows=8, rates=[0.01], jobs=1)
    assert private.ok, private.verdict
    assert private.measure("lira").value < exposed.measure("lira").low


@pytest.mark.slow
def test_a_training_with_almost_no_noise_contradicts_its_ledger(monkeypatch):
    right = SecureGenerator.add_normal_
    monkeypatch.setattr("dpmodel.preflight.mechanisms.require_sound_noise", lambda *args, **options: ())
    monkeypatch.setattr(SecureGenerator, "add_normal_", lambda self, target, scale=1.0: right(self, target, scale / 50))
    faulty = {**LEARNT, "privacy": {"noise_multiplier": 20.0}, "training": {"epochs": 20, "batch_size": 30}}
    report = attack(make_config(faulty), methods=["loss_threshold", "rmia"], shadows=8, rates=[0.01], jobs=1)
    assert not report.ok
    assert "an attack reaches more than the ledger allows" in report.verdict
    assert "populations" not in report.verdict


@pytest.mark.slow
def test_correct_trainings_do_not_contradict_their_ledgers():
    for seed in range(10):
        settings = {**SMALL, "data": {**SMALL["data"], "seed": seed}}
        report = attack(make_config(settings), **QUICK)
        assert report.ok, report.verdict


@pytest.mark.slow
def test_where_hardly_anything_is_released_attacks_guess():
    settings = {**SMALL, "privacy": {"noise_multiplier": 60.0}}
    areas = []
    for seed in range(6):
        report = attack(make_config({**settings, "data": {**SMALL["data"], "seed": seed}}), **QUICK)
        areas.append([one.roc.auc for one in report.scored])
    # The area of 240 members and 240 others that are guessed has a standard deviation of 0.026.
    assert np.mean(areas, axis=0) == pytest.approx(np.full(4, 0.5), abs=4 * 0.026 / np.sqrt(6))


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"normalise": {"name": "private", "noise_multiplier": 5.0, "norm_bound": 4.0, "square_bound": 4.0}},
        {"privacy": {"target_epsilon": 3.0, "sampling": "cyclic_poisson", "noise": {"name": "BandedMF"}}},
        {"privacy": {"noise_multiplier": 3.0, "sampling": "shuffle"}},
        {"privacy": {"noise_multiplier": 3.0, "clip": {"name": "Gaussian"}}},
        {"callbacks": [{"name": "WeightAveraging"}, {"name": "EarlyStopping"}]},
    ],
    ids=["normalise", "correlated noise", "shuffle", "adaptive clipping", "callbacks"],
)
def test_shadows_are_trained_as_the_configuration_says(changes):
    report = attack(make_config({**SMALL, **changes}), methods=["lira", "label_only_sampling"], **QUICK)
    assert report.ok, report.verdict
    assert report.limit.exists
    dropped = "shadows are trained without the callbacks EarlyStopping"
    assert report.notes == ((dropped,) if "callbacks" in changes else ())


def test_the_attack_is_also_found_beside_the_audit():
    assert dpmodel.audit.attack is attack
