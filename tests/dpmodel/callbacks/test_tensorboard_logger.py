import sys
import types
from typing import ClassVar

import pytest

from dpmodel.callbacks import TensorBoardLogger


class FakeWriter:
    made: ClassVar[list] = []

    def __init__(self, log_dir):
        self.log_dir, self.points, self.closed = log_dir, [], False
        FakeWriter.made.append(self)

    def add_scalar(self, name, value, global_step):
        self.points.append((name, value, global_step))

    def flush(self):
        pass

    def close(self):
        self.closed = True


@pytest.fixture
def writer(monkeypatch):
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = FakeWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    FakeWriter.made.clear()
    return FakeWriter


def test_figures_are_written_by_step_and_by_epoch(tmp_path, writer, fake_run):
    fake_run(epochs=2, steps_per_epoch=3, metrics=[{"accuracy": 0.5}]).train(
        [TensorBoardLogger(tmp_path, every_n_steps=3)]
    )
    (made,) = writer.made
    assert made.closed
    assert made.log_dir == str(tmp_path)
    steps = {name: [step for other, _, step in made.points if other == name] for name, _, _ in made.points}
    for name in ("train/loss (not private)", "privacy/noise_multiplier", "privacy/norm_bound", "valid/accuracy"):
        assert steps[name] == [3, 6]
    assert ("privacy/epsilon", pytest.approx(0.6), 6) in made.points


def test_without_tensorboard_the_error_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[tensorboard\]"'):
        TensorBoardLogger()
