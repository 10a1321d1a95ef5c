"""Accuracy by subgroup of the evaluation data."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from monitors.errors import ConfigError
from monitors.untrusted import read_text

if TYPE_CHECKING:
    import torch

    from dpmodel.config.card import SubgroupsSection


def read_groups(section: SubgroupsSection, examples: int) -> list[str]:
    """The group of each evaluation example.

    Args:
        section: File and column.
        examples: Number of evaluation examples.

    Raises:
        ConfigError: The file cannot be read, has no such column, or not one line per example.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(read_text(section.file))))
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"card.subgroups.file: {section.file} cannot be read: {error}") from error
    columns = list(lines[0]) if lines else []
    if section.column not in columns:
        raise ConfigError(
            f"card.subgroups.column: {section.file} has no column {section.column!r}; it has "
            f"{', '.join(map(str, columns))}"
        )
    if len(lines) != examples:
        raise ConfigError(
            f"card.subgroups.file: {section.file} has {len(lines):,} lines, but there are {examples:,} evaluation "
            "examples; it needs one line for each, in their order"
        )
    return [str(line[section.column]) for line in lines]


def accuracy_by_group(predicted: torch.Tensor, targets: torch.Tensor, groups: Sequence[str]) -> list[dict[str, Any]]:
    """Accuracy and number of examples of each group, by name.

    Args:
        predicted: Predicted classes, shape (n,).
        targets: True classes, shape (n,).
        groups: Group of each example.

    Example:
        >>> import torch
        >>> accuracy_by_group(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), ["a", "a", "b"])
        [{'group': 'a', 'examples': 2, 'accuracy': 1.0}, {'group': 'b', 'examples': 1, 'accuracy': 0.0}]
    """
    correct = (predicted.cpu() == targets.cpu()).tolist()
    found: dict[str, list[bool]] = {}
    for name, hit in zip(groups, correct, strict=True):
        found.setdefault(name, []).append(hit)
    return [
        {"group": name, "examples": len(hits), "accuracy": sum(hits) / len(hits)}
        for name, hits in sorted(found.items())
    ]
