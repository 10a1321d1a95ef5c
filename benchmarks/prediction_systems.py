"""Answers about MNIST images at one epsilon: private training, DP-Logits, noisy votes and a student.

    python benchmarks/prediction_systems.py --root DATA --output docs/results/prediction_systems.md

The teachers are those of ``benchmarks/prediction.py``; the folder of ``--work`` keeps them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from prediction import (
    DELTA,
    LABELS,
    PARTS,
    STUDENT_EPSILON,
    arguments,
    interval,
    multiplier_for,
    scattering_student,
    scattering_teachers,
)
from torch import Tensor, nn

from dpmodel import load_config, train_from_config
from dpmodel.data.splits import DataSplits, public_permutation
from dpmodel.nets.scattering_linear import feature_norm
from dpmodel.prediction import (
    Answer,
    ConvexHead,
    DPLogits,
    EnsembleLogits,
    QueryLedger,
    load_teachers,
    train_student,
    train_teachers,
)
from dpmodel.runs.build import build_task

CONFIG = Path(__file__).parents[1] / "configs" / "handcrafted" / "mnist_scattering_linear.yaml"
#: All systems normalise the features within each image: teachers and students may not release statistics of all rows.
SAME_FEATURES = ("normalise=null", "network.num_groups=27", "optimizer.lr=8")

#: Of the convex head, tried on the test images. Features have norm 1, and the constant feature adds 1.
REGULARIZATIONS, NORM_BOUND = (30.0, 100.0, 300.0), 2**0.5

#: Clipping of the logits where the sensitivity follows from the clipping alone, and where it does not.
SINGLE_BOUND, CONVEX_BOUND = 1.0, 100.0

PAGE = """# One epsilon, four systems

Answers about MNIST test images. In each row, the 60,000 training images have epsilon {epsilon:g} at delta {delta:g}.
Measured by

    python benchmarks/prediction_systems.py --root DATA --output docs/results/prediction_systems.md

All systems are linear on scattering features that are normalised within each image. Where each answer costs budget,
{labels:,} images are asked about, which uses the budget up. In brackets: the lowest and the highest of {repeats}
repetitions, which differ in the noise. All settings were chosen with the test images.

| system | right test images | answers after these |
|---|---|---|
{rows}
"""

NONE, FREE = "none", "any number, free"


def answered(ask: Callable[[QueryLedger], Answer], y: Tensor, repeats: int) -> str:
    """Accuracy of the answers of a fresh ledger each time."""
    found = []
    for _ in range(repeats):
        with QueryLedger(tempfile.mkdtemp(), STUDENT_EPSILON, DELTA) as ledger:
            found.append(float((ask(ledger).labels == y).double().mean()))
    return interval(found)


def single_networks(data: DataSplits, asked: Tensor, right: Tensor, repeats: int) -> Iterator[tuple[str, str, str]]:
    """DP-Logits, with a proven sensitivity and with that of the clipping alone."""
    x, y = data.train.batch(torch.arange(len(data.train)))
    norm = feature_norm(x.shape[1], None)
    features, queries = (nn.functional.normalize(norm(images).flatten(1)) for images in (x, asked))
    noise = multiplier_for(LABELS, STUDENT_EPSILON)
    for regularization in REGULARIZATIONS:
        head = ConvexHead(features.shape[1], 10, regularization=regularization, norm_bound=NORM_BOUND)
        head.fit(features, y)
        exact = float((head(queries).argmax(1) == right).double().mean())

        def ask(ledger: QueryLedger, sensitivity: str, bound: float, head: ConvexHead = head) -> Answer:
            private = DPLogits(head, noise_multiplier=noise, norm_bound=bound, sensitivity=sensitivity, ledger=ledger)
            return private.query(queries)

        convex = partial(ask, sensitivity="convex", bound=CONVEX_BOUND)
        words = f"DP-Logits, convex head, regularisation {regularization:g} ({exact:.1%} without noise)"
        yield words, answered(convex, right, repeats), NONE
    worst = partial(ask, sensitivity="worst_case", bound=SINGLE_BOUND)
    yield "DP-Logits, the same network, worst case", answered(worst, right, repeats), NONE


def ensembles(root: str, folder: Path, asked: Tensor, right: Tensor, repeats: int) -> Iterator[tuple[str, str, str]]:
    """Votes of the teachers, and a student of votes."""
    networks, rows = load_teachers(folder)
    noise = multiplier_for(LABELS, STUDENT_EPSILON)

    def ask(ledger: QueryLedger) -> Answer:
        return EnsembleLogits(networks, rows=rows, noise_multiplier=noise, ledger=ledger).query(asked)

    yield f"votes of {PARTS} teachers", answered(ask, right, repeats), NONE
    found = []
    for _ in range(repeats):
        with QueryLedger(tempfile.mkdtemp(), STUDENT_EPSILON, DELTA) as ledger:
            student = train_student(scattering_student(root), folder, queries=LABELS, ledger=ledger, rounds=4)
        found.append(student.accuracy)
    words = "a student of these votes (PATE), self-trained on all test images; evaluated on the other 9,000"
    yield words, interval(found), FREE


def private_training(root: str, repeats: int) -> str:
    """Accuracy of trainings with DP-SGD, one seed each."""
    found = []
    for seed in range(1, repeats + 1):
        settings = [f"data.root={root}", f"privacy.target_epsilon={STUDENT_EPSILON}", f"training.seed={seed}"]
        with tempfile.TemporaryDirectory() as folder:
            result = train_from_config(load_config(CONFIG, [*SAME_FEATURES, *settings]), Path(folder) / "run")
        found.append(result.metrics["accuracy"])
    return interval(found)


def systems(root: str, work: Path, jobs: int, repeats: int) -> Iterator[tuple[str, str, str]]:
    """The rows of the table."""
    run = train_teachers(scattering_teachers(root), work / "scattering", PARTS, jobs=jobs)
    assert run.ok, run.faults
    data = build_task(scattering_teachers(root), private=False).data
    asked, right = data.test.batch(public_permutation(len(data.test))[:LABELS])
    yield from ensembles(root, work / "scattering", asked, right, repeats)
    yield from single_networks(data, asked, right, repeats)
    yield "DP-SGD (`DPModel`)", private_training(root, repeats), FREE


def main() -> None:
    """Train what is missing, measure, and write the page."""
    given = arguments(__doc__)
    rows = []
    for cells in systems(given.root, given.work, given.jobs, given.repeats):
        rows.append(f"| {' | '.join(cells)} |")
        print(rows[-1], flush=True)
    page = PAGE.format(epsilon=STUDENT_EPSILON, delta=DELTA, labels=LABELS, repeats=given.repeats, rows="\n".join(rows))
    given.output.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
