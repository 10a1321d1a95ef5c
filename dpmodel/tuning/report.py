"""The report of a search, in words."""

from __future__ import annotations

from dpmodel.tuning.trials import TuningRun
from monitors.spent import epsilon_text


def report_in_words(run: TuningRun) -> str:
    """The report of a search as Markdown. It describes the best run and reveals nothing about the others.

    Args:
        run: Outcome of the search.
    """
    spent, charge, best = run.spent, run.tuning.charge, run.best
    lines = [f"# Search: {run.tuning.name}", ""]
    if best is None:
        lines += ["No run is finished.", ""]
    else:
        settings = ", ".join(f"{path} = {_short(value)}" for path, value in best.values.items())
        lines += [
            f"Best: {settings}; test {run.tuning.definition.metric} {best.score:.4f}. Run folder: {best.folder.path}",
            "",
        ]
    lines += [
        f"- epsilon {epsilon_text(spent.epsilon)} at delta {spent.delta:g} (accountant {spent.accountant}); unit: "
        f"{spent.unit}; neighbours: {spent.relation}; sampling: {spent.sampling}",
        f"- tuning: {charge.statement}",
        f"- may be published: {charge.publishable}",
        "- scores are computed on the test examples without noise; the guarantee covers training examples only. The "
        "score of the best run is slightly optimistic, because it selected the run: evaluate the model on new examples",
        "- the privacy report in the run folder covers that run alone; this report covers the search",
        *(f"- {note}" for note in spent.notes),
    ]
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
