"""The audit of a model, of a configuration and from the command line; bad input is refused before any training."""

import copy
import json

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory, load_config
from dpmodel.audit import audit
from dpmodel.cli.application import run
from mechanisms.rng import SecureGenerator

QUICK = {"examples": 100, "canaries": 300, "steps": 12, "rate": 0.3}

CONFIG = """
data: {name: synthetic, shape: [1, 4, 4], num_train: 200, num_test: 40, num_classes: 3}
network: linear
optimizer: {name: SGD, lr: 0.5}
privacy: {noise: Gaussian, noise_multiplier: 1.0, delta: 1e-5}
training: {epochs: 1, batch_size: 20}
"""


def subject(**options):
    network = nn.Linear(4, 3)
    options.setdefault("noise_mech", NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, **options)
    return model, DataLoader(TensorDataset(torch.randn(80, 4), torch.randint(0, 3, (80,))), batch_size=16)


@pytest.mark.slow
def test_an_audit_changes_nothing_and_is_told_in_four_ways(tmp_path):
    model, loader = subject()
    model.fit(loader, epochs=1)
    weights, moments = copy.deepcopy(model.network.state_dict()), copy.deepcopy(model.optimizer.state_dict()["state"])
    report = audit(model, loader, **QUICK)
    assert report.ok, report.verdict
    assert all(torch.equal(value, weights[name]) for name, value in model.network.state_dict().items())
    for index, kept in model.optimizer.state_dict()["state"].items():
        assert all(torch.equal(value, moments[index][name]) for name, value in kept.items())
    assert (model.ledger.total, model.steps_done, len(model.optimizer.param_groups)) == (5, 5, 1)
    assert report.epsilon == pytest.approx(4.0, rel=0.02)
    assert report.description["optimizer"] == "Adam"

    paths = report.save(tmp_path / "audit")
    assert [path.suffix for path in paths] == [".json", ".md", ".png"]
    written = json.loads(paths[0].read_text())
    assert written["ok"] is True
    assert [line["name"] for line in written["lines"]] == [line.name for line in report.lines]
    assert all(line.name in paths[1].read_text() for line in report.lines)
    assert report.table().row_count == len(report.lines)
    with pytest.raises(ValueError, match="the report has no line"):
        report.line("x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"canaries": 99}, "canaries=99 are too few"),
        ({"canaries": 0}, "canaries must be an integer of at least 1"),
        ({"rate": 0.0}, "rate must be a positive"),
        ({"rate": 0.6}, "rate must be at most 0.5"),
        ({"steps": 5}, "steps must be at least 10"),
        ({"epsilon": 0.0}, "epsilon must be a positive"),
        ({"epsilon": 50.0}, "epsilon must be from 0.1 to 20"),
        ({"delta": 1.0}, "delta"),
    ],
)
def test_settings_of_which_nothing_can_be_learnt_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        audit(*subject(), **{**QUICK, **options})


def test_what_has_no_noise_or_no_data_is_refused():
    with pytest.raises(ValueError, match="nothing can be audited"):
        audit(DPModel(*no_noise()), subject()[1])
    model, loader = subject()
    with pytest.raises(ValueError, match="a model is audited with its data"):
        audit(model)
    with pytest.raises(ValueError, match="audit takes a DPModel"):
        audit(3)
    with pytest.raises(ValueError, match="leave out data"):
        audit("run.yaml", loader)


def no_noise():
    network = nn.Linear(4, 3)
    return network, nn.CrossEntropyLoss(), torch.optim.SGD(network.parameters(), lr=0.1)


@pytest.mark.slow
def test_the_command_says_what_a_configuration_releases(tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    monkeypatch.chdir(tmp_path)
    small = ["--examples", "100", "--canaries", "300", "--steps", "12", "--rate", "0.3"]
    assert run(["audit", str(path), *small, "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["ok"] is True
    assert answer["files"] == []
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.yaml"]  # no run folder

    right = SecureGenerator.add_normal_
    monkeypatch.setattr("dpmodel.preflight.mechanisms.require_sound_noise", lambda *args, **options: ())
    monkeypatch.setattr(SecureGenerator, "add_normal_", lambda self, target, scale=1.0: right(self, target, scale / 2))
    assert run(["audit", str(path), *small, "-o", str(tmp_path / "report")]) == 1
    assert "CONTRADICTION" in (tmp_path / "report" / "audit.md").read_text()
    assert "the run contradicts its ledger" in capsys.readouterr().out


def test_the_command_runs_with_fewer_canaries_than_ordinary_examples(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG)
    assert run(["audit", str(path), "--examples", "200", "--canaries", "100", "--steps", "10", "--json"]) == 0
    assert "200 ordinary and 100 canaries" in json.loads(capsys.readouterr().out)["audited"]["rows"]


def test_a_run_folder_is_not_changed(tmp_path, capsys):
    (tmp_path / "run.yaml").write_text(CONFIG)
    (tmp_path / "ledger.json").write_text("{}")
    for place in (tmp_path, tmp_path / "audit"):
        assert run(["audit", str(tmp_path / "run.yaml"), "-o", str(place)]) == 2
        assert "is a run folder, which an audit does not change" in capsys.readouterr().err


def test_a_folder_is_not_a_configuration(tmp_path, capsys):
    assert run(["audit", str(tmp_path)]) == 2
    assert "is a folder; an audit trains what a configuration describes" in capsys.readouterr().err


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, left, right):
        return {"scores": self.layer(left + right)}


@pytest.mark.slow
def test_several_inputs_and_outputs_and_an_own_collation_are_audited():
    network = TwoInputs()
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)

    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs["scores"], targets)

    def swapped(rows):
        left, right, y = torch.utils.data.default_collate(rows)
        return right, left, y

    data = TensorDataset(torch.randn(80, 4), torch.randn(80, 4), torch.randint(0, 3, (80,)))
    model = DPModel(network, loss, optimizer, noise_mech=noise)
    report = audit(model, DataLoader(data, batch_size=16, collate_fn=swapped), **QUICK)
    assert report.ok, report.verdict


@pytest.mark.slow
def test_averaged_views_of_an_example_are_audited():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0)
    optimizer, views = torch.optim.SGD(network.parameters(), lr=0.1), {"augmentation": "horizontal_flip"}
    model = DPModel(network, nn.CrossEntropyLoss(), optimizer, noise_mech=noise, **views, augmentation_multiplicity=3)
    data = TensorDataset(torch.rand(80, 1, 4, 4), torch.randint(0, 3, (80,)))
    report = audit(model, DataLoader(data, batch_size=16), **QUICK)
    assert report.ok, report.verdict


def test_a_configuration_without_noise_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(CONFIG.replace("noise: Gaussian, noise_multiplier: 1.0", "noise: null"))
    with pytest.raises(ValueError, match=r"run.yaml.*nothing can be audited"):
        audit(load_config(path))
