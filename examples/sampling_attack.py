"""Repeated queries against noisy logits: noise that nobody charges washes out, a charged budget holds.

    python examples/sampling_attack.py [--output sampling_attack.png]

A network memorises 100 examples with random labels. An attacker, who sees noisy answers only, tells these members from
100 other examples by the mean of many answers to the same query (Rahimian, Orekondy and Fritz 2020). The same noise is
used twice: once without a ledger (`sensitivity=None`), once charged to a budget of epsilon 4.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from torch import nn

from dpmodel.prediction import DPLogits, QueryLedger, SamplingAttack, advantage_bound, sampling_attack
from monitors import gaussian_mu

EPSILON, DELTA = 4.0, 1e-3
NOISE_MULTIPLIER, NORM_BOUND = 25.0, 1.0
REPEATS = (1, 2, 4, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000)


def memorised(count: int = 100) -> tuple[nn.Module, torch.Tensor, torch.Tensor, torch.Tensor]:
    """A network that has memorised its examples; those and as many others, their labels, and which are members."""
    torch.manual_seed(0)
    x, y = torch.randn(2 * count, 20), torch.randint(0, 4, (2 * count,))
    network = nn.Sequential(nn.Linear(20, 256), nn.ReLU(), nn.Linear(256, 4))
    optimizer = torch.optim.Adam(network.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[:count]), y[:count]).backward()
        optimizer.step()
    return network, x, y, torch.arange(2 * count) < count


def attacked(network: nn.Module, x: torch.Tensor, y: torch.Tensor, members: torch.Tensor) -> dict[str, SamplingAttack]:
    """The attack on both interfaces."""
    free = DPLogits(network, sensitivity=None, noise_multiplier=2 * NOISE_MULTIPLIER, norm_bound=NORM_BOUND)
    with QueryLedger(Path(tempfile.mkdtemp()) / "queries", EPSILON, DELTA) as ledger:
        charged = DPLogits(network, noise_multiplier=NOISE_MULTIPLIER, norm_bound=NORM_BOUND, ledger=ledger)
        assert charged.noise is not None
        assert free.noise is not None
        assert charged.noise.deviation == free.noise.deviation
        return {
            "not charged": sampling_attack(free.query, x, y, members, REPEATS),
            "charged": sampling_attack(charged.query, x, y, members, REPEATS),
        }


def draw(results: dict[str, SamplingAttack], path: Path) -> None:
    """Draw the advantage against the number of queries."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 4.0), layout="constrained")
    for name, marker in (("not charged", "o"), ("charged", "s")):
        points = results[name].points
        repeats = [point.repeats for point in points]
        axes.plot(repeats, [point.advantage for point in points], marker=marker, label=f"noise {name}")
        lower, upper = zip(*(point.interval for point in points), strict=True) if points else ((), ())
        axes.fill_between(repeats, lower, upper, alpha=0.15)
    bound, exhausted = advantage_bound(gaussian_mu(EPSILON, DELTA)), results["charged"].exhausted
    axes.axhline(bound, linestyle="--", color="black", label=f"bound at epsilon {EPSILON:g}, delta {DELTA:g}")
    if exhausted is not None:
        axes.axvline(max(exhausted, 1), linestyle=":", color="grey", label="budget exhausted")
    axes.set(xscale="log", ylim=(-0.2, 1.05), xlabel="queries for each example", ylabel="advantage of the attacker")
    axes.legend(loc="upper left", fontsize="small", framealpha=1.0)
    figure.savefig(path, dpi=150)


def main() -> None:
    """Run both attacks, print them, and draw them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("sampling_attack.png"))
    output = parser.parse_args().output
    results = attacked(*memorised())
    for name, found in results.items():
        print(f"noise {name}:")
        for point in found.points:
            low, high = point.interval
            print(f"  {point.repeats:5,} queries: AUC {point.auc:.2f}, advantage {low:.2f} to {high:.2f}")
        if found.exhausted is not None:
            print(f"  the budget allowed {found.exhausted:,} queries for each example")
    print(f"bound on the advantage at epsilon {EPSILON:g}: {advantage_bound(gaussian_mu(EPSILON, DELTA)):.2f}")
    draw(results, output)
    print(f"figure: {output}")


if __name__ == "__main__":
    main()
