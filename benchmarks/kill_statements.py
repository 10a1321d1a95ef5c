"""The epsilon that the files of a run folder, a comparison or a search state, compared with what was released."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

from dpmodel.runs.folder import RunFolder
from monitors.ledger import Ledger
from monitors.spent import privacy_spent

DELTA = 1e-5

#: Sums of the same numbers in a different order differ by less than this, relatively. Releases are counted exactly.
_ROUNDING = 1e-12

#: How a text states the figure for all that was spent, by the name of the file.
_TEXTS = {
    "privacy_report.md": r"satisfies \(([^ ]+), 1e-05\)-differential privacy",
    "comparison.md": r"together spend epsilon ([^ ]+) at delta",
    "report.html": r"together spend epsilon ([^ ]+) at delta",
    "tuning.md": r"- epsilon ([^ ]+) at delta",
}


def epsilon(ledger: Ledger) -> float:
    """Epsilon of a ledger, by the accountant of all trainings here."""
    return privacy_spent(ledger, DELTA, "rdp").epsilon if ledger.total else 0.0


def enough(stated: float, spent: float) -> bool:
    """Whether ``stated`` is not below ``spent``."""
    return stated >= spent * (1 - _ROUNDING)


def run_understates(folder: RunFolder, released: Ledger) -> str | None:
    """The first file of a run folder that states less than ``released``; None if there is none."""
    if not folder.ledger.exists():
        return None if not released.total else f"{folder.ledger} is missing"
    spent = epsilon(released)
    return (
        ledger_understates(folder.ledger, folder.read_ledger(), released, spent)
        or json_understates(folder.report, spent, "epsilon")
        or text_understates(folder.statement, spent)
    )


def ledger_understates(path: Path, stated: Ledger, released: Ledger, spent: float) -> str | None:
    """Whether a ledger lacks a release or states an epsilon below that of the releases."""
    if stated.covers(released) and enough(epsilon(stated), spent):
        return None
    return f"{path} states {epsilon(stated)} and {stated.total} releases; {spent} and {released.total} were spent"


def json_understates(path: Path, spent: float, *keys: str) -> str | None:
    """Whether a report, if it exists, states less under ``keys``."""
    text = _text(path)
    if text is None:
        return None
    stated = json.loads(text)
    for key in keys:
        stated = stated[key]
    return None if enough(float(stated), spent) else f"{path} states {stated}, and {spent} was spent"


def text_understates(path: Path, spent: float) -> str | None:
    """Whether a report in words, if it exists, states less; its figure must be found."""
    text = _text(path)
    if text is None:
        return None
    found = re.search(_TEXTS[path.name], text)
    if found is None:
        return f"{path} states no epsilon"
    stated = math.inf if found[1] == "infinite" else float(found[1].replace(",", ""))
    return None if enough(stated, spent) else f"{path} states {stated}, and {spent} was spent"


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:  # withdrawn, perhaps this moment, by a worker that goes on
        return None
