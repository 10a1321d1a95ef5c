"""Run every Python block of a page: ``python tests/page_session.py docs/guide.md``, in an empty folder.

Blocks of the long pages use names that a reader already has, such as a model and a loader. Small objects with these
names are made anew for each block; names that a block defines remain for later blocks. If a block would download
weights or train for minutes, ``STAND_INS`` replaces that part.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

from dpmodel import DPModel, NoiseMechanismsFactory

#: Text of a block -> the text that runs instead.
STAND_INS = {
    'weights="DEFAULT"': "weights=None",
    'model.fit(loader, epochs=10, keeper=StateKeeper("runs/mine", resume': (
        'built(torch.nn.Linear(4, 3)).fit(loader, epochs=10, keeper=StateKeeper("runs/mine", resume'
    ),
    "epochs=10": "epochs=2",
}
CONFIGURATION = """
data: {name: synthetic, num_train: 300, num_test: 100}
network: linear
optimizer: {name: SGD, lr: 0.5}
privacy: {target_epsilon: 3.0}
training: {epochs: 1, batch_size: 30}
"""
COMPARISON = """
base: ../my_run.yaml
target: {epsilon: 3.0, delta: 1e-5, accountant: pld}
seeds: [1]
variants: [{name: fixed}, {name: smaller bound, set: {privacy.norm_bound: 0.5}}]
"""


class Scores(torch.nn.Module):
    """A network that takes the inputs of a language model by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = torch.nn.Embedding(20, 4), torch.nn.Linear(4, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head((self.table(input_ids) * attention_mask[..., None]).mean(1))


def built(network: torch.nn.Module) -> DPModel:
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=20.0)
    return DPModel(network, torch.nn.CrossEntropyLoss(), optimizer, noise_mech=noise, metrics="accuracy")


def readers_own(snippet: str) -> dict[str, Any]:
    """The names that a reader already has before the block."""
    x, y = torch.randn(80, 4), torch.arange(80) % 3
    if "input_ids" in snippet:
        mask = torch.ones(6)
        rows = [{"input_ids": torch.randint(0, 20, (6,)), "attention_mask": mask, "labels": label} for label in y]
        return {"model": built(Scores()), "dataset": rows, "DataLoader": DataLoader}
    model = built(torch.nn.Linear(4, 3))
    own = {name: getattr(model, name) for name in ("network", "loss_fn", "optimizer")}
    loader = DataLoader(TensorDataset(x[:60], y[:60]), batch_size=10)
    others = {"other_model": built(torch.nn.Linear(4, 3)), "held_out": TensorDataset(x[60:], y[60:])}
    return own | others | {"model": model, "loader": loader}


def run(page: Path) -> int:
    """Run the blocks of one page, and return their number."""
    Path("my_run.yaml").write_text(CONFIGURATION)
    Path("configs").mkdir()
    Path("configs/compare_schedules.yaml").write_text(COMPARISON)
    np.random.seed(0)
    names: dict[str, Any] = {"__name__": "page_session", "built": built, "torch": torch}
    sys.modules["page_session"] = sys.modules["__main__"]  # dataclasses look up the module of their class
    snippets = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    for number, snippet in enumerate(snippets, 1):
        for long, short in STAND_INS.items():
            snippet = snippet.replace(long, short)
        names |= readers_own(snippet)
        print(f"--- block {number}", flush=True)
        exec(compile(snippet, f"{page.name}, block {number}", "exec"), names)
    return len(snippets)


if __name__ == "__main__":
    print(run(Path(sys.argv[1])), "blocks ran")
