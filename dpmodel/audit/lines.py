"""A line of an audit report: a measured number, what the ledger says it is, and whether they contradict each other."""

from __future__ import annotations

from dataclasses import dataclass

#: Probability that a correct run gets a report with any contradiction: at most this, over all lines together.
FAMILY_LEVEL = 2e-5


@dataclass(frozen=True)
class Line:
    """A measurement, and the probability of one at least as far off if the ledger is right.

    Args:
        section: ``"bounds"``, ``"noise"``, ``"contribution"``, ``"correlation"`` or ``"sampler"``.
        name: What was measured.
        value: The measurement.
        stated: What the ledger states.
        relation: How ``value`` should compare with ``stated``: ``"="`` or ``"<="``.
        p_value: Probability of such a value, or a worse one, if the ledger is right.
        note: Details in words.
    """

    section: str
    name: str
    value: float
    stated: float
    relation: str
    p_value: float
    note: str = ""

    def contradicts(self, lines: int) -> bool:
        """Whether the value contradicts the ledger, as one of ``lines`` lines (Bonferroni).

        Example:
            >>> Line("noise", "ratio", 1.4, 1.0, "=", 1e-9).contradicts(lines=10)
            True
        """
        return self.p_value < FAMILY_LEVEL / lines
