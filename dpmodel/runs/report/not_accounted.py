"""What an epsilon of a training does not cover, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dpmodel.runs.report.subject import ReportSubject


def not_accounted(subject: ReportSubject) -> tuple[str, ...]:
    """One sentence for each thing that the epsilon of a training does not cover.

    Args:
        subject: The training.
    """
    general = (
        "Hyper-parameter tuning: choosing this run, its settings or its seed after seeing other runs on the same "
        "training data is a separate release, which this epsilon does not include.",
        "Training loss: the loss shown during training and kept in history.csv is computed from the training data "
        "without noise, and so is the number of gradients that were left out because they are not finite, which is "
        "shown once. Do not publish them.",
        "Broken gradients: a training ends early when most gradients are not finite for many steps in a row. Such an "
        "end reveals something about the data without noise; a training that ended as planned does not.",
        "Evaluation data: metrics are measured without noise on examples that this training does not use (test "
        "examples, or training examples held back by data.validation); the guarantee does not cover those.",
        "Other uses of the same training data: earlier or later trainings, statistics and pre-processing add to what "
        "is spent; merge their ledgers (monitors.Ledger.merge) for the total.",
        "Persons with several examples: the unit is one example. A person with k examples is protected less: at the "
        "same delta, their epsilon is more than k times as large, often far more. Declare "
        "card.contributions_per_person to have it computed (in Python: monitors.group_epsilon).",
        "Rows that are not independent: repeated rows and rows read by several examples are detected before "
        "training. Modified copies of a record, and statistics computed earlier over all rows, cannot be detected.",
        _of_the_size(subject.release.sampler.num_examples_public),
    )
    return (*general, *_of_the_choice(subject.rows_by_position), *_of_the_data(subject.public_constants))


def _of_the_size(stated: int | None) -> str:
    if stated is None:
        return (
            "The number of training examples, the number of classes, the batch size and all settings are treated as "
            "public, also if the classes were counted in the training labels."
        )
    return (
        f"The batch size, all settings and the stated number of examples ({stated:,}) are treated as public. The true "
        "number of training examples changes no rate and no number of steps, but the running time and the memory of "
        "the training depend on it. Earlier releases (privacy.spent) hold under their own conditions."
    )


def _of_the_choice(settings: tuple[str, ...]) -> tuple[str, ...]:
    if not settings:
        return ()
    verb = "chooses" if len(settings) == 1 else "choose"
    return (
        f"{' and '.join(settings)} {verb} rows by their position among all rows of the data set, whose number is "
        "treated as public: the neighbouring data set has the same number of rows, and one of them is left blank.",
    )


def _of_the_data(constants: tuple[str, ...]) -> tuple[str, ...]:
    if not constants:
        return ()
    return (
        f"{' and '.join(constants)} of the configuration are treated as public constants; if they were "
        "computed from the training data, that was a release which this epsilon does not include.",
    )
