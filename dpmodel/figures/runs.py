"""Draws the figures of run folders into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dpmodel.figures.curve import Curve, curve_of_run
from dpmodel.figures.files import DEFAULT_FORMATS, FORMATS, save_figures
from dpmodel.figures.gallery import draw_all
from dpmodel.figures.style import repaint, require_size, require_style
from dpmodel.figures.training_curve import draw_history
from monitors import checks
from monitors.atomic import PRIVATE_FILE, SHARED_FILE
from monitors.errors import ConfigError


def draw_runs(
    paths: Sequence[Path],
    output: Path | None = None,
    metric: str | None = None,
    *,
    style: str = "light",
    formats: Sequence[str] = DEFAULT_FORMATS,
    size: float | None = None,
    trust_code: bool = False,
) -> list[Path]:
    """Draw the figures of one or several run folders.

    Args:
        paths: Run folders, at least one.
        output: Folder for the figures; default: ``figures`` inside the run folder, if there is only one.
        metric: The test metric to draw; default: the first of ``training.metrics`` that every run has. The figure of
            the metric is left out if the runs have no validation.
        style: ``"light"`` or ``"dark"``.
        formats: One or more of ``"png"``, ``"svg"`` and ``"pdf"``.
        size: Width of each figure in inches, 2.5 to 40; default: as wide as its panels need.
        trust_code: Import the plugins of run folders that were not made here.

    Returns:
        Paths of the figures: those of all runs together, then the training curve of each run.

    Raises:
        ConfigError: A path is not a run folder or is given twice; the runs differ in delta or accountant; the metric is
            unknown, or the runs have none in common; there are several runs but no ``output``; or the style, format
            or size is invalid.
    """
    if not paths:
        raise ConfigError("no run folder was given; give at least one")
    if output is None and len(paths) > 1:
        raise ConfigError("several run folders were given; choose a folder for the figures with --output")
    _require_look(style, formats, size)
    folder = paths[0] / "figures" if output is None else output
    curves = [curve_of_run(path, name, trust_code=trust_code) for path, name in zip(paths, _labels(paths), strict=True)]
    _require_alike(curves)
    if metric is not None:
        _require_metric(curves, metric)
    drawn = metric or _common_metric(curves)
    figures = draw_all(curves, drawn, size)
    for curve in curves:
        name = f"training_curve{'' if len(curves) == 1 else '_' + curve.name}"
        figures[name] = draw_history(curve.histories[0], privacy=curve.privacy, size=size)
    for figure in figures.values():
        repaint(figure, style)
    # A run folder is private, because it holds training losses; elsewhere, figures are made to be shown.
    return save_figures(figures, folder, formats, mode=PRIVATE_FILE if output is None else SHARED_FILE)


def _require_look(style: str, formats: Sequence[str], size: float | None) -> None:
    try:
        require_style(style)
        if not formats:
            raise ValueError(f"formats must name at least one of {', '.join(FORMATS)}, got none")
        for kind in formats:
            checks.one_of(FORMATS, format=kind)
        if size is not None:
            require_size(size)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _labels(paths: Sequence[Path]) -> list[str]:
    """The shortest trailing parts of the paths that are all different."""
    parts = [path.resolve().parts for path in paths]
    if len(set(parts)) < len(parts):
        raise ConfigError(f"a run folder is given twice: {', '.join(map(str, paths))}")
    longest = max(len(one) for one in parts)
    for length in range(1, longest + 1):
        labels = ["_".join(one[-length:]) for one in parts]
        if len(set(labels)) == len(labels):
            return labels
    raise AssertionError("distinct paths have distinct ends")  # pragma: no cover


def _require_alike(curves: Sequence[Curve]) -> None:
    stated = {f"delta {curve.privacy.delta:g} ({curve.privacy.accountant})" for curve in curves}
    if len(stated) > 1:
        raise ConfigError(
            f"the runs state epsilon at {' and at '.join(sorted(stated))}, which cannot share one axis; draw them "
            "separately"
        )


def _common_metric(curves: Sequence[Curve]) -> str | None:
    """The first metric of the first run that every run has; None if no run has any."""
    known = {curve.name: curve.histories[0].metric_names for curve in curves}
    first, *others = known.values()
    common = [name for name in first if all(name in names for names in others)]
    if not any(known.values()):
        return None
    if not common:
        each = "; ".join(f"{name}: {', '.join(names) or 'none'}" for name, names in known.items())
        raise ConfigError(f"the runs have no test metric in common ({each}); draw them separately")
    return common[0]


def _require_metric(curves: Sequence[Curve], metric: str) -> None:
    for curve in curves:
        known = curve.histories[0].metric_names
        if metric not in known:
            hint = checks.nearest_hint(metric, known) or ";"
            raise ConfigError(f"{curve.name} has no metric {metric!r}{hint} it has: {', '.join(known) or 'none'}")
