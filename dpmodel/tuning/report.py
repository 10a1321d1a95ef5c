"""What may be stated of a search, in words."""

from __future__ import annotations

from dpmodel.tuning.trials import TuningRun
from monitors.spent import epsilon_text


def report_in_words(run: TuningRun) -> str:
    """The report of a search as Markdown; it names the best run and nothing of the others.

    Args:
        run: The search.
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
        "- scores are measured on the test examples without noise; the guarantee is for the training examples only. A "
        "score that chose the run is too good by a little: measure the chosen model on examples that chose nothing",
        "- the privacy report inside the run folder is that of the run alone; this one is that of the search",
        *(f"- {note}" for note in spent.notes),
    ]
    return "\n".join(lines) + "\n"


def _short(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)
