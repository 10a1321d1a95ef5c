"""The privacy-loss-distribution accountant: a certified upper bound, tight to a fraction of a per cent."""

from __future__ import annotations

import copy
import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import singledispatch
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from monitors import checks
from monitors.accountant import ACCOUNTANTS, Accountant, Tracker
from monitors.errors import UnsupportedEventError
from monitors.events import (
    ComposedEvent,
    LaplaceEvent,
    PoissonSampledEvent,
    PrivacyEvent,
    RepeatedEvent,
    holds_partition,
)
from monitors.gaussian import gaussian_delta, gaussian_epsilon
from monitors.laplace import laplace_losses
from monitors.loss_composition import ComposedLoss, compose_losses
from monitors.loss_grid import Question, choose_nodes, choose_step
from monitors.privacy_loss import LossMasses, loss_masses
from monitors.rdp import RDPAccountant
from monitors.renyi import total_curve
from monitors.terms import Rows, Terms, gather, gaussian_terms

Floats = NDArray[np.floating]

_LOST = 1e-5  # share of delta that may fall off the ends of the grids; charged
_PASSES, _FIRST_WIDTH = 8, 2.0  # each pass halves the grid step, until the figure settles
_STEEPEST = 600.0  # largest tilt times epsilon of a bound on the whole curve: exp(700) overflows
_COARSE_PRECISION, _COARSE_PASSES = 0.01, 2  # for figures that are points of a plot
_RENYI = RDPAccountant()


@ACCOUNTANTS.register("pld")
class PLDAccountant(Accountant):
    """Numerical composition of privacy-loss distributions, for Gaussians of any schedule and Laplace releases.

    Guarantees: epsilon and delta are upper bounds, for adding and for removing an example. Every rounding is
    pessimistic and charged: losses to the grid (connect the dots), multipliers and rates between nodes (convex
    lotteries), the ends of the grids and of the Fourier window, and floating-point error. Together they raise epsilon
    by a relative error of about ``precision``, and by far less for constant schedules. One shuffled epoch (a partition)
    is charged as its worst event.

    Args:
        precision: Target relative error, in (0, 0.1].

    Example:
        >>> from monitors import GaussianEvent, Ledger, PoissonSampledEvent
        >>> ledger = Ledger().record(PoissonSampledEvent(256 / 60000, GaussianEvent(1.5)), count=2340)
        >>> round(PLDAccountant().epsilon(ledger, 1e-5), 3)
        0.566

    References:
        Koskela, Jälkö and Honkela 2020; Gopi, Lee and Wutschitz 2021; Doroshenko et al. 2022; Zhu, Dong and Wang 2022.
    """

    name = "pld"

    def __init__(self, precision: float = 1e-3) -> None:
        checks.positive(precision=precision)
        if precision > 0.1:
            raise ValueError(f"precision must be at most 0.1, got {precision!r}")
        self.precision = float(precision)
        self._passes = _PASSES

    def epsilon(self, ledger: Rows, delta: float) -> float:
        """Epsilon at ``delta``; see ``Accountant.epsilon``."""
        checks.open_unit(delta=delta)
        terms = composable(ledger)
        if terms.unprotected:
            return math.inf
        if terms.only_unsampled:
            return gaussian_epsilon(math.sqrt(terms.mu_squared), delta)
        guess, order, _ = _RENYI.best_epsilon(terms, delta)
        if guess <= 0 or math.isinf(guess):
            return max(0.0, guess)
        found, width = guess, _FIRST_WIDTH
        for number in range(self._passes):
            curves = self._curves(terms, Question(found, delta, order, width), 0.0)
            before, found = found, min(found, max(max(0.0, curve.epsilon(delta)) for curve in curves))
            # halving the step divides the error by four
            if found == 0 or (number > 0 and before - found <= 1.5 * self.precision * found):
                break
            width *= 0.5
        return found

    def delta(self, ledger: Rows, epsilon: float) -> float:
        """Delta at ``epsilon``; see ``Accountant.delta``."""
        checks.non_negative(epsilon=epsilon)
        terms = composable(ledger)
        if terms.unprotected:
            return 1.0
        if terms.only_unsampled:
            return gaussian_delta(math.sqrt(terms.mu_squared), epsilon)
        log_guess, order, _ = _RENYI.best_log_delta(terms, epsilon)
        if log_guess == -math.inf:
            return 0.0
        scale = max(epsilon, _scale(terms))
        found, width = log_guess, _FIRST_WIDTH
        for number in range(self._passes):
            guess = max(math.exp(min(found, -1e-3)), 1e-280)
            curves = self._curves(terms, Question(scale, guess, order, width), epsilon)
            before, found = found, min(found, max(curve.log_delta(epsilon) for curve in curves))
            if number > 0 and before - found <= 15 * self.precision:
                break
            width *= 0.5
        return math.exp(min(0.0, found))

    def compositions(
        self, ledger: Rows, deltas: Iterable[float], width: float, highest: float = math.inf
    ) -> list[list[ComposedLoss]]:
        """Bounds on the whole privacy curve, the first tight at epsilon 0, the others each tight around one delta.

        Args:
            ledger: A ``Ledger``, or any ``(event, count)`` pairs, with at least one release by sampling.
            deltas: Where the bounds are tight, descending. One at which a Renyi bound already shows epsilon 0 is left
                out.
            width: Factor on the grid step; the error grows with its square.
            highest: Largest epsilon of interest. Of the deltas with a larger one, only the first is used.

        Returns:
            For each bound, one curve for removing and one for adding an example; empty if no delta is left.

        Raises:
            UnsupportedEventError: There is no rule for an event.
        """
        terms = composable(ledger)
        found: list[list[ComposedLoss]] = []
        for delta in deltas:
            guess, order, _ = _RENYI.best_epsilon(terms, delta)
            if 0 < guess < math.inf and (not found or guess <= highest):
                # The best order of a bounded loss is infinite; a steeper tilt would leave the range of a float.
                order = min(order, 1.0 + _STEEPEST / guess)
                found.append(self._curves(terms, Question(guess, delta, order, width), 0.0))
            if found and guess > highest:
                break
        return [self._curves(terms, _at_zero(terms, width), 0.0), *found] if found else []

    def tracker(self) -> Tracker:
        """A tracker that computes the full composition as rarely as possible."""
        return PLDTracker(self)

    def coarse(self) -> Accountant:
        """The same accountant with a precision of 0.01, or its own if coarser; fewer passes, so only approximately."""
        if self._passes == _COARSE_PASSES:
            return self
        coarse = copy.copy(self)
        coarse.precision, coarse._passes = max(self.precision, _COARSE_PRECISION), _COARSE_PASSES
        return coarse

    def _curves(self, terms: Terms, question: Question, lowest: float) -> list[ComposedLoss]:
        """Bounds on the privacy curve from epsilon ``lowest`` on, for removal and for addition."""
        nodes = choose_nodes(terms, question, 0.4 * self.precision)
        others = sum(count for _, count in terms.others)
        step = choose_step(nodes, question, 0.4 * self.precision, others)
        tail = _normal_tail(question.delta * _LOST / max(1.0, float(nodes.counts.sum())))
        whole = nodes.with_others([count for _, count in terms.others])

        def losses(direction: int) -> list[LossMasses]:
            pairs = (
                loss_masses(rate, sigma, step, tail) for rate, sigma in zip(nodes.rates, nodes.multipliers, strict=True)
            )
            others = (event_losses(event, step) for event, _ in terms.others)
            return [pair[direction] for pair in (*pairs, *others)]

        return [
            compose_losses(whole, losses(direction), step, question.tilt, _LOST * question.delta, lowest)
            for direction in (0, 1)
        ]


