"""Handcrafted features against end-to-end networks: the table of Tramèr and Boneh 2021 at epsilon 3, trained again.

    python examples/handcrafted.py                          # all rows, three seeds each
    python examples/handcrafted.py --only mnist --seeds 1   # rows whose name contains "mnist", one seed
    python examples/handcrafted.py --docs handcrafted.md    # also write the table as a page
    python examples/handcrafted.py --only scattering_linear --epsilon 1 --set training.epochs=20

One configuration in `configs/handcrafted/` for each row. A training that has finished is read, not repeated, and one
that was interrupted is resumed. The published settings are accounted by `pld`: their noise was solved for by an older
conversion of Renyi divergences, so most spend less than 3.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dpmodel import Ledger, load_config, privacy_spent, train_from_config
from monitors import GaussianEvent, PoissonSampledEvent

CONFIGS = Path(__file__).parents[1] / "configs" / "handcrafted"
EPSILON, DELTA = 3.0, 1e-5


@dataclass(frozen=True)
class Published:
    """A published row and the settings that its authors give for it.

    Args:
        accuracy: Test accuracy in percent, at a stated epsilon of 3.
        examples: Training examples.
        batch_size: Expected batch.
        epochs: Passes over the data.
        noise_multiplier: Noise of each step.
        statistics: Noise multiplier of the private mean and variance, two releases; None if there are none.
    """

    accuracy: float
    examples: int
    batch_size: int
    epochs: int
    noise_multiplier: float
    statistics: float | None = None

    def ledger(self) -> Ledger:
        """The releases of these settings."""
        ledger = Ledger()
        if self.statistics is not None:
            ledger.record(GaussianEvent(self.statistics), 2)
        steps = self.epochs * (self.examples // self.batch_size)
        step = PoissonSampledEvent(self.batch_size / self.examples, GaussianEvent(self.noise_multiplier))
        ledger.record(step, steps)
        return ledger


#: By the name of the configuration. Accuracies: table 1 of the paper; settings: the commands of its repository, whose
#: trainings end after 40 epochs (MNIST, Fashion-MNIST), 30 (CIFAR-10, from pixels) and 60 (CIFAR-10, from features).
ROWS = {
    "mnist_cnn": Published(98.1, 60_000, 512, 40, 1.23),
    "mnist_scattering_linear": Published(98.7, 60_000, 4096, 40, 3.04, 8.0),
    "mnist_scattering_cnn": Published(98.7, 60_000, 1024, 40, 1.35, 8.0),
    "fashion_mnist_cnn": Published(86.0, 60_000, 2048, 40, 2.15),
    "fashion_mnist_scattering_linear": Published(89.7, 60_000, 8192, 40, 4.05),
    "fashion_mnist_scattering_cnn": Published(89.0, 60_000, 2048, 40, 2.15),
    "cifar10_cnn": Published(59.2, 50_000, 1024, 30, 1.54),
    "cifar10_scattering_linear": Published(67.0, 50_000, 8192, 60, 5.67, 8.0),
    "cifar10_scattering_cnn": Published(69.3, 50_000, 8192, 60, 5.67, 8.0),
}


@dataclass(frozen=True)
class Trained:
    """Accuracies in percent and epsilons of the trainings of a row, and the epsilon that their noise was solved for."""

    accuracies: list[float]
    epsilons: list[float]
    target: float


def trained(name: str, seeds: Iterable[int], epsilon: float, overrides: list[str], output: Path) -> Trained:
    """Train a row with each seed, or read what was trained before."""
    overrides = [f"privacy.target_epsilon={epsilon:g}", *overrides]
    accuracies, epsilons = [], []
    for seed in seeds:
        folder = output / name / f"seed{seed}"
        report = folder / "privacy_report.json"
        config = load_config(CONFIGS / f"{name}.yaml", [f"training.seed={seed}", *overrides])
        if not (report.exists() and json.loads(report.read_text())["status"] == "finished"):
            print(f"{name}, seed {seed}: training in {folder}", flush=True)
            train_from_config(config, folder, resume=(folder / "training_state.safetensors").exists())
        with (folder / "history.csv").open(newline="", encoding="utf-8") as stream:
            *_, last = csv.DictReader(stream)
        accuracies.append(100 * float(last["accuracy"]))
        epsilons.append(float(json.loads(report.read_text())["epsilon"]))
    return Trained(accuracies, epsilons, epsilon)


def line(name: str, found: Trained) -> dict[str, str]:
    """The cells of a row of the table; what was published only at its epsilon."""
    row = ROWS[name]
    spread = f" (sd {statistics.stdev(found.accuracies):.2f})" if len(found.accuracies) > 1 else ""
    cells = {
        "configuration": name,
        "accuracy (%)": f"{statistics.mean(found.accuracies):.2f}{spread}",
        "published (%)": f"{row.accuracy:.1f}",
        "epsilon": f"{max(found.epsilons):.3f}",
        "epsilon of the published settings": f"{privacy_spent(row.ledger(), DELTA, 'pld').epsilon:.2f}",
    }
    if found.target != EPSILON:
        cells = {name: text for name, text in cells.items() if "published" not in name}
    return cells


def table(lines: list[dict[str, str]]) -> str:
    """A Markdown table."""
    rows = [list(lines[0]), ["---"] * len(lines[0]), *(list(cells.values()) for cells in lines)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in rows) + "\n"


def page(lines: list[dict[str, str]], arguments: str, seeds: list[int], epsilon: float) -> str:
    """The page with the table."""
    published = "Published: Tramèr and Boneh 2021, table 1, at a stated epsilon of 3.\n" if epsilon == EPSILON else ""
    return (
        "# Handcrafted features\n\n"
        f"Written by `python examples/handcrafted.py{arguments}`. Test accuracy after the last epoch, mean over the "
        f"seeds {', '.join(map(str, seeds))}; epsilon at delta {DELTA:g} by the accountant `pld`, at most {epsilon:g}. "
        f"No epoch was selected. {published}".rstrip()
        + "\n\n"
        f"{table(lines)}"
    )


def main(given: list[str] | None = None) -> None:
    """Train the rows and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="rows whose name contains this")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds")
    parser.add_argument("--epsilon", type=float, default=EPSILON, help="of each training")
    parser.add_argument("--output", type=Path, default=Path("runs/handcrafted"), help="folder of the trainings")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a setting of all rows"
    )
    parser.add_argument("--docs", type=Path, help="write the table to this page")
    options = parser.parse_args(given)
    names = [name for name in ROWS if options.only in name]
    if not names:
        parser.error(f"no row contains {options.only!r}; there are {', '.join(ROWS)}")
    if options.seeds < 1:
        parser.error(f"--seeds must be at least 1, got {options.seeds}")
    seeds = list(range(1, options.seeds + 1))
    arguments = f" --only {options.only}" if options.only else ""
    arguments += f" --seeds {options.seeds}" + ("" if options.epsilon == EPSILON else f" --epsilon {options.epsilon:g}")
    arguments += "".join(f" --set {setting}" for setting in options.set if not setting.startswith("data."))
    lines = []
    for name in names:
        lines.append(line(name, trained(name, seeds, options.epsilon, options.set, options.output)))
        print(table(lines), flush=True)
        if options.docs is not None:
            options.docs.write_text(page(lines, arguments, seeds, options.epsilon), encoding="utf-8")


if __name__ == "__main__":
    main()
