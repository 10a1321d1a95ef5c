"""The privacy card of a run folder, made again from its ledger, with what the user declares afterwards."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.config import Config, load_config
from dpmodel.config.identity import flat_settings
from dpmodel.config.reader import Override, require_names
from dpmodel.planning.spent_ledgers import without_spent
from dpmodel.planning.training_plan import plan_training
from dpmodel.runs.folder import RunFolder
from dpmodel.runs.report.accesses import configured_accesses
from dpmodel.runs.report.audit_result import audit_result
from dpmodel.runs.report.privacy_report import PrivacyReport, make_report
from dpmodel.runs.report.stored import report_from_json
from dpmodel.runs.trust import untrusted_code
from dpmodel.training.history import History
from monitors import checks
from monitors.errors import ConfigError
from monitors.untrusted import read_json

if TYPE_CHECKING:
    from monitors.ledger import Ledger


def card_of_run(
    path: str | os.PathLike[str], overrides: Iterable[Override] = (), *, trust_code: bool = False
) -> PrivacyReport:
    """The privacy report of a run folder with its card; every figure is computed from the ledger.

    Nothing in the folder is changed. A folder of an earlier version is read too; the card says which fields are
    missing.

    Args:
        path: Folder of ``dpmodel train``, or of ``fit(output=...)``.
        overrides: Settings of the section ``card``, ``privacy.delta`` or ``privacy.accountant`` that differ from those
            of the training, such as ``"card.contributions_per_person=3"``.
        trust_code: Import the plugins that the configuration names, even if the folder was not made here.

    Raises:
        ConfigError: Not a run folder, the training has written no report yet, a setting is wrong or changes the
            training, or a file that ``card`` names is missing or of a different run.
        CheckpointError: The ledger, or that of the queries, is missing, damaged, or belongs to a different training.
    """
    folder, changes = RunFolder(Path(path)), list(overrides)
    if not (folder.config.is_file() or folder.ledger.is_file()):
        RunFolder.existing(path)
    ledger = folder.read_ledger()
    values = _stored(folder, ledger)
    if not folder.config.is_file():
        if changes:
            raise ConfigError(
                f"{folder.path} was written by fit(output=...) and has no configuration to change. In Python, "
                "model.report(card={...}) declares what the card states"
            )
        report, given = report_from_json(values, ledger, str(folder.report)), None
    else:
        config = _configured(folder, changes)
        report, given = _of_config(folder, config, values, ledger, trust_code=trust_code), config.card.audit
    report = report.with_values("accesses", queries=_queries(folder))
    result = audit_result(report.ledger_digest, folder.path, given)
    return report.with_values("audit", result=result)


def _queries(folder: RunFolder) -> dict[str, Any] | None:
    """What the answers of the network cost, if a budget for them is in the folder."""
    if not folder.queries.is_dir():
        return None
    from dpmodel.prediction.query_budget import BUDGET_NAME
    from dpmodel.prediction.query_ledger import LEDGER_NAME, query_status
    from monitors.journal import JOURNAL_NAME

    if not any((folder.queries / name).exists() for name in (BUDGET_NAME, LEDGER_NAME, JOURNAL_NAME)):
        return None  # interrupted before anything was charged
    status = dataclasses.asdict(query_status(folder.queries))
    return {name: status[name] for name in ("asked", "spent", "epsilon", "delta")} | {"notes": list(status["notes"])}


def _stored(folder: RunFolder, ledger: Ledger) -> Mapping[str, Any]:
    """The report in the folder, if it is that of the ledger."""
    try:
        values = read_json(folder.report)
        if not isinstance(values, dict):
            raise ValueError("it is not a JSON object")
        digest = values["ledger_digest"]
        checks.non_negative_int(steps=values["steps"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{folder.report} cannot be read ({reason}): a training writes its report when it ends. If it was "
            "interrupted, resume it with `dpmodel train --resume`"
        ) from error
    if digest != ledger.digest():
        raise ConfigError(
            f"{folder.report} states an earlier part of the training than {folder.ledger.name}; `dpmodel train "
            "--resume` continues the training and writes it anew"
        )
    return values


def _configured(folder: RunFolder, overrides: list[Override]) -> Config:
    """The configuration of the folder; only what the card says may be changed."""
    stored = load_config(folder.config, import_plugins=False)
    config = load_config(folder.config, overrides, import_plugins=False)
    before, after = (dict(flat_settings(_fixed(each))) for each in (stored, config))
    changed = next((name for name in {**before, **after} if before.get(name) != after.get(name)), None)
    if changed is not None:
        raise ConfigError(
            f"{config.where(changed)}: {changed} is a fact of the training in the folder; only settings of the section "
            "card, privacy.delta and privacy.accountant may be changed"
        )
    return config


def _fixed(config: Config) -> dict[str, Any]:
    values = config.model_dump(exclude={"card"})
    values["privacy"] = {**values["privacy"], "delta": None, "accountant": None}
    return values


def _of_config(
    folder: RunFolder, config: Config, values: Mapping[str, Any], ledger: Ledger, *, trust_code: bool
) -> PrivacyReport:
    if config.plugins and not trust_code and untrusted_code(folder, config):
        # Without its plugins, the plan cannot be built; the stored report states what it can.
        return report_from_json(values, ledger, str(folder.report))
    require_names(config)
    subject = dataclasses.replace(
        plan_training(without_spent(config)).subject,
        accesses=configured_accesses(config.model_dump()),
        target_epsilon=_optional(values.get("target_epsilon"), folder),
    )
    public = config.card.evaluation_data == "public"
    report = make_report(
        subject,
        ledger,
        values["steps"],
        status=str(values.get("status")),
        verified=_texts(values.get("verified")),
        metrics=_last_metrics(folder, config.privacy.delta) if public else None,
    )
    report = dataclasses.replace(report, journals=_texts(values.get("journals")))
    if config.card.subgroups is None:
        return report
    return report.with_values("utility", subgroups=_by_subgroup(folder, config, trust_code=trust_code))


def _texts(value: Any) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list) else ()


def _optional(value: Any, folder: RunFolder) -> float | None:
    if value is None:
        return None
    try:
        checks.positive(target_epsilon=value)
    except ValueError as error:
        raise ConfigError(f"{folder.report} is not a privacy report that can be read: {error}") from error
    return float(value)


def _last_metrics(folder: RunFolder, delta: float) -> Mapping[str, float]:
    """Metrics after the last epoch; empty if no history was written."""
    if not folder.history.is_file():
        return {}
    try:
        history = History.from_csv(folder.history, delta)
    except ValueError as error:
        raise ConfigError(f"{error}; remove the file to make the card without it") from error
    return history[-1].metrics if len(history) else {}


def _by_subgroup(folder: RunFolder, config: Config, *, trust_code: bool) -> list[dict[str, Any]]:
    """Accuracies of the network in the folder on subgroups of its evaluation data."""
    from dpmodel.runs.evaluate import evaluated_classes
    from dpmodel.runs.report.subgroups import accuracy_by_group, read_groups

    assert config.card.subgroups is not None
    predicted, targets = evaluated_classes(folder.path, trust_code=trust_code)
    return accuracy_by_group(predicted, targets, read_groups(config.card.subgroups, len(targets)))