def _scale(terms: Terms) -> float:
    """A share of the standard deviation of the loss: the scale of its distribution around epsilon 0."""
    return 0.1 * math.sqrt(float(total_curve(terms, np.array([2.0]))[0]))


def _at_zero(terms: Terms, width: float) -> Question:
    """The point of the curve at epsilon 0: the advantage of an attacker."""
    log_delta, order, _ = _RENYI.best_log_delta(terms, 0.0)
    return Question(_scale(terms), max(math.exp(min(log_delta, -1e-3)), 1e-280), order, width)


def _normal_tail(probability: float) -> float:
    """Number of standard deviations beyond which a normal distribution has at most ``probability``."""
    from scipy.special import ndtri

    return float(min(37.0, max(4.0, -ndtri(max(probability, 1e-299)))))


@singledispatch
def event_losses(event: PrivacyEvent, step: float) -> tuple[LossMasses, LossMasses]:
    """Privacy losses of a non-Gaussian event on a grid of ``step``: for removing and for adding an example.

    Register a rule for a custom event with ``event_losses.register(MyEvent)``. Its rounding must be pessimistic, as
    that of ``monitors.privacy_loss.split_cells`` is.

    Raises:
        UnsupportedEventError: No rule is registered for the event's type.
    """
    del step
    raise UnsupportedEventError(_unsupported(event))


@event_losses.register
def _(event: LaplaceEvent, step: float) -> tuple[LossMasses, LossMasses]:
    losses = laplace_losses(1.0 / event.noise_multiplier, step)
    return losses, losses


def composable(ledger: Rows) -> Terms:
    """The releases, with each partition replaced by one dominating release; events without a rule are refused."""
    terms = gather(ledger)
    if terms.others and not terms.unprotected:
        terms = gather(leaf for event, count in ledger for leaf in _leaves(event, count))
        counts: Counter[PrivacyEvent] = Counter()
        for event, count in terms.others:
            if event_losses.dispatch(type(event)) is event_losses.dispatch(object):
                raise UnsupportedEventError(_unsupported(event))
            counts[event] += count
        terms = replace(terms, others=tuple(counts.items()))
    return _without_partitions(terms)


