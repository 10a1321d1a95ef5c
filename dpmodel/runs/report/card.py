"""The values of a privacy card: what the ledger, the plan and the user state, each in its section."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dpmodel.config.card import CardSection
from dpmodel.runs.report import privacy_figures as figures
from dpmodel.runs.report.accesses import DataAccess

if TYPE_CHECKING:
    from dpmodel.runs.report.subject import ReportSubject
    from monitors.ledger import Ledger
    from monitors.spent import PrivacySpent
    from monitors.trade_off import TradeOffCurve

#: In place of a metric whose publication nobody declared.
NOT_PUBLISHED = "omitted: the evaluation data are not declared public (card.evaluation_data)"

_RANDOMNESS = (
    "AES-256 in counter mode on a CPU and ChaCha20 on a GPU, keyed by the operating system; never the training seed"
)
_FLOATING_POINT = (
    "Noise is drawn and added in floating-point arithmetic. The guarantee is that of real numbers: attacks on the last "
    "digits of a number (Mironov 2012) are not excluded by a proof."
)
_SIDE_CHANNELS = (
    "Running time, memory and errors of the training depend on the data and are not covered. Keep the machine, the "
    "run folder and its logs private."
)
_CENTRAL = (
    "Central model: a trusted party trains on the raw data. Final weights and all intermediate noisy updates may be "
    "released; the training loss, logs and states may not."
)
_ATTACKER = (
    "The attacker knows the algorithm, all settings, all other examples and all intermediate weights, and chooses the "
    "example. The randomness of noise and sampling is secret."
)


def card_values(
    subject: ReportSubject,
    ledger: Ledger,
    spent: PrivacySpent,
    curve: TradeOffCurve | str,
    *,
    holds: bool,
    measured: Mapping[str, float] | None = None,
) -> dict[str, dict[str, Any]]:
    """The sections of the card, as plain JSON values.

    Args:
        subject: The training.
        ledger: What was released.
        spent: What that means.
        curve: The trade-off curve of the ledger, or why there is none.
        holds: Whether the guarantee holds; if not, no figure is stated.
        measured: Metrics on the evaluation data.
    """
    declared = subject.card
    curves, attacker = figures.no_figures()
    if holds:
        curves, attacker = figures.curve_figures(ledger, curve), figures.attacker_figures(curve)
    return {
        "unit": {**_unit(subject, spent), **person_values(declared, ledger, spent, holds=holds)},
        "curve": curves,
        "attacker": attacker,
        "accesses": {
            "accesses": [each.to_dict() for each in (*subject.accesses, *declared_accesses(declared))],
            "queries": None,
        },
        "release": {**_release(subject), **release_values(declared)},
        "utility": utility_values(declared, measured),
        "audit": {"result": None},
        "governance": {"statements": dict(declared.governance)},
    }


def person_values(declared: CardSection, ledger: Ledger, spent: PrivacySpent, *, holds: bool) -> dict[str, Any]:
    """The bound on contributions, and epsilon of a person who reaches it."""
    bound = declared.contributions_per_person
    epsilon: float | str | None = None if bound is None else figures.NO_GUARANTEE
    if bound is not None and holds:
        epsilon = figures.person_epsilon(ledger, spent.delta, bound)
    return {"contributions_per_person": bound, "person_epsilon": epsilon, "person_delta": spent.delta}


def declared_accesses(declared: CardSection) -> tuple[DataAccess, ...]:
    """The accesses that the user declared."""
    return tuple(DataAccess(one.kind, one.description, one.privacy, "declared") for one in declared.accesses)


def release_values(declared: CardSection) -> dict[str, Any]:
    """Release model and threat model: those of the guarantee, and the user's words."""
    return {
        "release_model": _CENTRAL,
        "release": declared.release,
        "threat_model": _ATTACKER,
        "threats": declared.threat_model,
        "floating_point": _FLOATING_POINT,
        "side_channels": _SIDE_CHANNELS,
    }


def utility_values(declared: CardSection, measured: Mapping[str, float] | None) -> dict[str, Any]:
    """What may be published about the utility."""
    public = declared.evaluation_data == "public"
    return {
        "measured": {name: float(value) for name, value in (measured or {}).items()} if public else NOT_PUBLISHED,
        "declared": [one.model_dump(mode="json") for one in declared.utility],
        "subgroups": None,
    }


def _unit(subject: ReportSubject, spent: PrivacySpent) -> dict[str, Any]:
    sampler = subject.release.sampler
    return {
        "unit": spent.unit,
        "relation": spent.relation,
        "num_examples": sampler.stated_examples,
        "num_examples_public": sampler.num_examples_public,
        "sampling_assumed": spent.sampling,
        "sampling_done": _done(subject),
    }


def _done(subject: ReportSubject) -> str:
    sampler = subject.release.sampler
    drawn = "from a known seed" if sampler.generator.reproducible else "by a secret random generator"
    return f"{sampler.describe()}; drawn {drawn} by the object that states the sampling to the accountant"


def _release(subject: ReportSubject) -> dict[str, Any]:
    caveats = subject.release.caveats
    return {"randomness": "; ".join([_RANDOMNESS, *caveats])}
