"""All unknown names of a configuration are named at once."""

import pytest

from dpmodel.cli.application import run
from dpmodel.config import load_config, make_config
from dpmodel.preflight.configured import require_known_names
from dpmodel.runs.build import build_training
from monitors.errors import ConfigError
from monitors.spent import resolve_accountant

WRONG = """\
data: mnits
network: {name: lenet5, activatoin: tanh}
loss: cross_entopy
optimizer: {name: SGD, lr: 0.1, momentun: 0.9, schedule: {name: LinearLRR}}
privacy: {noise_multiplier: 1.0}
performance: {engine: bookeeping}
training: {epochs: 1, batch_size: 8, metrics: [acuracy]}
callbacks: [{name: EarlyStoping}, {name: ModelCheckpoint, prefx: a}]
"""

REMEDIES = (
    (1, "did you mean 'mnist'"),
    (2, "did you mean 'activation'"),
    (3, "did you mean 'cross_entropy'"),
    (4, "did you mean 'momentum'"),
    (4, "did you mean 'LinearLR'"),
    (6, "did you mean 'bookkeeping'"),
    (7, "did you mean 'accuracy'"),
    (8, "did you mean 'EarlyStopping'"),
    (8, "did you mean 'prefix'"),
)


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_every_unknown_name_and_argument_is_named_with_its_line_before_data_are_read(tmp_path):
    config = load_config(write(tmp_path, WRONG))
    with pytest.raises(ConfigError) as caught:
        build_training(config)
    first, *lines = str(caught.value).splitlines()
    assert first.startswith("9 faults in ")
    assert len(lines) == len(REMEDIES)
    for line, (number, remedy) in zip(lines, REMEDIES, strict=True):
        assert f"run.yaml:{number}: " in line
        assert remedy in line


def test_a_wrong_name_in_privacy_is_reported_with_the_other_faults(tmp_path):
    wrong = WRONG.replace("1.0}", "1.0, accountant: rpd, noise: {name: Gausian}, clip: Fixd, sampling: poison}")
    with pytest.raises(ConfigError) as caught:
        load_config(write(tmp_path, wrong))
    text = str(caught.value)
    assert text.startswith("13 faults in ")
    assert all(f"did you mean {name!r}" in text for name in ("rdp", "Gaussian", "Fixed", "poisson", "mnist"))


def test_what_is_known_passes():
    known = {
        "network": "mlp",
        "optimizer": {"name": "Adam", "learning_rate": 0.1},
        "privacy": {"noise_multiplier": 1.0},
    }
    require_known_names(make_config({**known, "training": {"epochs": 1, "batch_size": 8}}))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("prv", "use 'pld'"), ("PRV", "use 'pld'"), ("gdp", "understate epsilon; use 'pld'"), ("moments", "use 'rdp'")],
)
def test_accountants_of_other_libraries_are_answered_with_the_one_to_use(name, remedy):
    with pytest.raises(ValueError, match=remedy):
        resolve_accountant(name)


def test_the_command_line_answers_alike_and_names_nothing_unrelated(capsys):
    assert run(["budget", "-n", "600", "-b", "60", "-e", "1", "--noise-multiplier", "1", "--accountant", "prv"]) == 2
    error = capsys.readouterr().err
    assert "use 'pld'" in error
    assert len(error.splitlines()) == 1