def _leaves(event: PrivacyEvent, count: int) -> Iterator[tuple[PrivacyEvent, int]]:
    """The releases that ``event`` is composed of; Gaussians and parts of a partition are not decomposed."""
    if holds_partition(event) or gaussian_terms(event) is not None:
        yield event, count
    elif isinstance(event, RepeatedEvent):
        yield from _leaves(event.event, count * event.count)
    elif isinstance(event, ComposedEvent):
        for part in event.events:
            yield from _leaves(part, count)
    elif isinstance(event, PoissonSampledEvent) and event.sampling_rate == 1:
        yield from _leaves(event.event, count)
    else:
        yield event, count


def _without_partitions(terms: Terms) -> Terms:
    if terms.unprotected:
        return terms
    if not terms.partitions:
        return terms
    rates, multipliers = list(terms.rates), list(terms.multipliers)
    counts, mu_squared = list(terms.counts), terms.mu_squared
    for events in terms.partitions:
        rate, multiplier = _worst(events)
        if rate == 1:
            mu_squared += multiplier**-2
            continue
        rates.append(rate)
        multipliers.append(multiplier)
        counts.append(1.0)
    return Terms(np.array(rates), np.array(multipliers), np.array(counts), mu_squared, terms.others)


def _worst(events: tuple[PrivacyEvent, ...]) -> tuple[float, float]:
    """A rate and multiplier at least as bad as each event of a partition."""
    found = []
    for event in events:
        terms = gaussian_terms(event)
        if terms is None or len(terms) != 1 or terms[0].times != 1:
            raise UnsupportedEventError(_unsupported(event))
        found.append(terms[0])
    return max(term.rate for term in found), min(term.multiplier for term in found)


def _unsupported(event: PrivacyEvent) -> str:
    name = type(event).__name__
    return (
        f"the 'pld' accountant has no rule for event type {name!r}: {event!r}. Use the 'rdp' accountant, or add a rule "
        f"with `monitors.gaussian_terms.register({name})` if sampled Gaussians dominate the event, else with "
        f"`monitors.event_losses.register({name})`."
    )


_BLOCK = 512  # most announced events cleared together


class PLDTracker(Tracker):
    """Clears many announced events with one composition.

    Guarantees: epsilon never falls with more releases, so a ledger of all announced events that stays within a limit
    clears each of them. The nearly free Renyi bound is tried first.

    Args:
        accountant: The accountant that computes the figures.
    """

    def __init__(self, accountant: PLDAccountant) -> None:
        super().__init__(accountant)
        self._renyi = RDPAccountant().tracker()
        self._announced: deque[PrivacyEvent] = deque()
        self._cleared: dict[tuple[float, float], int] = {}

    def add(self, event: PrivacyEvent, count: int = 1) -> None:
        """Count ``count`` more releases of ``event``."""
        super().add(event, count)
        self._renyi.add(event, count)
        if count == 1 and self._announced and self._announced[0] == event:
            self._announced.popleft()
            self._cleared = {limit: left - 1 for limit, left in self._cleared.items()}
        else:
            self._announced.clear()
            self._cleared.clear()

    def prepare(self, events: Iterable[PrivacyEvent]) -> None:
        """Announce the upcoming events, in order."""
        self._announced = deque(events)
        self._cleared.clear()
        self._renyi.prepare(self._announced)

    def stays_within(self, event: PrivacyEvent, epsilon: float, delta: float) -> bool:
        """Whether one more release of ``event`` leaves epsilon at ``delta`` at or below ``epsilon``."""
        limit = (epsilon, delta)
        expected = bool(self._announced) and self._announced[0] == event
        if expected and self._cleared.get(limit, 0) > 0:
            return True
        if self._renyi.epsilon_with(event, delta) <= epsilon:
            return True
        return self._clear(limit) if expected else super().stays_within(event, epsilon, delta)

    def within(self, rows: Rows, epsilon: float, delta: float) -> bool:
        """Whether all of ``rows``, as further releases, certainly keep epsilon at ``delta`` within ``epsilon``."""
        further = list(rows)
        return self._renyi.within(further, epsilon, delta) or super().within(further, epsilon, delta)

    def _clear(self, limit: tuple[float, float]) -> bool:
        """Find, by halving, how many announced events fit; returns whether at least the first one does."""
        epsilon, delta = limit
        ahead = min(len(self._announced), _BLOCK)
        while ahead:
            if self._fits([(event, 1) for event in islice(self._announced, ahead)], epsilon, delta):
                self._cleared[limit] = ahead
                return True
            ahead //= 2
        return False
