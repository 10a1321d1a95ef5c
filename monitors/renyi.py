"""Renyi curves of events: one rule per event type, selected by single dispatch.

Register a rule for a custom event with ``renyi_curve.register(MyEvent)``, and one for that event on a Poisson sample
with ``sampled_renyi_curve.register(MyEvent)``. Types without a rule are refused by name.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    DisjointEvent,
    GaussianEvent,
    LaplaceEvent,
    NonPrivateEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    RandomStoppingEvent,
    RepeatedEvent,
)
from monitors.laplace import laplace_curve
from monitors.random_stopping import random_stopping_curve
from monitors.sampled_gaussian import log_moment_excess
from monitors.terms import Terms, gather, gaussian_terms

Floats = NDArray[np.floating]


@singledispatch
def renyi_curve(event: PrivacyEvent, orders: Floats) -> Floats:
    """Renyi divergence of ``event`` at each order, for adding or removing one example.

    Args:
        event: What was released.
        orders: Shape (orders,), all above 1.

    Returns:
        Shape (orders,), at least 0, possibly infinite.

    Raises:
        UnsupportedEventError: No rule is registered for the event's type.

    Example:
        A rule for a custom event, here any pure epsilon-DP release (Bun and Steinke 2016, proposition 3.3):

        >>> from dataclasses import dataclass
        >>> @dataclass(frozen=True)
        ... class PureEvent(PrivacyEvent):
        ...     epsilon: float
        >>> @renyi_curve.register(PureEvent)
        ... def _(event, orders):
        ...     return np.minimum(event.epsilon, orders * event.epsilon**2 / 2)
        >>> renyi_curve(PureEvent(0.1), np.array([2.0, 30.0]))
        array([0.01, 0.1 ])
    """
    del orders
    name = type(event).__name__
    raise UnsupportedEventError(
        f"no Renyi rule for event type {name!r}: {event!r}. "
        f"Add one with `monitors.renyi_curve.register({name})`, as a function of (event, orders)."
    )


@renyi_curve.register
def _(event: GaussianEvent, orders: Floats) -> Floats:
    curve: Floats = orders / 2.0 * (1.0 / event.noise_multiplier) ** 2
    return curve


@renyi_curve.register
def _(event: LaplaceEvent, orders: Floats) -> Floats:
    return laplace_curve(1.0 / event.noise_multiplier, orders)


@renyi_curve.register
def _(event: ComposedEvent, orders: Floats) -> Floats:
    total = np.zeros(orders.shape)
    for part in event.events:
        total = total + renyi_curve(part, orders)
    return total


@renyi_curve.register
def _(event: RepeatedEvent, orders: Floats) -> Floats:
    return event.count * renyi_curve(event.event, orders)


@renyi_curve.register
def _(event: RandomStoppingEvent, orders: Floats) -> Floats:
    inner = gather([(event.event, 1)])
    return random_stopping_curve(
        lambda asked: total_curve(inner, asked), event.expected_runs, event.distribution, orders
    )


@renyi_curve.register
def _(event: DisjointEvent, orders: Floats) -> Floats:
    return renyi_curve(event.event, orders)


@renyi_curve.register
def _(event: NonPrivateEvent, orders: Floats) -> Floats:
    del event
    return np.full(orders.shape, np.inf)


@renyi_curve.register
def _(event: PoissonSampledEvent, orders: Floats) -> Floats:
    if event.sampling_rate == 1:
        return renyi_curve(event.event, orders)
    terms = gaussian_terms(event)
    if terms is None:
        return sampled_renyi_curve(event.event, event.sampling_rate, orders)
    total = np.zeros(orders.shape)
    for rate, multiplier, count in terms:
        total += count * _sampled_gaussian_curves(np.array([rate]), np.array([multiplier]), orders)[0]
    return total


@singledispatch
def sampled_renyi_curve(event: PrivacyEvent, sampling_rate: float, orders: Floats) -> Floats:
    """Renyi divergence of ``event`` on a Poisson sample; the type of the INNER event selects the rule.

    Args:
        event: What was released from the sample.
        sampling_rate: In (0, 1).
        orders: Shape (orders,), all above 1.

    Returns:
        Shape (orders,).

    Raises:
        UnsupportedEventError: No rule is registered for the inner type.
    """
    del orders
    name = type(event).__name__
    raise UnsupportedEventError(
        f"no Renyi rule for event type {name!r} under Poisson sampling at rate {sampling_rate:g}: {event!r}. Add one "
        f"with `monitors.sampled_renyi_curve.register({name})`, as a function of (event, sampling_rate, orders)."
    )


@sampled_renyi_curve.register
def _(event: NonPrivateEvent, sampling_rate: float, orders: Floats) -> Floats:
    del event, sampling_rate
    return np.full(orders.shape, np.inf)


@sampled_renyi_curve.register
def _(event: ComposedEvent, sampling_rate: float, orders: Floats) -> Floats:
    if len(event.events) == 1:
        return sampled_renyi_curve(event.events[0], sampling_rate, orders)
    names = ", ".join(type(part).__name__ for part in event.events)
    raise UnsupportedEventError(
        f"no Renyi rule for the composition of {names} on one Poisson sample: only Gaussians compose inside the "
        "sampling. Draw one sample per release, or, for a type that Gaussians dominate, register a rule with "
        "`monitors.gaussian_terms`."
    )


def total_curve(terms: Terms, orders: Floats) -> Floats:
    """Renyi divergence of a whole ledger at each order.

    Args:
        terms: The ledger, as returned by ``gather``.
        orders: Shape (orders,), all above 1.

    Returns:
        Shape (orders,); infinite wherever a rule returns NaN.
    """
    if terms.unprotected:
        return np.full(orders.shape, np.inf)
    total = orders * (terms.mu_squared / 2.0)
    if terms.rates.size:
        total = total + terms.counts @ _sampled_gaussian_curves(terms.rates, terms.multipliers, orders)
    for event, count in terms.others:
        total = total + count * renyi_curve(event, orders)
    for events in terms.partitions:
        total = total + np.max([renyi_curve(event, orders) for event in events], axis=0)
    return _known(total)


def curves_of(events: list[PrivacyEvent], orders: Floats) -> Floats:
    """Renyi curves of many events at once, shape (events, orders); sampled Gaussians are evaluated as one vector."""
    curves = np.zeros((len(events), orders.size))
    owners: list[int] = []
    found: list[tuple[float, float, int]] = []
    for index, event in enumerate(events):
        terms = gaussian_terms(event)
        if terms is None:
            curves[index] = renyi_curve(event, orders)
            continue
        for term in terms:
            if term.rate == 1:
                curves[index] += term.times * orders / 2.0 * (1.0 / term.multiplier) ** 2
            else:
                owners.append(index)
                found.append(term)
    if found:
        table = np.array(found, dtype=np.float64)
        sampled = _sampled_gaussian_curves(table[:, 0], table[:, 1], orders) * table[:, 2:3]
        np.add.at(curves, owners, sampled)
    return _known(curves)


def _known(curves: Floats) -> Floats:
    """Replace NaN, such as from a rule that overflows, by infinity: NaN would pass every limit unnoticed."""
    return np.where(np.isnan(curves), np.inf, curves)


def _sampled_gaussian_curves(rates: Floats, multipliers: Floats, orders: Floats) -> Floats:
    """Curves of n pairs of rate and multiplier, shape (n, orders)."""
    shape = (rates.size, orders.size)
    rate = np.broadcast_to(rates[:, None], shape).ravel()
    sigma = np.broadcast_to(multipliers[:, None], shape).ravel()
    alpha = np.broadcast_to(orders[None, :], shape).ravel()
    curves: Floats = np.logaddexp(0.0, log_moment_excess(rate, sigma, alpha)).reshape(shape) / (orders - 1.0)
    return curves
