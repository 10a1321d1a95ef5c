"""The time of a step of fine-tuning by what is trained: everything, the last block and the head, adapters, the head.

    PYTHONPATH=. python benchmarks/fine_tuning.py [--rounds 5] [--threads 1] [--output FILE]

The network is a decoder with 4 blocks of width 256 for 64 tokens of a vocabulary of 5,000. Adapters have rank 8 and
are added to both linear layers behind the attention of each block. Plain and private steps alternate, and the clock
counts the time in which this process was computing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from machine import description
from steps import BOUND, CLOCKS, LEARNING_RATE, timed
from torch import Tensor, nn
from workloads import VOCABULARY, CausalLM, TokenLoss

from mechanisms.clipping import Fixed
from mechanisms.engines import Batch, FlatLayout, choose_engine
from mechanisms.noise import Gaussian
from mechanisms.units import ClippedUnit

WIDTH, LAYERS, HEADS, LENGTH, RANK = 256, 4, 4, 64, 8


class LowRank(nn.Module):
    """A frozen linear layer plus a trainable product of two narrow ones, which starts at zero."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """The output of the frozen layer and of the adapter."""
        output: Tensor = self.linear(x) + self.up(self.down(x))
        return output


def everything(network: CausalLM) -> None:
    """Train all parameters."""


def last_block_and_head(network: CausalLM) -> None:
    network.requires_grad_(False)
    for part in (network.decoder.layers[-1], network.norm, network.head):
        part.requires_grad_(True)


def adapters(network: CausalLM) -> None:
    network.requires_grad_(False)
    for block in network.decoder.layers:
        block.linear1, block.linear2 = LowRank(block.linear1, RANK), LowRank(block.linear2, RANK)


def head(network: CausalLM) -> None:
    network.requires_grad_(False)
    network.head.requires_grad_(True)


WHAT: dict[str, Callable[[CausalLM], None]] = {
    "everything": everything,
    "the last block and the head": last_block_and_head,
    f"adapters of rank {RANK}": adapters,
    "the head": head,
}


def network_and_optimizer(choose: Callable[[CausalLM], None]) -> tuple[CausalLM, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = CausalLM(VOCABULARY, WIDTH, LAYERS, HEADS, LENGTH)
    choose(network)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return network, torch.optim.SGD(trained, lr=LEARNING_RATE, momentum=0.9)


def plain_step(choose: Callable[[CausalLM], None], tokens: Tensor) -> Callable[[], None]:
    network, optimizer = network_and_optimizer(choose)
    loss_fn = TokenLoss()

    def step() -> None:
        optimizer.zero_grad()
        loss_fn(network(tokens), tokens).backward()
        optimizer.step()

    return step


def private_step(choose: Callable[[CausalLM], None], tokens: Tensor) -> tuple[Callable[[], None], str, int]:
    """A private step, the name of its engine, and the number of trained parameters."""
    network, optimizer = network_and_optimizer(choose)
    loss_fn, unit, clip = TokenLoss(), ClippedUnit(1, len(tokens)), Fixed()
    noise = Gaussian(initial_noise_multiplier=1.0)
    engine = choose_engine("auto", network, loss_fn, unit, Batch(tokens[:2], tokens[:2])).engine
    layout, numbers = FlatLayout.of(network), itertools.count()
    trained = optimizer.param_groups[0]["params"]
    clip.start(BOUND)
    total = layout.zeros(layout.size)

    def step() -> None:
        summed = engine.clipped_sum(network, loss_fn, Batch(tokens, tokens), clip, total)
        released = noise.add(summed, next(numbers)).div_(len(tokens))
        for parameter, gradient in zip(trained, layout.views(released), strict=True):
            parameter.grad = gradient
        optimizer.step()
        optimizer.zero_grad()

    return step, engine.name, layout.size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0, help="time of each measurement")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    tokens = torch.randint(0, VOCABULARY, (options.batch, LENGTH))
    lines = [
        "# Fine-tuning by what is trained",
        "",
        f"`PYTHONPATH=. python benchmarks/fine_tuning.py --output {options.output or 'FILE'}`: a decoder with {LAYERS} "
        f"blocks of width {WIDTH} for {LENGTH} tokens of a vocabulary of {VOCABULARY:,}, batch {options.batch}. "
        f"Medians of {options.rounds} alternating rounds, CPU time of the process. {description()}",
        "",
        "| trained | parameters | engine | plain step, ms | private step, ms | private over private of everything |",
        "|---|---|---|---|---|---|",
    ]
    whole = None
    for name, choose in WHAT.items():
        plain = plain_step(choose, tokens)
        private, engine, size = private_step(choose, tokens)
        times: dict[Callable[[], None], list[float]] = {plain: [], private: []}
        for step in times:
            step()  # the first step surveys the network and allocates
        for _ in range(options.rounds):
            for step, measured in times.items():
                measured.append(timed(step, options.seconds, CLOCKS["cpu"]))
        plainly, privately = (1000 * statistics.median(measured) for measured in times.values())
        whole = privately if whole is None else whole
        lines.append(f"| {name} | {size:,} | `{engine}` | {plainly:.0f} | {privately:.0f} | {privately / whole:.2f} |")
        print(lines[-1], flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
