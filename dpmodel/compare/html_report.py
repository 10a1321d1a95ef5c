"""The report of a comparison as one self-contained web page."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import TYPE_CHECKING

import yaml

from dpmodel.compare.pictures import SPREAD
from dpmodel.compare.results import ComparisonResult, VariantRow
from dpmodel.compare.statistics import verdict
from dpmodel.compare.tables import cells, duration, headings, trial_cells, trial_headings
from dpmodel.figures.gallery import inline_svg
from dpmodel.figures.page import web_page
from monitors.spent import epsilon_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_CAPTIONS: Mapping[str, str] = {
    SPREAD: "Left: a dot for each seed, a diamond for the mean, a line for its 95 % interval. Right: differences "
    "between runs with the same seed; an interval that does not touch zero shows a difference.",
    "metric_against_epsilon": "After each epoch: mean over the seeds, with a band from the lowest to the highest seed.",
    "noise_and_bound_against_step": "Left: the noise multiplier of each step, as the schedule states it. Right: the "
    "norm bound after each step; it moves if clipping is adaptive.",
    "epsilon_against_step": "Epsilon spent after each step. All lines end at the same epsilon, which makes the "
    "comparison fair.",
}


def to_html(result: ComparisonResult, figures: Mapping[str, Figure]) -> str:
    """The report.

    Args:
        result: The comparison.
        figures: Figures by name, in the order in which they appear.
    """
    parts = [
        _head(result),
        "<h2>Results</h2>",
        _table(headings(result), cells(result)),
        "<h2>Figures</h2>",
        *(_figure(name, figure) for name, figure in figures.items()),
        "<h2>What this comparison does not show</h2>",
        f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in result.caveats)}</ul>",
        _trials(result),
        "<h2>Every run</h2>",
        _runs(result),
        "<h2>Settings</h2>",
        *(_settings(result, row) for row in result.variants),
        _foot(result),
    ]
    return web_page(f"Comparison: {result.comparison.name}", "\n".join(part for part in parts if part))


def headline(result: ComparisonResult) -> str:
    """The outcome in one or two sentences, no more certain than the intervals allow.

    An interval that contains zero is not evidence of equality and is never described as such.
    """
    others = [row for row in result.variants if row.name != result.baseline]
    shown = [row for row in others if verdict(row.difference) in {"higher", "lower"}]
    if not others:
        return "Only the baseline has finished runs so far."
    if not shown:
        return (
            f"At equal epsilon, no variant is shown to differ from {result.baseline}: every 95 % interval of a paired "
            "difference contains zero, or there are too few seeds."
        )
    words = [f"{row.name} is {verdict(row.difference)} than {result.baseline}" for row in shown]
    rest = len(others) - len(shown)
    tail = f" No difference is shown for the other {rest}." if rest else ""
    return f"At equal epsilon, {'; '.join(words)} in {result.comparison.definition.metric}.{tail}"


def _head(result: ComparisonResult) -> str:
    target, seeds = result.comparison.definition.target, result.comparison.definition.seeds
    equal = "yes" if result.equal else "NO"
    facts = [
        (f"{target.epsilon:g}", "epsilon of every run, at most"),
        (f"{target.delta:g}", "delta"),
        (target.accountant, "accountant"),
        (equal, "equal within 0.1 %, never above"),
        (f"{len(result.variants)} x {len(seeds)}", "variants x seeds"),
        (epsilon_text(result.composed.epsilon), f"epsilon of all {result.trainings} trainings together"),
    ]
    items = "".join(f"<li><b>{escape(value)}</b><span>{escape(what)}</span></li>" for value, what in facts)
    warning = "" if result.equal else f'<p class="warning">{escape(result.caveats[0])}</p>'
    return (
        f"<header><h1>{escape(result.comparison.name)}</h1>\n"
        f'<p class="lead">{escape(headline(result))}</p>\n{warning}<ul class="facts">{items}</ul></header>'
    )


def _table(names: list[str], rows: list[list[str]]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
    body = "".join(f"<tr>{''.join(_cell(text) for text in row)}</tr>\n" for row in rows)
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _cell(text: str) -> str:
    mark = f' class="{text}"' if text in {"higher", "lower"} else ""
    return f"<td{mark}>{escape(text)}</td>"


def _figure(name: str, figure: Figure) -> str:
    caption = _CAPTIONS.get(name, "")
    return f"<figure>{inline_svg(figure, name, caption)}\n<figcaption>{escape(caption)}</figcaption></figure>"


def _runs(result: ComparisonResult) -> str:
    names = ["variant", "seed", result.comparison.definition.metric, "epsilon", "time", "status", "folder"]
    rows = [
        [
            row.name,
            str(run.seed),
            f"{run.value:.4f}",
            epsilon_text(run.epsilon),
            duration(run.seconds),
            run.status,
            str(run.folder.path),
        ]
        for row in result.variants
        for run in row.runs
    ]
    return f"<details><summary>{len(rows)} runs</summary>{_table(names, rows)}</details>"


def _trials(result: ComparisonResult) -> str:
    rows = trial_cells(result)
    if not rows:
        return ""
    table = _table(trial_headings(result), rows)
    return f"<h2>What each variant chose from</h2>\n<details><summary>{len(rows)} settings</summary>{table}</details>"


def _settings(result: ComparisonResult, row: VariantRow) -> str:
    sections = {section.name: section.set for section in result.comparison.definition.variants}
    changed = sections[row.name]
    text = yaml.safe_dump(changed, sort_keys=False, allow_unicode=True) if changed else "the base, unchanged\n"
    return (
        f"<details><summary>{escape(row.name)}</summary><p class='muted'>Set over the "
        f"base:</p><pre><code>{escape(text)}</code></pre><p class='muted'>As carried out:</p><pre><code>"
        f"{escape(row.plan.config.to_yaml())}</code></pre></details>"
    )


def _foot(result: ComparisonResult) -> str:
    import dpmodel

    seconds = sum(run.seconds for row in result.variants for run in row.runs)
    return (
        f"<footer>dpmodel {escape(dpmodel.__version__)}; {duration(seconds)} of training. Numbers in full: "
        "comparison.json and comparison.csv next to this file; the ledger of every run is in its folder.</footer>"
    )
