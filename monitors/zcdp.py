"""The zero-concentrated accountant: for releases of all the data, where the Gaussian's exact curve is known."""

from __future__ import annotations

import math
from functools import singledispatch

import numpy as np

from monitors import checks
from monitors.accountant import ACCOUNTANTS, Accountant, Tracker
from monitors.conversion import Floats, ImprovedConversion
from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    DisjointEvent,
    LaplaceEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    RepeatedEvent,
)
from monitors.gaussian import gaussian_delta, gaussian_epsilon
from monitors.laplace import laplace_rho
from monitors.order_search import best_order
from monitors.terms import Rows, Terms, gather


@singledispatch
def zcdp_rho(event: PrivacyEvent) -> float:
    """``rho`` of an event that is no Gaussian: it is rho-zCDP (Bun and Steinke 2016).

    A third party registers a rule for its own event with ``zcdp_rho.register(MyEvent)``.

    Raises:
        UnsupportedEventError: No rule is registered for the event's type, or it is sampled.
    """
    name = type(event).__name__
    raise UnsupportedEventError(
        f"no zCDP rule for event type {name!r}: {event!r}. "
        f"Register one with `monitors.zcdp_rho.register({name})`, a function of (event), or use the 'rdp' accountant."
    )


@zcdp_rho.register
def _(event: PoissonSampledEvent) -> float:
    if event.sampling_rate == 1:
        return zcdp_rho(event.event)
    raise UnsupportedEventError(_sampled_message(event.sampling_rate))


@zcdp_rho.register
def _(event: LaplaceEvent) -> float:
    return laplace_rho(1.0 / event.noise_multiplier)


@zcdp_rho.register
def _(event: RepeatedEvent) -> float:
    return event.count * _rho(event.event)


@zcdp_rho.register
def _(event: ComposedEvent) -> float:
    return sum(_rho(part) for part in event.events)


@zcdp_rho.register
def _(event: DisjointEvent) -> float:
    return _rho(event.event)


@ACCOUNTANTS.register("zcdp")
class ZCDPAccountant(Accountant):
    """For full-batch training and shuffled epochs: exact where all releases are Gaussian, a zCDP bound otherwise.

    Amplification by sampling has no zCDP statement, so Poisson-sampled events are refused, with the remedy. A partition
    (one shuffled epoch) costs its largest event.

    Example:
        >>> from monitors import GaussianEvent, Ledger
        >>> ledger = Ledger().record(GaussianEvent(1.5), count=10)
        >>> round(ZCDPAccountant().epsilon(ledger, 1e-5), 2)
        10.67

    References:
        Bun and Steinke 2016; Balle and Wang 2018, theorem 8 (the exact curve).
    """

    name = "zcdp"

    def rho(self, ledger: Rows) -> float:
        """Total ``rho``; of Gaussian releases ``sum 1 / (2 sigma^2)``."""
        terms = self._terms(ledger)
        return math.inf if terms.unprotected else terms.mu_squared / 2 + _others_rho(terms)

    def epsilon(self, ledger: Rows, delta: float) -> float:
        """Epsilon at ``delta``; see ``Accountant.epsilon``."""
        checks.open_unit(delta=delta)
        terms = self._terms(ledger)
        if terms.unprotected:
            return math.inf
        if terms.only_unsampled:
            return gaussian_epsilon(math.sqrt(terms.mu_squared), delta)
        value, _ = self._by_orders(terms, delta=delta)
        return max(0.0, value)

    def delta(self, ledger: Rows, epsilon: float) -> float:
        """Delta at ``epsilon``; see ``Accountant.delta``."""
        checks.non_negative(epsilon=epsilon)
        terms = self._terms(ledger)
        if terms.unprotected:
            return 1.0
        if terms.only_unsampled:
            return gaussian_delta(math.sqrt(terms.mu_squared), epsilon)
        value, _ = self._by_orders(terms, epsilon=epsilon)
        return math.exp(min(0.0, value))

    def tracker(self) -> Tracker:
        """A tracker that keeps one sum."""
        from monitors.zcdp_tracker import ZCDPTracker

        return ZCDPTracker(self)

    def _by_orders(self, terms: Terms, delta: float | None = None, epsilon: float = 0.0) -> tuple[float, float]:
        """ZCDP is the Renyi curve ``rho * order``; its best conversion, as epsilon or as log delta, and the order."""
        rho, conversion = terms.mu_squared / 2 + _others_rho(terms), ImprovedConversion()

        def bound(orders: Floats) -> Floats:
            if delta is not None:
                return conversion.epsilon(rho * orders, orders, delta)
            return conversion.log_delta(rho * orders, orders, epsilon)

        order, _ = best_order(bound)
        return float(bound(np.array([order]))[0]), order

    def _terms(self, ledger: Rows) -> Terms:
        terms = gather(ledger)
        if terms.rates.size and not terms.unprotected:
            raise UnsupportedEventError(_sampled_message(float(terms.rates[0])))
        return terms


def _others_rho(terms: Terms) -> float:
    alone = sum(count * _rho(event) for event, count in terms.others)
    rho = alone + sum(max(_rho(event) for event in events) for events in terms.partitions)
    return math.inf if math.isnan(rho) else rho


def _rho(event: PrivacyEvent) -> float:
    """``rho`` of any unsampled event: Gaussians by their multiplier, others by their rule."""
    terms = gather([(event, 1)]) if not isinstance(event, DisjointEvent) else gather([(event.event, 1)])
    if terms.rates.size:
        raise UnsupportedEventError(_sampled_message(float(terms.rates[0])))
    if terms.only_unsampled:
        return terms.mu_squared / 2
    return zcdp_rho(event)


def _sampled_message(rate: float) -> str:
    return (
        f"the 'zcdp' accountant takes only releases of all the data, but the ledger has PoissonSampledEvent of rate "
        f"{rate:g}: zCDP knows no amplification by sampling. Use the 'rdp' or 'pld' accountant, or train with "
        "sampling='shuffle' (charged without amplification)."
    )
