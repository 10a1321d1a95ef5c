"""Private prediction on MNIST: labels of 250 teachers, and students that learn from such labels.

    python benchmarks/prediction.py --root DATA --work runs/prediction --output docs/results/private_prediction.md

Teachers are kept in the folder of ``--work``: a repeated run measures the answers again, not the training.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch

from dpmodel.config import Config, make_config
from dpmodel.data.splits import public_permutation
from dpmodel.prediction import EnsembleLogits, QueryLedger, load_teachers, train_student, train_teachers
from dpmodel.runs.build import build_task
from monitors.gaussian import gaussian_mu

PARTS, DELTA = 250, 1e-5
LABELS, LABEL_EPSILON = 1000, 5.0
STUDENT_EPSILON = 2.0

#: A little more noise than the budget needs, for rounding.
SLACK = 1 + 1e-9

SCATTERING = {"name": "scattering", "J": 2, "L": 8}

PAGE = """# Private prediction

MNIST, {parts} teachers on disjoint parts of the 60,000 training images, about 240 each; delta {delta:g}. Measured by

    python benchmarks/prediction.py --root DATA --work runs/prediction --output docs/results/private_prediction.md

Each answer is a Gaussian release of the votes. Each set of teachers has its own random parts. In brackets: the lowest
and the highest of {repeats} repetitions, which differ in the noise. All settings were chosen with the test images.

## Labels

{labels:,} test images, labelled at epsilon {label_epsilon:g}; noise multiplier {multiplier:.2f}.

| teachers | accuracy of a teacher | of the votes without noise (not private) | of the private labels |
|---|---|---|---|
{label_rows}

## A student

A linear classifier on scattering features, trained on the private labels of some test images, at a whole epsilon of
{student_epsilon:g}. The teachers are trained in the same way. It is evaluated on the test images that were not queried.
In self-training, it labels all 10,000 test images itself, and is trained on that: their true labels are never used.

