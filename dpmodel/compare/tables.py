"""The table of a comparison, as cells, Markdown and CSV."""

from __future__ import annotations

import csv
import io

from dpmodel.compare.results import ComparisonResult, VariantRow
from dpmodel.compare.statistics import Summary, verdict
from monitors.spent import epsilon_text

#: Column headings; ``{metric}`` and ``{baseline}`` are replaced with names.
_HEADINGS = (
    "variant",
    "{metric}",
    "sd",
    "95 % interval",
    "minus {baseline}",
    "95 % interval",
    "verdict",
    "epsilon",
    "noise multiplier",
    "runs",
    "time per run",
)

_CSV_COLUMNS = ("variant", "seed", "value", "epsilon", "seconds", "status", "folder")


def headings(result: ComparisonResult) -> list[str]:
    """Column headings of the table."""
    metric = result.comparison.definition.metric + (" (%)" if _in_percent(result) else "")
    return [text.format(metric=metric, baseline=result.baseline) for text in _HEADINGS] + _searched(result)


def cells(result: ComparisonResult) -> list[list[str]]:
    """The table as text, one row per variant."""
    scale = 100.0 if _in_percent(result) else 1.0
    tuned = {variant.name: variant.tuned for variant in result.comparison.variants}
    return [
        _cells(row, row.name == result.baseline, scale) + [str(tuned[row.name][path]) for path in _searched(result)]
        for row in result.variants
    ]


def trial_headings(result: ComparisonResult) -> list[str]:
    """Column headings of the table of the search."""
    metric = result.comparison.definition.metric + (" (%)" if _in_percent(result) else "")
    return ["variant", *_searched(result), f"held-out {metric}", "chosen"]


def trial_cells(result: ComparisonResult) -> list[list[str]]:
    """The trials of the search, one row each; empty if there was no search."""
    search = result.comparison.search
    if result.trials is None or search is None:
        return []
    scale = 100.0 if _in_percent(result) else 1.0
    chosen = {variant.name: variant.tuned for variant in result.comparison.variants}
    found = []
    for row in result.trials.variants:
        variant = search.candidates[row.name]
        taken = "yes" if chosen[variant.name] == variant.tuned else ""
        values = [str(variant.tuned[path]) for path in _searched(result)]
        found.append([variant.name, *values, _number(row.summary.mean, scale), taken])
    return found


def _searched(result: ComparisonResult) -> list[str]:
    """Paths of the fields that the variants chose."""
    tune = result.comparison.definition.tune
    return [] if tune is None else list(tune.search)


def compact(result: ComparisonResult) -> tuple[list[str], list[list[str]]]:
    """Headings and cells for a terminal: a number and its interval share a cell of two lines."""
    names, rows = headings(result), cells(result)
    short = [names[0], f"{names[1]} ± sd", names[4], "epsilon", "noise multiplier", "time", *names[len(_HEADINGS) :]]
    return short, [
        [
            row[0],
            f"{row[1]} ± {row[2]}\n{row[3]}",
            f"{row[4]}\n{row[5]}",
            row[7],
            row[8].replace(" to", "\nto"),
            row[10],
            *row[len(_HEADINGS) :],
        ]
        for row in rows
    ]


def to_markdown(result: ComparisonResult) -> str:
    """The table as Markdown, with a heading and the caveats."""
    definition = result.comparison.definition
    target = definition.target
    lines = [
        f"# Comparison: {result.comparison.name}",
        "",
        f"Every run spends at most epsilon {target.epsilon:g} at delta {target.delta:g} (accountant "
        f"{target.accountant}); the initial noise multiplier of each variant was calibrated to it. Seeds: "
        f"{', '.join(map(str, definition.seeds))}.",
        "",
        *_markdown(headings(result), cells(result)),
        "",
        *(f"- {text}" for text in result.caveats),
    ]
    tried = trial_cells(result)
    if tried:
        lines += ["", "## What each variant chose from", "", *_markdown(trial_headings(result), tried)]
    return "\n".join(lines) + "\n"


def _markdown(names: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (names, ["---"] * len(names), *rows)]


def to_csv(result: ComparisonResult) -> str:
    """The runs as CSV, one line each, with numbers in full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_CSV_COLUMNS)
    for row in result.variants:
        for run in row.runs:
            writer.writerow([row.name, run.seed, run.value, run.epsilon, run.seconds, run.status, run.folder.path])
    return text.getvalue()


def duration(seconds: float) -> str:
    """A duration in readable units.

    Example:
        >>> duration(4.25), duration(75.0), duration(3700.0)
        ('4.2 s', '1 min 15 s', '1 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = round(seconds) // 60
    return f"{minutes} min {round(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _cells(row: VariantRow, is_baseline: bool, scale: float) -> list[str]:
    first, last = row.multipliers
    noise = f"{first:.4g}" if first == last else f"{first:.4g} to {last:.4g}"
    summary, difference = row.summary, row.difference
    return [
        row.name,
        _number(summary.mean, scale),
        _number(summary.deviation, scale),
        _interval(summary, scale),
        "baseline" if is_baseline else _number(None if difference is None else difference.mean, scale, "+"),
        "" if is_baseline else _interval(difference, scale, "+"),
        "" if is_baseline else verdict(difference),
        epsilon_text(row.epsilon),
        noise,
        str(len(row.runs)),
        duration(row.seconds),
    ]


def _number(value: float | None, scale: float, sign: str = "") -> str:
    return "-" if value is None else f"{value * scale:{sign}.{_digits(scale)}f}"


def _interval(summary: Summary | None, scale: float, sign: str = "") -> str:
    if summary is None or summary.low is None or summary.high is None:
        return "-"
    return f"{_number(summary.low, scale, sign)} to {_number(summary.high, scale, sign)}"


def _digits(scale: float) -> int:
    return 2 if scale == 100.0 else 4


def _in_percent(result: ComparisonResult) -> bool:
    return result.comparison.definition.metric == "accuracy"
