"""The forms in which a card is published: the report itself, a Hugging Face model card, and a registry entry."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.runs.report.document import Heading, Text, to_markdown
from dpmodel.runs.report.pictures import CAPTION, card_figure
from dpmodel.runs.report.words import report_blocks
from monitors.atomic import SHARED_FILE, write_atomically
from monitors.errors import ConfigError
from monitors.registry import Registry

if TYPE_CHECKING:
    from dpmodel.runs.report.privacy_report import PrivacyReport
    from monitors.ledger import Ledger


@dataclass(frozen=True)
class CardFormat:
    """A form of the card.

    Args:
        file: Name of its file.
        text: Content of the file.
    """

    file: str
    text: Callable[[PrivacyReport], str]

    def __call__(self, report: PrivacyReport) -> str:
        """The content of the file."""
        return self.text(report)


FORMATS: Registry[CardFormat] = Registry("format of a card")


def huggingface_card(report: PrivacyReport) -> str:
    """A model card for the Hugging Face Hub: metadata, then the report.

    Metrics are those that the card may publish.
    """
    import yaml

    stated = {key: " ".join(text.split()) for key, text in _governance(report).items()}
    private = report.guarantee == "holds"
    metadata: dict[str, Any] = {
        "library_name": "dpmodel",
        "tags": [*(["differential-privacy"] if private else []), "dpmodel", "pytorch"],
        "differential_privacy": {
            "guarantee": report.guarantee,
            "epsilon": report.to_dict()["epsilon"] if private else "no guarantee",
            "delta": report.spent.delta,
            "unit": report.spent.unit,
            "neighbours": report.spent.relation,
            "ledger_sha256": report.ledger_digest,
        },
    }
    metadata |= {key: stated[key] for key in ("license", "language", "pipeline_tag") if key in stated}
    metrics = [
        {"type": one["metric"], "value": one["value"]} for one in report.card.get("utility", {}).get("declared", [])
    ]
    if metrics:
        metadata["metrics"] = sorted({one["type"] for one in metrics})
    head = yaml.safe_dump(metadata, sort_keys=False, allow_unicode=True)
    blocks = report_blocks(report)
    with_or_without = "with differential privacy" if private else "without a privacy guarantee"
    title = Heading(stated.get("title", f"Model trained {with_or_without}"), 1)
    purpose = [Text(f"Purpose, as stated by the user: {stated['purpose']}")] if "purpose" in stated else []
    return f"---\n{head}---\n\n{to_markdown([title, blocks[1], *purpose, *blocks[2:]])}"


#: Fields of a registry of deployments of differential privacy, each from the JSON form of the report and the user's
#: statements. A field that nobody stated is empty.
REGISTRY_FIELDS: Mapping[str, Callable[[Mapping[str, Any], Mapping[str, str]], Any]] = {
    "deployment": lambda report, stated: stated.get("title"),
    "organisation": lambda report, stated: stated.get("organisation") or stated.get("owner"),
    "contact": lambda report, stated: stated.get("contact"),
    "use_case": lambda report, stated: stated.get("purpose"),
    "sector": lambda report, stated: stated.get("sector"),
    "region": lambda report, stated: stated.get("region"),
    "publication_date": lambda report, stated: stated.get("date"),
    "documentation": lambda report, stated: stated.get("url"),
    "product": lambda report, stated: "machine learning model",
    "release_type": lambda report, stated: "model weights, one training",
    "trust_model": lambda report, stated: "central",
    "definition": lambda report, stated: (
        "approximate differential privacy" if report["guarantee"] == "holds" else "none"
    ),
    "privacy_unit": lambda report, stated: report["unit"],
    "contributions_per_person": lambda report, stated: _of(report, "unit", "contributions_per_person"),
    "neighbours": lambda report, stated: report["relation"],
    "number_of_examples_public": lambda report, stated: _of(report, "unit", "num_examples_public") is None,
    "guarantee": lambda report, stated: report["guarantee"],
    "epsilon": lambda report, stated: report["epsilon"] if report["guarantee"] == "holds" else "no guarantee",
    "delta": lambda report, stated: report["delta"],
    "rho": lambda report, stated: _number(_of(report, "curve", "rho")),
    "mu": lambda report, stated: _number(_of(report, "curve", "mu")),
    "accountant": lambda report, stated: report["accountant"],
    "mechanism": lambda report, stated: _mechanism(report),
    "sampling": lambda report, stated: report["sampling"],
    "steps": lambda report, stated: report["steps"],
    "tuning": lambda report, stated: report["tuning"],
    "implementation": lambda report, stated: f"dpmodel {report['software'].get('dpmodel', '')}".strip(),
    "audited": lambda report, stated: bool((_of(report, "audit", "result") or {}).get("counts")),
    "ledger_sha256": lambda report, stated: report["ledger_digest"],
}


def registry_entry(report: PrivacyReport) -> dict[str, Any]:
    """The report as a flat entry of a registry of deployments; what nobody stated is None."""
    values, stated = report.to_dict(), _governance(report)
    return {name: field(values, stated) for name, field in REGISTRY_FIELDS.items()}


def registry_line(report: PrivacyReport) -> str:
    """``registry_entry`` as one line of JSON."""
    return json.dumps(registry_entry(report), ensure_ascii=False) + "\n"


def registry_csv(report: PrivacyReport) -> str:
    """``registry_entry`` as CSV: a header and one line. No text of it is a formula to a spreadsheet."""
    entry, text = {name: _inert(value) for name, value in registry_entry(report).items()}, io.StringIO()
    # Every text is quoted, since some versions of `csv` leave a carriage return bare.
    writer = csv.DictWriter(text, list(entry), lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC)
    writer.writeheader()
    writer.writerow(entry)
    return text.getvalue()


def _inert(value: Any) -> Any:
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


#: First characters of a cell that spreadsheets may take for a formula (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _governance(report: PrivacyReport) -> Mapping[str, str]:
    found: Mapping[str, str] = report.card.get("governance", {}).get("statements", {})
    return found


def _of(report: Mapping[str, Any], section: str, key: str) -> Any:
    return report["card"].get(section, {}).get(key)


def _number(value: Any) -> float | None:
    return value if isinstance(value, float) else None


def _mechanism(report: Mapping[str, Any]) -> str:
    mechanism = report["mechanism"]
    return f"DP-SGD, {mechanism['noise']} noise, {mechanism['clipping']} clipping"


def card_formats(names: Iterable[str] | None = None) -> dict[str, CardFormat]:
    """The forms of these names; all of them by default.

    Raises:
        ConfigError: A name is unknown; the nearest is suggested.
    """
    try:
        return {name: FORMATS.get(name) for name in (FORMATS.names() if names is None else names)}
    except ValueError as error:
        raise ConfigError(str(error)) from error


def write_card(
    report: PrivacyReport, ledger: Ledger, directory: str | os.PathLike[str], forms: Mapping[str, CardFormat]
) -> list[Path]:
    """Write a card, its figure (``privacy_card.png``) and ``privacy_loss.json`` into a folder, which is made.

    Args:
        report: The report with its card.
        ledger: Its ledger, for epsilon over the steps.
        directory: The folder.
        forms: The forms to write, by name.

    Returns:
        The files.
    """
    from dpmodel.figures.files import figure_bytes
    from dpmodel.figures.gallery import inline_svg

    folder, figure = Path(directory), card_figure(report, ledger)
    files: dict[str, str | bytes | None] = {form.file: form(report) for form in forms.values()}
    files |= {"privacy_card.png": None, "privacy_loss.json": report.losses_json()}
    if figure is not None:
        files["privacy_card.png"] = figure_bytes(figure, "privacy_card.png")
        if "html" in forms:
            files[forms["html"].file] = report.to_html({CAPTION: inline_svg(figure, "card", CAPTION)})
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)  # of an earlier card
        else:
            write_atomically(folder / name, content, mode=SHARED_FILE)
    return [folder / name for name, content in files.items() if content is not None]


FORMATS.register("markdown")(CardFormat("privacy_report.md", str))
FORMATS.register("json")(CardFormat("privacy_report.json", lambda report: report.to_json()))
FORMATS.register("html")(CardFormat("privacy_report.html", lambda report: report.to_html()))
FORMATS.register("huggingface")(CardFormat("model_card.md", huggingface_card))
FORMATS.register("registry")(CardFormat("registry.jsonl", registry_line))
FORMATS.register("registry_csv")(CardFormat("registry.csv", registry_csv))
