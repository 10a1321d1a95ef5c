"""The figure of a card: epsilon over the steps, and the trade-off curve with its Gaussian approximation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from dpmodel.runs.report.privacy_report import PrivacyReport
    from monitors.ledger import Ledger
    from monitors.trade_off import TradeOffCurve

#: Caption of the figure.
CAPTION = (
    "Left: epsilon after each step. Right: the smallest false-negative rate of any attack at each false-positive rate "
    "(trade-off curve), that of the best Gaussian approximation, and that of blind guesses."
)

_MARKS = 24


def card_figure(report: PrivacyReport, ledger: Ledger, size: float | None = None) -> Figure | None:
    """The figure of a card; None without a guarantee or a trade-off curve.

    Args:
        report: The report.
        ledger: Its ledger.
        size: Width in inches.
    """
    from dpmodel.figures.style import make_panels

    curve = report.trade_off
    if report.guarantee != "holds" or isinstance(curve, str) or not report.steps:
        return None
    figure, (left, right) = make_panels(2, size)
    _draw_epsilon(left, report, ledger)
    _draw_trade_off(right, curve)
    return figure


def _draw_epsilon(axes: Axes, report: PrivacyReport, ledger: Ledger) -> None:
    from dpmodel.figures.epsilon_curve import epsilon_over
    from dpmodel.figures.style import SERIES, dress

    spent = report.spent
    marks = sorted({int(mark) for mark in np.linspace(1, report.steps, _MARKS).round()})
    found = epsilon_over(ledger, marks, spent.delta, spent.accountant, report.steps)
    axes.plot(found.steps, found.epsilons, color=SERIES[0])
    dress(axes, "privacy spent", "step", f"epsilon at delta {spent.delta:g}")
    axes.set_xlim(0, report.steps)
    axes.set_ylim(bottom=0)


def _draw_trade_off(axes: Axes, curve: TradeOffCurve) -> None:
    from scipy.special import ndtr, ndtri

    from dpmodel.figures.style import INK, SERIES, add_panel_legend, dress

    rates = ndtr(np.linspace(-5.0, 5.0, 201))
    axes.plot(rates, curve.false_negative_rates(rates), color=SERIES[0], linewidth=3, label="this training")
    mu, _ = curve.gaussian_fit()
    if np.isfinite(mu):
        axes.plot(rates, ndtr(-ndtri(rates) - mu), color=SERIES[1], linestyle="--", label=f"Gaussian, mu {mu:.3g}")
    axes.plot([0, 1], [1, 0], color=INK, linestyle=":", label="guessing")
    dress(axes, "what an attacker can reach", "false-positive rate", "false-negative rate")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    add_panel_legend(axes)
