"""The result of an audit on the card of a run: it counts only if it names the ledger of that run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monitors.errors import ConfigError
from monitors.untrusted import read_json

_NAME = "audit.json"


def audit_result(digest: str, run: Path | None, given: str | None) -> dict[str, Any] | None:
    """The result of the audit of a run, as plain JSON values; None if no report is found.

    Args:
        digest: Digest of the run's ledger.
        run: The run folder, beside which reports are looked for: ``<run>-audit``, ``audits/<name of the run>``.
        given: A report of ``dpmodel audit`` that the user names: its folder or JSON file.

    Raises:
        ConfigError: The report that the user names is missing, unreadable or of a different run.
    """
    if given is not None:
        return _of_named(Path(given), digest)
    for path in _neighbours(run):
        if path.is_file():
            try:
                return _result(path, read_json(path), digest)
            except (OSError, ValueError, KeyError, TypeError) as error:
                return {"file": path.name, "counts": False, "words": f"not counted: it cannot be read ({error})"}
    return None


def _of_named(path: Path, digest: str) -> dict[str, Any]:
    file = path / _NAME if path.is_dir() else path
    try:
        found = _result(file, read_json(file), digest)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f"card.audit: {file} is not a report of dpmodel audit: {reason}") from error
    if not found["counts"]:
        raise ConfigError(
            f"card.audit: {file} does not belong to this run: {found['words'].removeprefix('not counted: ')}. Audit "
            "the config.resolved.yaml in the run folder, without changes, or leave out card.audit"
        )
    return found


def _neighbours(run: Path | None) -> Iterable[Path]:
    if run is None:
        return []
    place = run.absolute()
    folders = [place.with_name(f"{place.name}-audit"), *(up / "audits" / place.name for up in list(place.parents)[:2])]
    return [folder / _NAME for folder in folders]


def _result(path: Path, report: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """What a report says, if it names the ledger.

    Raises:
        ValueError, KeyError, TypeError: It is not such a report.
    """
    named = report["run_ledger_digest"]
    if named != digest:
        what = "it names no run" if named is None else "it names a different ledger"
        return {"file": path.name, "counts": False, "words": f"not counted: {what}"}
    epsilon, delta, ok = float(report["epsilon"]), float(report["delta"]), report["ok"]
    bounds = {str(one["name"]): float(one["value"]) for one in report["lines"] if one["section"] == "bounds"}
    if not isinstance(ok, bool) or not all(map(math.isfinite, (epsilon, delta, *bounds.values()))):
        raise ValueError("its figures are not numbers")
    lower = "; ".join(f"{name.removeprefix('epsilon, ')} {value:.2f}" for name, value in bounds.items())
    verdict = "no line contradicts its ledger" if ok else "THE TRAINING CONTRADICTS ITS LEDGER"
    words = (
        f"{verdict}; the same training with canaries, at epsilon {epsilon:.2f} and delta {delta:g}; lower "
        f"bounds, each of which holds alone (at 95 %; Gaussian: at 99 %): {lower or 'none'}"
    )
    return {
        "file": path.name,
        "counts": True,
        "ok": ok,
        "epsilon": epsilon,
        "delta": delta,
        "bounds": bounds,
        "words": words,
    }
