"""The factory of privacy monitors, with MindArmour's argument names."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import ArrayLike

from monitors import checks
from monitors.accountant import DEFAULT_DELTA, ELSEWHERE
from monitors.claims import Claims
from monitors.monitor import PrivacyMonitor
from monitors.rdp import RDPAccountant
from monitors.registry import Registry
from monitors.signatures import signature
from monitors.spent import resolve_accountant

MONITORS: Registry[Callable[..., Any]] = Registry("privacy monitor policy", ELSEWHERE)


class PrivacyMonitorFactory:
    """Creates privacy monitors by name; call it on the class or, as in MindArmour's tutorials, on an instance.

    Example:
        >>> monitor = PrivacyMonitorFactory.create(
        ...     "rdp", num_samples=60000, batch_size=256, initial_noise_multiplier=1.5, max_eps=3.0
        ... )
        >>> monitor.max_epoch_suggest()
        185
        >>> PrivacyMonitorFactory().create("rpd")
        Traceback (most recent call last):
            ...
        ValueError: unknown privacy monitor policy 'rpd'; did you mean 'rdp'? Known: pld, rdp, zcdp
    """

    @staticmethod
    def create(
        policy: str,
        num_samples: int | None = None,
        batch_size: int | None = None,
        initial_noise_multiplier: float | None = None,
        max_eps: float | None = None,
        target_delta: float = DEFAULT_DELTA,
        max_delta: float | None = None,
        target_eps: float | None = None,
        orders: ArrayLike | None = None,
        noise_decay_mode: str | None = None,
        noise_decay_rate: float | None = None,
        per_print_times: int = 50,
        **options: Any,
    ) -> Any:
        """Create a monitor.

        Numbers about the run that are given here are checked against the run; omitted ones are taken from it.

        Args:
            policy: ``"rdp"``, ``"zcdp"``, ``"pld"``, or a registered name.
            num_samples: Examples in the training set.
            batch_size: Expected number of examples in a batch.
            initial_noise_multiplier: Noise multiplier of the first step.
            max_eps: Stop before the step that would bring epsilon at ``target_delta`` above this.
            target_delta: Delta at which epsilon is shown and limited.
            max_delta: Stop before the step that would bring delta at ``target_eps`` above this.
            target_eps: Epsilon at which delta is shown and limited.
            orders: Renyi orders to choose from (``"rdp"`` only); default: a search.
            noise_decay_mode: ``"Time"``, ``"Step"``, ``"Exp"``, or None for constant noise.
            noise_decay_rate: Rate of the decay.
            per_print_times: Number of steps between two printed lines.
            **options: Passed to registered builders.

        Raises:
            ValueError: The policy or an argument is unknown (the message suggests the nearest), or a value is out of
                range.
        """
        builder = MONITORS.get(policy)
        try:
            return builder(
                claims=Claims(num_samples, batch_size, initial_noise_multiplier, noise_decay_mode, noise_decay_rate),
                orders=orders,
                max_eps=max_eps,
                target_delta=target_delta,
                max_delta=max_delta,
                target_eps=target_eps,
                per_print_times=per_print_times,
                **options,
            )
        except TypeError as error:
            # A builder may accept and forward any keyword, so only the call itself finds an unknown one.
            raise ValueError(_refusal(policy, builder, options, error)) from error

    @staticmethod
    def register(name: str) -> Callable[[Any], Any]:
        """Decorator for a builder that takes ``claims``, ``orders`` and the keywords of ``PrivacyMonitor``."""
        return MONITORS.register(name)

    @staticmethod
    def names() -> tuple[str, ...]:
        """All policies, in alphabetical order."""
        return MONITORS.names()


@MONITORS.register("rdp")
def _rdp_monitor(
    claims: Claims, orders: ArrayLike | None, conversion: str = "improved", **limits: Any
) -> PrivacyMonitor:
    return PrivacyMonitor(RDPAccountant(orders, conversion=conversion), claims, **limits)


@MONITORS.register("zcdp")
def _zcdp_monitor(claims: Claims, orders: ArrayLike | None, **limits: Any) -> PrivacyMonitor:
    _refuse_orders("zcdp", orders)
    return PrivacyMonitor(resolve_accountant("zcdp"), claims, plans_sampled=False, **limits)


@MONITORS.register("pld")
def _pld_monitor(claims: Claims, orders: ArrayLike | None, **limits: Any) -> PrivacyMonitor:
    _refuse_orders("pld", orders)
    return PrivacyMonitor(resolve_accountant("pld"), claims, **limits)


def _refusal(policy: str, builder: Callable[..., Any], options: Mapping[str, Any], error: TypeError) -> str:
    own = [name for name in _keywords(builder) if name != "claims"]
    known = list(dict.fromkeys([*_keywords(PrivacyMonitorFactory.create), *own]))
    unknown = [f"{name!r}{checks.nearest_hint(name, known)}" for name in options if name not in known]
    finding = f"has no argument {', '.join(unknown)}" if unknown else f"cannot be built: {error}"
    stop = "" if finding.endswith("?") else "."
    return f"the privacy monitor {policy!r} {finding}{stop} It takes: {', '.join(known)}"


def _keywords(builder: Callable[..., Any]) -> list[str]:
    any_number = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [item.name for item in signature(builder).parameters.values() if item.kind not in any_number]


def _refuse_orders(policy: str, orders: ArrayLike | None) -> None:
    if orders is not None:
        raise ValueError(
            f"orders are an argument of the 'rdp' monitor; the {policy!r} monitor has none, got {orders!r}. Omit them"
        )
