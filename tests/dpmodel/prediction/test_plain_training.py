"""Training of teachers and students: what the network sees."""

import pytest
import torch
from torch import nn

from dpmodel.augmentation import Augmentation
from dpmodel.config import make_config
from dpmodel.prediction.plain_training import PlainTraining
from dpmodel.runs.build import build_task

EXAMPLES = 12


class Recorder(nn.Module):
    """A linear network that keeps its inputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.seen = nn.Linear(2, EXAMPLES), []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.linear(x.flatten(1))


class RecordedLoss(nn.CrossEntropyLoss):
    """Keeps the targets in a list that copies of the loss share."""

    targets: list = []  # noqa: RUF012

    def forward(self, outputs, targets):
        self.targets.append(targets.clone())
        return super().forward(outputs, targets)


@pytest.fixture
def task():
    return build_task(
        make_config(
            {
                "data": {"name": "synthetic", "num_train": 40, "num_test": 8},
                "network": "lenet5",
                "optimizer": {"name": "SGD", "lr": 0.1},
                "privacy": {"noise": None},
                "augmentation": {"transforms": ["horizontal_flip"], "multiplicity": 3},
                "training": {"epochs": 1, "batch_size": 10},
            }
        ),
        private=False,
    )


def test_each_step_sees_all_views_of_its_examples(task, monkeypatch):
    monkeypatch.setattr(RecordedLoss, "targets", [])
    optimizer, network = task.config.optimizer, Recorder()
    x = torch.stack([torch.arange(EXAMPLES) + 1.0, -torch.arange(EXAMPLES) - 1.0], dim=1).view(EXAMPLES, 1, 1, 2)
    views = Augmentation("horizontal_flip", multiplicity=3)
    PlainTraining(RecordedLoss(), optimizer, 2, 4, augmentation=views).fit(network, x, torch.arange(EXAMPLES))
    seen, targets = torch.cat(network.seen), torch.cat(RecordedLoss.targets)
    assert len(seen) == 2 * EXAMPLES * 3
    assert torch.equal(seen.abs(), x[targets].abs())
    assert torch.bincount(targets).tolist() == [6] * EXAMPLES
    flipped = (seen[:, 0, 0, 0] < 0).double().mean()
    assert 0.2 < flipped < 0.8


def test_a_configuration_names_the_views(task):
    training = PlainTraining.of(task)
    assert repr(training.augmentation) == "Augmentation([HorizontalFlip()], multiplicity=3)"
