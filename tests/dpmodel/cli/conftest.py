"""Configurations that train in a moment."""

from __future__ import annotations

import pytest

TINY = """\
data: {name: synthetic, shape: [1, 4, 4], num_train: 120, num_test: 40, num_classes: 3}
network: linear
optimizer: {name: SGD, lr: 0.5}
privacy:
  noise_multiplier: 1.5
  delta: 1e-4
  norm_bound: 0.5
training: {epochs: 2, batch_size: 12}
output: {curve: false}
"""


@pytest.fixture
def tiny(tmp_path):
    """Path of a configuration with 20 steps on 120 synthetic examples."""
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def trained_once(tmp_path_factory):
    """The folder of a training of ``TINY``, to be copied."""
    from dpmodel import load_config, train_from_config

    folder = tmp_path_factory.mktemp("trained")
    (folder / "tiny.yaml").write_text(TINY)
    train_from_config(load_config(folder / "tiny.yaml"), folder / "run")
    return folder / "run"


@pytest.fixture
def command(capsys):
    """Runs the command line in this process: exit code, standard output, standard error."""
    from dpmodel.cli.application import run

    def call(*arguments):
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
