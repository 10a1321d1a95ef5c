"""The privacy report in plain words, as blocks of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from dpmodel.claims.verification import NOT_COVERED
from dpmodel.config.card import ACCESSES
from dpmodel.planning.release import NO_GUARANTEE, REPRODUCIBLE, large_delta
from dpmodel.runs.report.document import Block, Facts, Heading, Items, Text, to_markdown
from dpmodel.runs.report.fields import card_blocks
from monitors.spent import epsilon_text

if TYPE_CHECKING:
    from dpmodel.runs.report.privacy_report import PrivacyReport
    from monitors.spent import PrivacySpent

#: Largest epsilon -> its description. After the tiers of Ponomareva et al. 2023, "How to DP-fy ML", section 5.2.
_TIERS = (
    (1.0, "a strong formal guarantee"),
    (10.0, "a reasonable formal guarantee"),
    (100.0, "a weak formal guarantee"),
    (math.inf, "practically no formal guarantee"),
)


def report_in_words(report: PrivacyReport) -> str:
    """The report for people.

    Args:
        report: The report.
    """
    return to_markdown(report_blocks(report))


def report_blocks(report: PrivacyReport) -> list[Block]:
    """The report as blocks, for Markdown and for a web page."""
    spent = report.spent
    verified = Items(report.verified) if report.verified else Text("No verification is recorded.")
    parts: list[Block] = [
        Heading("Privacy report", 1),
        Text(claim_of(report)),
        *_not_covered(report),
        Heading("What the guarantee says"),
        Text(_meaning(report)),
        Heading("Under which conditions"),
        Facts(tuple(_conditions(report))),
        *card_blocks(report.card),
        Heading("How the figure was obtained"),
        Text(_origin(report)),
        Heading("What was verified"),
        verified,
        Text("No check covers the following:"),
        Items(NOT_COVERED),
        Heading("What is not accounted for"),
        Items(report.not_accounted),
    ]
    if report.without_lost is not None:
        place = parts.index(Heading("What the guarantee says"))
        parts[place:place] = [Heading("Steps that were lost"), Text(_lost(report.lost_steps, report.without_lost))]
    caveats = [*spent.notes, *_of_delta(report)]
    if caveats:
        parts += [Heading("Caveats"), Items(tuple(f"**{note}**" for note in caveats))]
    return parts


def strength(epsilon: float) -> str:
    """How a guarantee of ``epsilon`` may be described.

    Example:
        >>> strength(3.0)
        'a reasonable formal guarantee'
        >>> strength(4000.0)
        'practically no formal guarantee'
    """
    return next(words for most, words in _TIERS if epsilon <= most)


def claim_of(report: PrivacyReport) -> str:
    """The first sentence of the report."""
    spent = report.spent
    if report.violations:
        return f"**The guarantee is void: {'; '.join(report.violations)}.** Epsilon is infinite."
    if math.isinf(spent.epsilon):
        return "**This training was NOT differentially private: epsilon is infinite.**"
    figures = f"({epsilon_text(spent.epsilon)}, {spent.delta:g})-differential privacy for one {spent.unit}"
    voided = [note for note in spent.notes if note.endswith(NO_GUARANTEE)]
    if voided:
        return f"**This training has NO guarantee: {'; '.join(voided)}.** {_would_be(figures, voided)}"
    if _of_delta(report):
        return f"**The training satisfies {figures}**, but its delta is too large to mean much (see the caveats)."
    return f"**The training satisfies {figures}** ({strength(spent.epsilon)})."


def _would_be(figures: str, voided: list[str]) -> str:
    if all(note.startswith(REPRODUCIBLE) for note in voided):
        return f"With secret randomness it would satisfy {figures}; anyone who knows the seed can undo that."
    return f"The ledger states {figures}, which does not hold for this training."


def _not_covered(report: PrivacyReport) -> list[Block]:
    """The accesses to data that the claim above does not cover, by name."""
    accesses = report.card.get("accesses", {}).get("accesses")
    try:
        kinds = dict.fromkeys(ACCESSES[one["kind"]] for one in accesses or () if one["privacy"] == "not accounted")
    except (KeyError, TypeError):
        accesses, kinds = None, {}
    if accesses is None:
        return [Text("Whether other accesses to data were made is not stated.")]
    return [Text(f'Not covered: {"; ".join(kinds)} (see "All accesses to data").')] if kinds else []


def _of_delta(report: PrivacyReport) -> list[str]:
    delta, examples = report.spent.delta, report.mechanism["num_examples"]
    return [large_delta(delta, examples)] if delta * examples >= 1 and not math.isinf(report.spent.epsilon) else []


def _lost(steps: int, without: PrivacySpent) -> str:
    return (
        f"The training was interrupted and resumed. {steps:,} steps had begun and were not saved. Some or all of them "
        "were released; the figure above includes all of them. State that figure, and add it to other uses of the "
        "same training data. The model contains nothing of the lost steps: the steps that made it "
        f"spent epsilon {epsilon_text(without.epsilon)} at delta {without.delta:g}."
    )


def _meaning(report: PrivacyReport) -> str:
    spent = report.spent
    if report.violations:
        return (
            "Nothing: private data may have reached the released weights without noise, or one example may have "
            "changed them by more than is accounted for. Do not publish this model; train again from fresh weights."
        )
    if report.guarantee == "none" and not math.isinf(spent.epsilon):
        return "Nothing, because a condition of the guarantee is not met (see the caveats)."
    if math.isinf(spent.epsilon):
        return "Nothing: clipped gradients were used without noise. The model may reveal any training example."
    most = math.exp(spent.epsilon) if spent.epsilon < 700 else math.inf
    factor = f"{most:.3g}" if most < 1e6 else "more than a million"
    sentence = (
        f"Take two training sets that are neighbours: they differ by one step of the kind '{spent.relation}'. Whatever "
        f"someone concludes from the trained model and all its intermediate states, the probability of that "
        f"conclusion is at most e^epsilon = {factor} times as large with one set as with the other, "
        f"plus {spent.delta:g}."
    )
    if spent.epsilon > 10:
        sentence += (
            f" At epsilon {epsilon_text(spent.epsilon)} this bound is so loose that it protects "
            f"{_loosely(spent.epsilon)}; more noise, fewer epochs or smaller batches are needed for a meaningful one."
        )
    return sentence


def _loosely(epsilon: float) -> str:
    return "little" if epsilon <= 100 else "nobody in practice"


def _conditions(report: PrivacyReport) -> list[tuple[str, str]]:
    spent, mechanism = report.spent, report.mechanism
    rows = [
        ("Protected unit", spent.unit),
        ("Neighbouring data sets", spent.relation),
        ("Sampling", spent.sampling),
        ("Noise", _noise(mechanism)),
        ("Clipping", _clipping(mechanism)),
        ("Steps", f"{report.steps:,} of {report.planned_steps:,} planned ({report.status})"),
        ("Delta", f"{spent.delta:g}"),
        ("Accountant", spent.accountant),
    ]
    void = report.guarantee == "none" and not math.isinf(spent.epsilon)
    figures = {name: NO_GUARANTEE if void else _figure(value) for name, value in report.figures.items()}
    return [*rows, *((f"Epsilon by {name}", text) for name, text in figures.items())]


def _noise(mechanism: Any) -> str:
    first, last = mechanism["initial_noise_multiplier"], mechanism["last_noise_multiplier"]
    span = (
        f"multiplier {first:.6g}"
        if first == last
        else f"multiplier {first:.6g} at the first step, {last:.6g} at the last"
    )
    factor = mechanism["sensitivity_factor"]
    if factor == 1:
        return f"{mechanism['noise']}, {span} (standard deviation over the norm bound)"
    return (
        f"{mechanism['noise']}, {span} (standard deviation over the norm bound); one example can move the clipped sum "
        f"by {factor:g} times the bound, so {first / factor:.6g} is what counts"
    )


def _clipping(mechanism: Any) -> str:
    text = f"{mechanism['clipping']}, norm bound {mechanism['initial_norm_bound']:g}"
    event = mechanism["clip_count_event"]
    if event is None:
        return text
    return f"{text} at the first step; the noisy statistic that moves it is charged ({event})"


def _origin(report: PrivacyReport) -> str:
    text = (
        "Every release of private information is an entry in `ledger.json`, written before it was used; the figures "
        f"are computed from that ledger alone (SHA-256 `{report.ledger_digest}`), by dpmodel "
        f"{report.software.get('dpmodel', '?')}."
    )
    if report.target_epsilon is not None:
        text += (
            f" The noise multiplier was solved for the target epsilon {report.target_epsilon:g} before the training."
        )
    return text


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else epsilon_text(value)
