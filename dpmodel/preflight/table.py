"""The page of the documentation that lists what is refused before training.

``python -m dpmodel.preflight.table docs/refused.md`` writes it.
"""

from __future__ import annotations

import sys
from pathlib import Path

from dpmodel.preflight import CHECKS

_INTRODUCTION = """\
# What is refused before training

`fit` checks a training before its first step. What would make the stated epsilon untrue is refused, and so is what
would spend budget on a training that cannot work. A refusal costs no budget: nothing is on the ledger, and the network,
the optimizer and the data set are as before.

The checks run in the order of this table, and the first refusal is raised. Its message names the layer, the argument or
the row, and the remedy. A message that ends with "The check looked at private examples" was found by reading training
data: that a training was refused is then itself information about the data, which the ledger does not account for.

Not everything can be found by looking; see what each privacy report lists under "not covered".

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