| queries | private labels that are right | rounds of self-training | accuracy of the student | test images |
|---|---|---|---|---|
{student_rows}
"""


def configuration(
    root: str,
    features: dict[str, Any] | None,
    smoothing: float = 0.0,
    network: dict[str, Any] | None = None,
    **training: Any,
) -> Config:
    """A linear classifier on the pixels or on features, or another network."""
    return make_config(
        {
            "data": {"name": "mnist", "root": root},
            "features": features,
            "network": network or {"name": "linear" if features is None else "scattering_linear"},
            "loss": {"name": "cross_entropy", **({"label_smoothing": smoothing} if smoothing else {})},
            "optimizer": {"name": "Momentum", "momentum": 0.9, **training.pop("optimizer")},
            "privacy": {"noise_multiplier": 1.0},
            "training": training,
            "performance": {"threads": 1},
        }
    )


#: Weights decay, so that teachers and students keep near their initial weights.
_GENTLE = {"lr": 0.001, "weight_decay": 0.1}


def pixel_teachers(root: str) -> Config:
    """Linear classifiers on the pixels."""
    return configuration(root, None, optimizer={"lr": 0.1}, epochs=20, batch_size=32)


def convolutional_teachers(root: str) -> Config:
    """The end-to-end network of Tramèr and Boneh for MNIST."""
    return configuration(root, None, network={"name": "small_cnn"}, optimizer={"lr": 0.05}, epochs=40, batch_size=16)


def scattering_teachers(root: str) -> Config:
    """Linear classifiers on scattering features."""
    return configuration(root, SCATTERING, optimizer=_GENTLE, epochs=10, batch_size=20)


def scattering_student(root: str) -> Config:
    """A student; smoothed targets keep it from repeating its own labels, wrong ones too, in self-training."""
    return configuration(root, SCATTERING, 0.4, optimizer=_GENTLE, epochs=5, batch_size=20)


#: Kinds of teachers by the name of their folder: words for the table, and configuration.
TEACHERS = {
    "linear": ("linear, on the pixels", pixel_teachers),
    "cnn": ("a small CNN, on the pixels", convolutional_teachers),
    "scattering": ("linear, on scattering features", scattering_teachers),
}


def measured_labels(folder: Path, x: torch.Tensor, y: torch.Tensor, repeats: int) -> str:
    """One row of the table of labels."""
    networks, rows = load_teachers(folder)
    with torch.no_grad():
        alone = [float((network(x).argmax(1) == y).double().mean()) for network in networks]
        votes = torch.stack([torch.nn.functional.one_hot(network(x).argmax(1), 10) for network in networks]).sum(0)
    multiplier, found = multiplier_for(LABELS, LABEL_EPSILON), []
    for _ in range(repeats):
        with QueryLedger(tempfile.mkdtemp(), LABEL_EPSILON, DELTA) as ledger:
            ensemble = EnsembleLogits(networks, rows=rows, noise_multiplier=multiplier, ledger=ledger)
            found.append(float((ensemble.predict(x) == y).double().mean()))
    exact = float((votes.argmax(1) == y).double().mean())
    return f"{statistics.mean(alone):.1%} | {exact:.1%} | {interval(found)}"


def multiplier_for(queries: int, epsilon: float) -> float:
    """The noise multiplier with which the queries spend epsilon."""
    multiplier: float = queries**0.5 / gaussian_mu(epsilon, DELTA) * SLACK
    return multiplier


def interval(found: list[float]) -> str:
    """Mean, lowest and highest."""
    return f"{statistics.mean(found):.1%} ({min(found):.1%} to {max(found):.1%})"


def measured_student(config: Config, teachers: Path, queries: int, rounds: int, repeats: int) -> str:
    """One row of the table of students."""
    labels, found, held_out = [], [], 0
    for _ in range(repeats):
        with QueryLedger(tempfile.mkdtemp(), STUDENT_EPSILON, DELTA) as ledger:
            student = train_student(config, teachers, queries=queries, ledger=ledger, rounds=rounds)
        labels.append(student.label_accuracy)
        found.append(student.accuracy)
        held_out = student.held_out
        print(queries, rounds, student.to_dict(), flush=True)
    return f"| {queries:,} | {interval(labels)} | {rounds} | {interval(found)} | {held_out:,} |"


def arguments(description: str | None) -> argparse.Namespace:
    """The options of a benchmark of private prediction."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", required=True, help="folder of the MNIST files")
    parser.add_argument("--work", type=Path, default=Path("runs/prediction"), help="folder of the teachers")
    parser.add_argument("--jobs", type=int, default=1, help="processes that train teachers")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, required=True, help="the page, as Markdown")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, measure, and write the page."""
    given = arguments(__doc__)
    label_rows = []
    for name, (words, configured) in TEACHERS.items():
        config = configured(given.root)
        run = train_teachers(config, given.work / name, PARTS, jobs=given.jobs)
        assert run.ok, run.faults
        print(f"{name}: {run.parts} teachers, {run.reused} of them earlier", flush=True)
        test = build_task(config, private=False).data.test
        x, y = test.batch(public_permutation(len(test))[:LABELS])
        label_rows.append(f"| {words} | {measured_labels(given.work / name, x, y, given.repeats)} |")
        print(label_rows[-1], flush=True)
    learner = scattering_student(given.root)
    students = [
        measured_student(learner, given.work / "scattering", queries, rounds, given.repeats)
        for queries, rounds in ((400, 0), (400, 4), (1000, 4))
    ]
    page = PAGE.format(
        parts=PARTS,
        delta=DELTA,
        repeats=given.repeats,
        labels=LABELS,
        label_epsilon=LABEL_EPSILON,
        student_epsilon=STUDENT_EPSILON,
        multiplier=multiplier_for(LABELS, LABEL_EPSILON),
        label_rows="\n".join(label_rows),
        student_rows="\n".join(students),
    )
    given.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
