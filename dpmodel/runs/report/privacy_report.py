"""The privacy report as data: every figure from the ledger, every condition from the plan that made it."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpmodel.claims.verification import NOT_COVERED
from dpmodel.planning.release import NO_GUARANTEE
from dpmodel.runs.report.card import card_values
from dpmodel.runs.report.not_accounted import not_accounted
from dpmodel.runs.report.privacy_figures import NO_GUARANTEE as NO_FIGURE
from dpmodel.runs.report.privacy_figures import privacy_curve
from mechanisms.clipping import CLIP
from mechanisms.noise import NOISE
from monitors.accountant import ACCOUNTANTS
from monitors.atomic import SHARED_FILE, write_atomically
from monitors.errors import UnsupportedEventError
from monitors.spent import PrivacySpent, privacy_spent, resolve_accountant

if TYPE_CHECKING:
    from dpmodel.runs.folder import RunFolder
    from dpmodel.runs.report.subject import ReportSubject
    from monitors.ledger import Ledger
    from monitors.trade_off import TradeOffCurve

FORMAT = "dpmodel-privacy-report/1"


@dataclass(frozen=True)
class PrivacyReport:
    """What a training spent and what that means.

    Args:
        spent: Epsilon, delta, accountant, unit, relation, sampling and notes.
        figures: Epsilon by accountant at the same delta; a text if an accountant cannot state one.
        mechanism: Noise, clipping and sampling in numbers.
        steps: Steps that were released.
        planned_steps: Steps that were planned.
        ledger_digest: SHA-256 of the ledger from which the figures are computed.
        status: ``"finished"``, or why the training ended early.
        not_accounted: What the figures do not cover.
        target_epsilon: What the noise was solved for, or None.
        software: Versions.
        lost_steps: Steps that killed processes had released and lost. All figures include them.
        without_lost: What the steps that made the model spent; None if no steps were lost.
        violations: Why the guarantee is void; empty if it is not.
        verified: What was verified about the training, how and when.
        journals: Heads of the release journals when the report was made (see ``ReleaseJournal``).
        card: The sections of the privacy card, as plain JSON values.
        trade_off: The trade-off curve of the ledger, or why there is none.
    """

    spent: PrivacySpent
    figures: Mapping[str, float | str]
    mechanism: Mapping[str, Any]
    steps: int
    planned_steps: int
    ledger_digest: str
    status: str
    not_accounted: tuple[str, ...]
    target_epsilon: float | None = None
    software: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lost_steps: int = 0
    without_lost: PrivacySpent | None = None
    violations: tuple[str, ...] = ()
    verified: tuple[str, ...] = ()
    journals: tuple[str, ...] = ()
    card: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    trade_off: TradeOffCurve | str = "no curve"

    @property
    def guarantee(self) -> str:
        """``"holds"``; ``"void"`` after a violation; ``"none"`` without noise or with known randomness."""
        if self.violations:
            return "void"
        return "holds" if holds(self.spent) else "none"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values.

        An infinite epsilon is the string ``"inf"``, and so is every epsilon unless the guarantee holds: a reader of
        one field must not take what a ledger with known randomness adds up to for a guarantee.
        """
        stated = _plain if self.guarantee == "holds" else _no_guarantee
        return {
            "format": FORMAT,
            **self.spent.to_dict(),
            "epsilon": stated(self.spent.epsilon),
            "guarantee": self.guarantee,
            "violations": list(self.violations),
            "status": self.status,
            "steps": self.steps,
            "planned_steps": self.planned_steps,
            "lost_steps": self.lost_steps,
            "epsilon_without_lost_steps": stated((self.without_lost or self.spent).epsilon),
            "target_epsilon": self.target_epsilon,
            "epsilon_by_accountant": {name: stated(value) for name, value in self.figures.items()},
            "mechanism": dict(self.mechanism),
            "card": {name: dict(section) for name, section in self.card.items()},
            "tuning": "not accounted",
            "not_accounted": list(self.not_accounted),
            "verified": list(self.verified),
            "not_covered": list(NOT_COVERED),
            "ledger_digest": self.ledger_digest,
            "journals": list(self.journals),
            "software": dict(self.software),
        }

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(self.to_dict(), indent=1, ensure_ascii=False) + "\n"

    def to_html(self, figures: Mapping[str, str] | None = None) -> str:
        """The report as one web page.

        Args:
            figures: ``<svg>`` elements by caption.
        """
        from dpmodel.runs.report.document import to_html
        from dpmodel.runs.report.words import report_blocks

        return to_html(report_blocks(self), figures)

    def with_values(self, section: str, **values: Any) -> PrivacyReport:
        """This report with other values in a section of its card."""
        return dataclasses.replace(self, card={**self.card, section: {**self.card.get(section, {}), **values}})

    def losses_json(self) -> str | None:
        """The distribution of the privacy loss as JSON text; None without a guarantee or a curve."""
        if self.guarantee != "holds" or isinstance(self.trade_off, str):
            return None
        return json.dumps({**self.trade_off.losses(), "ledger_digest": self.ledger_digest}) + "\n"

    def __str__(self) -> str:
        from dpmodel.runs.report.words import report_in_words

        return report_in_words(self)

    def files(self, folder: RunFolder) -> dict[Path, str | None]:
        """The files of the report in a run folder, with their contents; None for one that must not be there."""
        return {
            folder.report: self.to_json(),
            folder.statement: str(self),
            folder.page: self.to_html(),
            folder.losses: self.losses_json(),
        }

    def save(self, directory: str | os.PathLike[str]) -> Path:
        """Write ``privacy_report`` as Markdown, JSON and HTML, and ``privacy_loss.json``, into ``directory``.

        Returns:
            The path of the Markdown file.
        """
        from dpmodel.runs.folder import RunFolder

        folder = RunFolder(Path(directory))
        folder.path.mkdir(parents=True, exist_ok=True)
        for path, text in self.files(folder).items():
            if text is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, text, mode=SHARED_FILE)
        return folder.statement


