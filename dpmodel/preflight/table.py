"""The page of the documentation that lists what is refused before training.

``python -m dpmodel.preflight.table docs/refused.md`` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dpmodel.preflight import CHECKS

_INTRODUCTION = """\
# What is refused before training

`fit` checks a training before its first step. It refuses a training whose stated epsilon would be wrong, and a training
that would spend its budget without a chance to learn. A refusal costs no budget: the ledger, the network, the optimizer
and the data set remain unchanged.

The checks run in the order of this table, and the first refusal is raised. The message names the layer, the argument or
the row, and the remedy. Some checks read training data. Their messages end with "The check read private examples; the
refusal itself is not accounted for", because such a refusal reveals something about the data.

No check finds everything. Each privacy report lists what is not covered.

`dpmodel.validate(network, example)` checks a network without training it, and `dpmodel.fix(network)` replaces layers
that are refused.

"""


def table() -> str:
    """All refusals as a Markdown table, in the order of the checks.

    Example:
        >>> table().splitlines()[0]
        '| What is refused | What to do instead | Error |'
    """
    lines = ["| What is refused | What to do instead | Error |", "|---|---|---|"]
    for check in CHECKS:
        for refusal in check.refusals:
            error = refusal.error or check.error
            lines.append(f"| {refusal.what} | {refusal.instead} | `{error.__name__}` |")
    return "\n".join(lines) + "\n"


def page() -> str:
    """The whole page."""
    return _INTRODUCTION + table()


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")
