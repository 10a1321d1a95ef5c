"""The one description of the fields of a privacy card: section, key in the JSON form, label, and value in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dpmodel.config.card import ACCESSES
from dpmodel.runs.report.document import Block, Facts, Heading, Text
from monitors.spent import epsilon_text

#: In place of a field that the report of an earlier version lacks.
MISSING = "missing: the report was made by an earlier version"

#: In place of what only the user could state.
NOT_DECLARED = "not declared"


@dataclass(frozen=True)
class CardField:
    """A field of the card.

    Args:
        key: Its key in its section of the JSON form.
        label: Its name for people.
        words: The value in words, from the value and its section.
    """

    key: str
    label: str
    words: Callable[[Any, Mapping[str, Any]], str]


@dataclass(frozen=True)
class CardSectionOf:
    """A section of the card.

    Args:
        key: Its key in the JSON form.
        title: Its heading.
        fields: Its fields, in order.
        note: A sentence below the heading.
    """

    key: str
    title: str
    fields: tuple[CardField, ...]
    note: str = ""

    def rows(self, card: Mapping[str, Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
        """Label and words of each field that ``card`` has or should have."""
        values = card.get(self.key)
        values = values if isinstance(values, Mapping) else {}
        found: list[tuple[str, str]] = []
        for field in self.fields:
            if field.key not in values:
                found.append((field.label, MISSING))
            elif isinstance(words := _worded(field, values), str):
                found.append((field.label, words))
        return tuple(found)


def _worded(field: CardField, values: Mapping[str, Any]) -> str:
    try:
        return field.words(values[field.key], values)
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError):
        return f"not readable: {str(values[field.key])[:80]}"


def _plain(value: Any, section: Mapping[str, Any]) -> str:
    del section
    return NOT_DECLARED if value is None or value == "" else str(value)


def _size(value: Any, section: Mapping[str, Any]) -> str:
    if value is None:
        return f"{section['num_examples']:,}, treated as public"
    return f"stated as {value:,}, which sets the sampling rate; the true number is not used in any figure"


def _contributions(value: Any, section: Mapping[str, Any]) -> str:
    del section
    if value is None:
        return (
            "no bound is declared: at the same delta, the epsilon of a person with k examples is more than k times as "
            "large"
        )
    return f"at most {value:,} examples per person, as declared by the user; dpmodel does not check it"


def _person(value: Any, section: Mapping[str, Any]) -> str:
    if value is None:
        return "not stated without a bound on the examples per person"
    return f"{_epsilon(value)} at delta {section['person_delta']:g} (group privacy)" if not _is_text(value) else value


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value != "inf"


def _epsilon(value: Any) -> str:
    return value if _is_text(value) else epsilon_text(float(value))


def _number(digits: int) -> Callable[[Any, Mapping[str, Any]], str]:
    def words(value: Any, section: Mapping[str, Any]) -> str:
        del section
        return value if _is_text(value) else f"{float(value):.{digits}g}"

    return words


def _mu(value: Any, section: Mapping[str, Any]) -> str:
    if _is_text(value):
        return str(value)
    return f"{float(value):.4g}, compared for error rates from {section.get('smallest_rate', 0):g} on"


def _percent(value: Any, section: Mapping[str, Any]) -> str:
    del section
    return value if _is_text(value) else f"at most {_up(float(value))} %"


def _up(share: float) -> str:
    """A share in per cent, never rounded down."""
    return f"{min(100.0, math.ceil(share * 1e4 - 1e-9) / 1e2):.2f}"


def _curve(value: Any, section: Mapping[str, Any]) -> str:
    del section
    if _is_text(value):
        return str(value)
    pairs = zip(value["orders"], value["values"], strict=True)
    return "; ".join(f"{order:g}: {float(divergence):.4g}" for order, divergence in pairs)


def _profile(value: Any, section: Mapping[str, Any]) -> str:
    del section
    return value if _is_text(value) else "; ".join(f"{_epsilon(epsilon)} at {delta:g}" for delta, epsilon in value)


def _by_rate(value: Any, section: Mapping[str, Any]) -> str:
    del section
    if _is_text(value):
        return str(value)
    return "; ".join(f"at most {_up(float(reached))} % at {100 * rate:g} %" for rate, reached in value)


def _accesses(kind: str) -> Callable[[Any, Mapping[str, Any]], str]:
    def words(value: Any, section: Mapping[str, Any]) -> str:
        del section
        found = [one for one in value if one["kind"] == kind]
        if not found:
            return NOT_DECLARED
        return "; ".join(f"{one['description']} ({one['privacy']}; source: {one['source']})" for one in found)

    return words


def _queries(value: Any, section: Mapping[str, Any]) -> str:
    del section
    if value is None:
        return "none were charged in the run folder"
    charged = (
        f"{value['asked']:,} were charged, at most epsilon {_epsilon(value['epsilon'])} at delta {value['delta']:g} "
        f"({_epsilon(value['spent'])} so far), beside the training"
    )
    return "; ".join([charged, *value["notes"]])


def _metrics(value: Any, section: Mapping[str, Any]) -> str:
    del section
    if isinstance(value, str):
        return value
    named = (f"{name} {number:.4g}" for name, number in value.items())
    return "; ".join(named) + " (one run: no spread)" if value else "nothing was measured"


def _published(value: Any, section: Mapping[str, Any]) -> str:
    del section
    return "; ".join(map(_published_metric, value)) or NOT_DECLARED


def _published_metric(one: Mapping[str, Any]) -> str:
    text = f"{one['metric']} {one['value']:g}"
    if one.get("spread") is not None:
        text += f" ± {one['spread']:g} over {one['runs']} runs"
    elif one.get("runs") is not None:
        text += f" (mean of {one['runs']} runs)"
    if one.get("baseline") is not None:
        text += f", without privacy {one['baseline']:g}"
    return f"{text}, on {one['data']}"


def _subgroups(value: Any, section: Mapping[str, Any]) -> str:
    del section
    if value is None:
        return "not measured (card.subgroups)"
    return "; ".join(f"{one['group']}: {one['accuracy']:.4g} of {one['examples']:,}" for one in value)


def _audit(value: Any, section: Mapping[str, Any]) -> str:
    del section
    if value is None:
        return "no report of dpmodel audit was found"
    return f"{value['words']} ({value['file']})"


def _statements(value: Any, section: Mapping[str, Any]) -> str:
    del section
    return "; ".join(f"{name}: {text}" for name, text in value.items()) or NOT_DECLARED


#: The card, in the order in which it is read.
SECTIONS = (
    CardSectionOf(
        "unit",
        "Who is protected",
        (
            CardField("unit", "Protected unit", _plain),
            CardField("contributions_per_person", "Contributions per person", _contributions),
            CardField("person_epsilon", "Epsilon for one person", _person),
            CardField("relation", "Neighbouring data sets", _plain),
            CardField("num_examples_public", "Number of training examples", _size),
            CardField("sampling_assumed", "Sampling assumed by the accountant", _plain),
            CardField("sampling_done", "Sampling done", _plain),
        ),
    ),
    CardSectionOf(
        "attacker",
        "What an attacker can reach",
        (
            CardField("true_positive_rates", "True-positive rate at a false-positive rate", _by_rate),
            CardField("advantage", "Advantage (true- minus false-positive rate)", _percent),
            CardField("posteriors", "Posterior from a prior of 50 %, at a false-positive rate", _by_rate),
            CardField("correct_guesses", "Correct guesses from a prior of 50 %", _percent),
        ),
        "Upper bounds for any attack that tells whether one example was in the training data, from the trade-off curve "
        "of the ledger.",
    ),
    CardSectionOf(
        "curve",
        "The whole curve",
        (
            CardField("profile", "Epsilon at delta, by accountant pld", _profile),
            CardField("mu", "mu of Gaussian DP", _mu),
            CardField("regret", "Regret of mu (distance of the trade-off curves)", _number(2)),
            CardField("rho", "rho of zCDP", _number(6)),
            CardField("rdp", "Renyi divergence by order", _curve),
        ),
        "For conversions to other definitions. `privacy_loss.json` states the distribution of the privacy loss.",
    ),
    CardSectionOf(
        "accesses",
        "All accesses to data",
        (
            *(CardField("accesses", name, _accesses(kind)) for kind, name in ACCESSES.items()),
            CardField("queries", "Answers to queries (private prediction)", _queries),
        ),
        "Besides the steps of the training, which are charged.",
    ),
    CardSectionOf(
        "release",
        "Release and threat model",
        (
            CardField("release_model", "Release model", _plain),
            CardField("release", "What is released", _plain),
            CardField("threat_model", "Attacker of the guarantee", _plain),
            CardField("threats", "Threats considered by the user", _plain),
            CardField("randomness", "Randomness", _plain),
            CardField("floating_point", "Floating point", _plain),
            CardField("side_channels", "Side channels", _plain),
        ),
    ),
    CardSectionOf(
        "utility",
        "Utility",
        (
            CardField("measured", "Measured after the training", _metrics),
            CardField("declared", "Declared by the user", _published),
            CardField("subgroups", "Accuracy by subgroup", _subgroups),
        ),
    ),
    CardSectionOf("audit", "Audit", (CardField("result", "Result", _audit),)),
    CardSectionOf("governance", "Governance", (CardField("statements", "Statements of the user", _statements),)),
)


def card_blocks(card: Mapping[str, Mapping[str, Any]]) -> list[Block]:
    """The card in words."""
    found: list[Block] = []
    for section in SECTIONS:
        found.append(Heading(section.title))
        if section.note:
            found.append(Text(section.note))
        found.append(Facts(section.rows(card)))
    return found
