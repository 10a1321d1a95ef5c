"""Cost of correlated noise: of a step of LeNet5, and of the coefficients of a long training.

    PYTHONPATH=. python benchmarks/correlated_noise.py

Steps with independent and with correlated noise take turns; the table shows the median of the ratios of neighbouring
rounds. Each round takes 20 steps of each kind. Writes ``benchmarks/results/correlated_noise.md``.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import machine
import steps
import torch
from workloads import WORKLOADS

from mechanisms.correlated.banded import BandedMF
from mechanisms.correlated.toeplitz import factorisation_error, optimal_coefficients
from mechanisms.correlated.workload import Workload
from mechanisms.noise import Gaussian

SIZE, BANDS, STEPS = 512, (2, 8, 16), 20
LONG, MOMENTUM = 10_000, 0.9

PAGE = """# Correlated noise

{machine}

Measured by `PYTHONPATH=. python benchmarks/correlated_noise.py`.

## A step

LeNet5, batch {size}, engine `bookkeeping`: {rounds} rounds of {steps} steps of each kind, which take turns. The noise
of a step with independent noise takes {share:.1%} of its time.

| bands | time of a step over that with independent noise |
|---|---|
{ratios}

## Coefficients

Of a training of {long:,} steps with momentum {momentum} and a learning rate that falls linearly to zero, once per
training.

| bands | CPU time | standard deviation of the noise of the last weights, over that of independent noise |
|---|---|---|
{coefficients}
"""


def noise_of(bands: int) -> Gaussian | BandedMF:
    """Independent noise for 1 band, else correlated noise."""
    if bands == 1:
        return Gaussian(initial_noise_multiplier=1.0)
    return BandedMF(initial_noise_multiplier=1.0, bands=bands).prepared(falling(100))


def falling(count: int) -> Workload:
    """The workload of a training whose learning rate falls linearly to zero."""
    rates = [1.0 - step / count for step in range(count)]
    return Workload.of_last_iterate(rates, momentum=MOMENTUM)


def step_with(bands: int) -> steps.Step:
    """A function that takes one training step with noise of ``bands`` bands."""
    return steps.private_step("bookkeeping", WORKLOADS["lenet5"], SIZE, noise=noise_of(bands)).step


def seconds(step: steps.Step, count: int) -> float:
    """Seconds for ``count`` steps."""
    begun = time.perf_counter()
    for _ in range(count):
        step()
    return time.perf_counter() - begun


def noise_seconds(count: int) -> float:
    """Seconds for the independent noise of ``count`` steps."""
    noise, vector = Gaussian(initial_noise_multiplier=1.0), torch.zeros(61_684)
    return seconds(lambda: vector.add_(noise.sample(vector.numel(), 0)), count)


def main() -> None:
    """Measure, and write the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args()
    described = machine.description()
    made = {bands: step_with(bands) for bands in (1, *BANDS)}
    for step in made.values():
        seconds(step, 3)
    rounds = [{bands: seconds(step, STEPS) for bands, step in made.items()} for _ in range(asked.rounds)]
    alone = statistics.median(one[1] for one in rounds)
    ratios = [f"| {bands} | {statistics.median(one[bands] / one[1] for one in rounds):.3f} |" for bands in BANDS]
    workload, rows = falling(LONG), []
    for bands in BANDS:
        begun = time.process_time()
        error = factorisation_error(optimal_coefficients(bands, workload), workload)
        rows.append(f"| {bands} | {time.process_time() - begun:.2f} s | {error:.3f} |")
    page = PAGE.format(
        machine=described,
        size=SIZE,
        rounds=asked.rounds,
        steps=STEPS,
        share=noise_seconds(STEPS) / alone,
        ratios="\n".join(ratios),
        long=LONG,
        momentum=MOMENTUM,
        coefficients="\n".join(rows),
    )
    (Path(__file__).parent / "results" / "correlated_noise.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