def make_report(
    subject: ReportSubject,
    ledger: Ledger,
    steps: int,
    *,
    status: str = "finished",
    verified: Iterable[str] = (),
    metrics: Mapping[str, float] | None = None,
) -> PrivacyReport:
    """The report of a training that left ``ledger``.

    Args:
        subject: The training, for the conditions. The figures depend on the ledger alone.
        ledger: What was released, lost steps included.
        steps: Steps that were done.
        status: ``"finished"``, or why the training ended early.
        verified: What was verified, one sentence each (``Run.verification``).
        metrics: Metrics on the evaluation data. They are stated only if ``subject.card`` declares these data public.
    """
    statement = subject.release.statement if subject.statement is None else subject.statement

    def spent(released: Ledger) -> PrivacySpent:
        return privacy_spent(released, subject.delta, subject.accountant, statement)

    lost_steps, total = ledger.lost.total, spent(ledger)
    valid = holds(total)
    trade_off = privacy_curve(ledger) if valid else NO_FIGURE
    return PrivacyReport(
        spent=total,
        figures=epsilon_by_accountant(ledger, subject.delta),
        mechanism=_mechanism(subject, max(steps - 1, 0)),
        steps=steps,
        planned_steps=subject.planned_steps,
        ledger_digest=ledger.digest(),
        status=status,
        not_accounted=not_accounted(subject),
        target_epsilon=subject.target_epsilon,
        software=_versions(),
        lost_steps=lost_steps,
        without_lost=spent(ledger.kept) if lost_steps else None,
        violations=ledger.violations,
        verified=tuple(verified),
        card=card_values(subject, ledger, total, trade_off, holds=valid, measured=metrics),
        trade_off=trade_off,
    )


def holds(spent: PrivacySpent) -> bool:
    """Whether ``spent`` is a guarantee: epsilon is finite, and no note takes it back."""
    return not math.isinf(spent.epsilon) and not any(note.endswith(NO_GUARANTEE) for note in spent.notes)


def epsilon_by_accountant(ledger: Ledger, delta: float) -> dict[str, float | str]:
    """Epsilon of ``ledger`` by every accountant, or the reason why one cannot state it.

    Example:
        >>> from monitors import GaussianEvent, Ledger
        >>> figures = epsilon_by_accountant(Ledger().record(GaussianEvent(2.0)), 1e-5)
        >>> figures["rdp"] == figures["zcdp"] or figures["rdp"] > 0
        True
    """
    figures: dict[str, float | str] = {}
    resolve_accountant("rdp")  # importing the accountants registers them
    for name in ACCOUNTANTS.names():
        try:
            figures[name] = resolve_accountant(name).epsilon(ledger, delta)
        except UnsupportedEventError as error:
            figures[name] = f"no statement: {error}"
    return figures


def _mechanism(subject: ReportSubject, last_step: int) -> dict[str, Any]:
    release = subject.release
    count_event = release.clip_event(0)
    return {
        "noise": NOISE.name_of(type(release.noise)) if release.noise.private else "none",
        "initial_noise_multiplier": release.noise.noise_multiplier(0),
        "last_noise_multiplier": release.noise.noise_multiplier(last_step),
        "sensitivity_factor": release.unit.sensitivity_factor,
        "clipping": CLIP.name_of(type(release.clip)),
        "initial_norm_bound": subject.norm_bound,
        "clip_count_event": None if count_event is None else count_event.to_dict(),
        "num_examples": release.sampler.stated_examples,
        "batch_size": release.sampler.batch_size,
        "sampling_rate": release.sampler.sampling_rate,
        "micro_batches": release.unit.expected_units if release.unit.grouped else None,
    }


def _plain(value: float | str) -> float | str:
    return "inf" if isinstance(value, float) and math.isinf(value) else value


def _no_guarantee(value: float | str) -> str:
    return value if isinstance(value, str) else "inf"


def _versions() -> dict[str, str]:
    import platform
    from importlib.metadata import PackageNotFoundError, version

    import dpmodel

    found = {"dpmodel": dpmodel.__version__, "python": platform.python_version()}
    for package in ("torch", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
