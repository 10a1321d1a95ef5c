"""Epsilon over the steps, for fixed and decaying noise that end at the same epsilon."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dpmodel.config.privacy import NoiseSection
from dpmodel.figures.epsilon_curve import Privacy, epsilon_over
from dpmodel.figures.files import require_format, save_figure
from dpmodel.figures.lines import draw_epsilon, marks, note_infinite
from dpmodel.figures.style import (
    Pen,
    add_legend,
    dress,
    from_zero,
    make_panels,
    repaint,
    require_size,
    require_style,
)
from dpmodel.planning.training_plan import TrainingPlan, plan_training
from monitors.calibration import decay_rate_for
from monitors.errors import ConfigError
from monitors.schedules import DECAYS
from monitors.spent import epsilon_text, resolve_accountant

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Last over first multiplier of the decaying schedules if the configured noise does not decay.
DEFAULT_RATIO = 0.5


@dataclass(frozen=True)
class EpsilonCurve:
    """Epsilon and noise multiplier of a schedule over its steps.

    Args:
        name: The schedule in words.
        steps: Finished steps, shape (points,).
        epsilons: Epsilon after each, shape (points,).
        multipliers: Noise multiplier at each, shape (points,).
    """

    name: str
    steps: tuple[int, ...]
    epsilons: tuple[float, ...]
    multipliers: tuple[float, ...]


def epsilon_curves(plan: TrainingPlan) -> tuple[EpsilonCurve, ...]:
    """Curves of fixed noise and of each decay policy, all solved for the final epsilon of ``plan``.

    Args:
        plan: The plan; the other schedules decay as far as its own.
    """
    noise, last = plan.release.noise, max(plan.steps - 1, 0)
    ratio = noise.noise_multiplier(last) / noise.noise_multiplier(0)
    ratio = ratio if 0 < ratio < 1 else DEFAULT_RATIO
    target = plan.privacy_spent().epsilon
    # The calibration stays below its target, so aim just above the plan's own figure.
    goal = target * (1 + 1e-6)
    plans = {"fixed": _solved(plan, NoiseSection(name="Gaussian"), goal)}
    for policy in DECAYS.names() if plan.steps > 1 else ():
        rate = decay_rate_for(policy, 1.0, ratio, plan.steps)
        section = NoiseSection.model_validate({"name": "AdaGaussian", "decay_policy": policy, "noise_decay_rate": rate})
        plans[f"{policy} decay"] = _solved(plan, section, goal)
    return tuple(_curve(name, planned) for name, planned in plans.items())


def draw_curves(
    plan: TrainingPlan,
    path: str | os.PathLike[str] | None = None,
    *,
    style: str = "light",
    size: float | None = None,
) -> Figure:
    """Draw ``epsilon_curves``.

    Args:
        plan: The plan.
        path: Also save the picture here; the ending chooses the format (``.png``, ``.svg``, ``.pdf``).
        style: ``"light"`` or ``"dark"``.
        size: Width of the figure in inches, 2.5 to 40. Default: what the two panels need.

    Raises:
        ConfigError: As for ``require_drawable``.
    """
    require_drawable(path, style=style, size=size)
    curves = epsilon_curves(plan)
    privacy = plan.config.privacy
    figure, (left, right) = make_panels(2, size)
    end = f"{epsilon_text(curves[0].epsilons[-1])} ({resolve_accountant(privacy.accountant).name})"
    dress(left, f"Schedules that end at epsilon {end}", "step", f"epsilon at delta {privacy.delta:g}")
    dress(right, "Noise of the same schedules", "step", "noise multiplier")
    for index, curve in enumerate(curves):
        pen = Pen.of(index, len(curves))
        draw_epsilon(left, _privacy(curve, plan), pen, curve.name)
        right.plot(curve.steps, curve.multipliers, label=curve.name, **pen.line, **marks(len(curve.steps)))
    for axes in (left, right):
        from_zero(axes)
    note_infinite(left, [_privacy(curve, plan) for curve in curves])
    add_legend(figure, left)
    repaint(figure, style)
    if path is not None:
        save_figure(figure, path)
    return figure


def require_drawable(
    path: str | os.PathLike[str] | None, setting: str = "plot", *, style: str = "light", size: float | None = None
) -> None:
    """Refuse a picture that cannot be drawn or written, before anything is computed.

    Args:
        path: The file; None for a picture that is not saved.
        setting: Name of the argument that gave the file, for errors.
        style: Its style.
        size: Its width in inches.

    Raises:
        ConfigError: The file is a folder or cannot be written, its ending is not ``.png``, ``.svg`` or ``.pdf``, the
            style is unknown, or the size is out of range.
    """
    try:
        require_style(style)
        if size is not None:
            require_size(size)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    if path is None:
        return
    file = Path(path)
    if file.is_dir():
        raise ConfigError(f"{setting}: {file} is a folder; give a file in it, such as {file / 'epsilon.png'}")
    if not file.parent.is_dir():
        raise ConfigError(
            f"{setting}: {file} cannot be written: the folder {file.parent} does not exist; create it first"
        )
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise ConfigError(f"{setting}: {file} cannot be written: permission denied; choose a different place")
    try:
        require_format(file)
    except ValueError as error:
        raise ConfigError(f"{setting}: {error}") from error


def _solved(plan: TrainingPlan, noise: NoiseSection, target: float) -> TrainingPlan:
    update = {"noise": noise, "target_epsilon": target, "noise_multiplier": None}
    privacy = plan.config.privacy.model_copy(update=update)
    return plan_training(plan.config.model_copy(update={"privacy": privacy}), plan.release.sampler.num_examples)


def _curve(name: str, plan: TrainingPlan) -> EpsilonCurve:
    privacy = plan.config.privacy
    ends = range(plan.steps_per_epoch, plan.steps + 1, plan.steps_per_epoch)
    curve = epsilon_over(plan.summary(), ends, privacy.delta, privacy.accountant, plan.steps)
    multipliers = tuple(plan.release.noise.noise_multiplier(step - 1) for step in curve.steps[1:])
    return EpsilonCurve(name, curve.steps[1:], curve.epsilons[1:], multipliers)


def _privacy(curve: EpsilonCurve, plan: TrainingPlan) -> Privacy:
    privacy = plan.config.privacy
    return Privacy((0, *curve.steps), (0.0, *curve.epsilons), privacy.delta, privacy.accountant)
