"""The zero-concentrated accountant, for releases of all the data, using the exact curve of the Gaussian."""

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
    """``rho`` for which a non-Gaussian event is rho-zCDP (Bun and Steinke 2016).

    Register a rule for a custom event with ``zcdp_rho.register(MyEvent)``.

    Raises:
        UnsupportedEventError: No rule is registered for the event's type, or the event is sampled.
    """
    name = type(event).__name__
    raise UnsupportedEventError(
        f"no zCDP rule for event type {name!r}: {event!r}. "
        f"Add one with `monitors.zcdp_rho.register({name})`, as a function of (event), or use the 'rdp' accountant."
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
    """For full-batch training and shuffled epochs: exact if all releases are Gaussian, a zCDP bound otherwise.

    ZCDP has no amplification by sampling, so Poisson-sampled events are refused with a remedy. A partition (one
    shuffled epoch) costs as much as its largest event.

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
        """Total ``rho``; for Gaussian releases, ``sum 1 / (2 sigma^2)``."""
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
        return ZCDPTracker(self)

    def _by_orders(self, terms: Terms, delta: float | None = None, epsilon: float = 0.0) -> tuple[float, float]:
        """Best conversion of the Renyi curve ``rho * order`` of zCDP, to epsilon or to log delta, and its order."""
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
        f"the 'zcdp' accountant supports only releases of all the data, but the ledger has a PoissonSampledEvent of "
        f"rate {rate:g}: zCDP has no amplification by sampling. Use the 'rdp' or 'pld' accountant, or train with "
        "sampling='shuffle' (charged without amplification)."
    )


class ZCDPTracker(Tracker):
    """Keeps ``sum 1 / sigma^2``; falls back to the whole ledger once it contains anything but Gaussians.

    Args:
        accountant: The accountant that computes the figures.
    """

    def __init__(self, accountant: ZCDPAccountant) -> None:
        super().__init__(accountant)
        self._mu_squared = 0.0
        self._partitions: dict[int, float] = {}
        self._only_gaussians = True

    def add(self, event: PrivacyEvent, count: int = 1) -> None:
        """Count ``count`` more releases of ``event``."""
        total, partition = self._with(event, count)
        super().add(event, count)
        self._only_gaussians = self._only_gaussians and math.isfinite(total)
        self._mu_squared = total
        if isinstance(event, DisjointEvent):
            self._partitions[event.partition] = partition

    def epsilon(self, delta: float) -> float:
        """Epsilon at ``delta`` of all added releases."""
        checks.open_unit(delta=delta)
        if not self._only_gaussians:
            return super().epsilon(delta)
        return gaussian_epsilon(math.sqrt(self._mu_squared), delta)

    def delta(self, epsilon: float) -> float:
        """Delta at ``epsilon`` of all added releases."""
        checks.non_negative(epsilon=epsilon)
        if not self._only_gaussians:
            return super().delta(epsilon)
        return gaussian_delta(math.sqrt(self._mu_squared), epsilon)

    def stays_within(self, event: PrivacyEvent, epsilon: float, delta: float) -> bool:
        """Whether one more release of ``event`` leaves epsilon at ``delta`` at or below ``epsilon``."""
        if self.epsilon_with(event, delta) <= epsilon:
            return True
        return super().stays_within(event, epsilon, delta)

    def within(self, rows: Rows, epsilon: float, delta: float) -> bool:
        """Whether all of ``rows``, as further releases, certainly keep epsilon at ``delta`` within ``epsilon``."""
        total, partitions, further = self._mu_squared, dict[int, float](), list(rows)
        for event, count in further:
            share = self._share(event, count)
            if isinstance(event, DisjointEvent):
                before = partitions.get(event.partition, self._partitions.get(event.partition, 0.0))
                partitions[event.partition] = max(before, share)
                share = max(0.0, share - before)
            total += share
        if not (self._only_gaussians and math.isfinite(total)):
            return super().within(further, epsilon, delta)
        return gaussian_epsilon(math.sqrt(total), delta) <= epsilon

    def epsilon_with(self, event: PrivacyEvent, delta: float, count: int = 1) -> float:
        """Epsilon at ``delta`` after ``count`` hypothetical further releases of ``event``; nothing is added."""
        total, _ = self._with(event, count)
        if not (self._only_gaussians and math.isfinite(total)):
            return super().epsilon_with(event, delta, count)
        return gaussian_epsilon(math.sqrt(total), delta)

    def delta_with(self, event: PrivacyEvent, epsilon: float, count: int = 1) -> float:
        """Delta at ``epsilon`` after ``count`` hypothetical further releases of ``event``; nothing is added."""
        total, _ = self._with(event, count)
        if not (self._only_gaussians and math.isfinite(total)):
            return super().delta_with(event, epsilon, count)
        return gaussian_delta(math.sqrt(total), epsilon)

    def _with(self, event: PrivacyEvent, count: int) -> tuple[float, float]:
        """The sum after ``count`` more releases of ``event`` (infinite: not Gaussian), and its partition's share."""
        share = self._share(event, count)
        if math.isinf(share) or not isinstance(event, DisjointEvent):
            return self._mu_squared + share, share
        before = self._partitions.get(event.partition, 0.0)
        after = max(before, share)
        return self._mu_squared + (after - before), after

    def _share(self, event: PrivacyEvent, count: int) -> float:
        """``sum 1 / sigma^2`` of the releases, of one if they share a partition; infinite: not Gaussian."""
        terms = gather([(event, 1 if isinstance(event, DisjointEvent) else count)])
        return terms.mu_squared if terms.only_unsampled and not terms.unprotected else math.inf
