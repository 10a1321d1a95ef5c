"""A report that was stored as JSON, read back: every figure is computed again from the ledger, and none is trusted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dpmodel.config.card import CardSection
from dpmodel.runs.report import privacy_figures as figures
from dpmodel.runs.report.privacy_report import PrivacyReport, epsilon_by_accountant, holds
from monitors import checks
from monitors.errors import ConfigError
from monitors.ledger import Ledger
from monitors.spent import PrivacySpent, privacy_spent


def report_from_json(values: Mapping[str, Any], ledger: Ledger, place: str) -> PrivacyReport:
    """The report of a training whose plan is not known, such as one in Python or by an earlier version.

    Fields that it lacks are missing on the card.

    Args:
        values: Content of ``privacy_report.json``.
        ledger: The ledger of the same training.
        place: Where the report was read, for errors.

    Raises:
        ConfigError: It is not a report, or was changed.
    """
    try:
        report = _read(values, ledger)
        str(report)
    except (ValueError, LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ConfigError(f"{place} is not a privacy report that can be read: {error!r}") from error
    return report


def _read(values: Mapping[str, Any], ledger: Ledger) -> PrivacyReport:
    delta, accountant = float(values["delta"]), str(values["accountant"])
    words = {name: str(values[name]) for name in ("unit", "relation", "sampling")}
    for name in ("steps", "planned_steps"):
        checks.non_negative_int(**{name: values[name]})
    spent = privacy_spent(ledger, delta, accountant, words)
    lost, valid = ledger.lost.total, holds(spent)
    curve = figures.privacy_curve(ledger) if valid else figures.NO_GUARANTEE
    return PrivacyReport(
        spent=spent,
        figures=epsilon_by_accountant(ledger, delta),
        mechanism=dict(values["mechanism"]),
        steps=values["steps"],
        planned_steps=values["planned_steps"],
        ledger_digest=ledger.digest(),
        status=str(values["status"]),
        not_accounted=tuple(map(str, values["not_accounted"])),
        target_epsilon=_optional(values.get("target_epsilon")),
        software={str(name): str(version) for name, version in values.get("software", {}).items()},
        lost_steps=lost,
        without_lost=privacy_spent(ledger.kept, delta, accountant, words) if lost else None,
        violations=ledger.violations,
        verified=tuple(map(str, values.get("verified", ()))),
        journals=tuple(map(str, values.get("journals", ()))),
        card=_card(values.get("card", {}), ledger, spent, curve, valid=valid),
        trade_off=curve,
    )


def _optional(value: Any) -> float | None:
    return None if value is None else float(value)


def _card(
    stored: Mapping[str, Any], ledger: Ledger, spent: PrivacySpent, curve: Any, *, valid: bool
) -> dict[str, dict[str, Any]]:
    found = {str(name): dict(section) for name, section in stored.items()}
    unit = {**found.get("unit", {}), "unit": spent.unit, "relation": spent.relation, "sampling_assumed": spent.sampling}
    bound = unit.get("contributions_per_person")
    if bound is not None:
        checks.positive_int(contributions_per_person=bound)
        unit["person_delta"] = spent.delta
        unit["person_epsilon"] = figures.person_epsilon(ledger, spent.delta, bound) if valid else figures.NO_GUARANTEE
    curves, attacker = figures.no_figures()
    if valid:
        curves, attacker = figures.curve_figures(ledger, curve), figures.attacker_figures(curve)
    statements = _declared(found).governance
    if "governance" in found:
        found["governance"]["statements"] = statements
    return {**found, "unit": unit, "curve": curves, "attacker": attacker, "audit": {"result": None}}


def _declared(card: Mapping[str, Mapping[str, Any]]) -> CardSection:
    """The metrics and statements of the user, which model cards and registry entries state too.

    Raises:
        ValueError: No configuration could have made them.
    """
    declared = card.get("utility", {}).get("declared", [])
    stated = card.get("governance", {}).get("statements", {})
    return CardSection.model_validate({"utility": declared, "governance": stated})
