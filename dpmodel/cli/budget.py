"""``dpmodel budget``: plan epsilon, noise and epochs without data and, except for correlated noise, without torch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpmodel.cli.options import AsJson, Overrides, Size, Style

if TYPE_CHECKING:
    from rich.table import Table

    from dpmodel.budget import BudgetAnswer, Scenario
    from dpmodel.config.schema import Config

EXAMPLES = """
  # Epsilon for a noise multiplier
  dpmodel budget -n 60000 -b 256 -e 10 --noise-multiplier 1.5

  # Noise multiplier for a target epsilon, with decaying noise
  dpmodel budget -n 60000 -b 512 -e 10 --target-epsilon 3 --decay-rate 2e-4

  # The most epochs that fit the budget
  dpmodel budget -n 60000 -b 256 --noise-multiplier 1.5 --max-epsilon 3

  # How many steps correlated noise should span
  dpmodel budget -n 60000 -b 512 -e 10 --target-epsilon 3 --bands auto

  # What it costs to publish the best of ten trainings
  dpmodel budget -n 60000 -b 512 -e 10 --noise-multiplier 2 --tuning-runs 10

  # For a configuration, with every accountant and a figure
  dpmodel budget run.yaml --accountant all --plot epsilon.png

  # The figure at the width of a column in a paper
  dpmodel budget run.yaml --plot epsilon.pdf --size 3.4
"""

#: Option -> path in the configuration.
_PLACES = {
    "batch_size": ("training", "batch_size"),
    "epochs": ("training", "epochs"),
    "noise_multiplier": ("privacy", "noise_multiplier"),
    "target_epsilon": ("privacy", "target_epsilon"),
    "delta": ("privacy", "delta"),
    "sampling": ("privacy", "sampling"),
    "micro_batches": ("privacy", "micro_batches"),
    "noise": ("privacy", "noise", "name"),
    "bands": ("privacy", "noise", "bands"),
    "decay_policy": ("privacy", "noise", "decay_policy"),
    "decay_rate": ("privacy", "noise", "noise_decay_rate"),
    "clip": ("privacy", "clip", "name"),
    "fraction_stddev": ("privacy", "clip", "fraction_stddev"),
}

#: Option -> the options and values it implies when they are not given.
_IMPLIES = {
    "bands": {"noise": "BandedMF", "sampling": "cyclic_poisson"},
    "decay_policy": {"noise": "AdaGaussian"},
    "decay_rate": {"noise": "AdaGaussian"},
    "fraction_stddev": {"clip": "Gaussian"},
}

#: Options that exclude each other: the one on the command line replaces the other one in the file.
_REPLACES = {"noise_multiplier": "target_epsilon", "target_epsilon": "noise_multiplier"}

_TABLE_TITLE = "the same noise under other rules"

#: Fewest columns in which the sentences of the table stay readable.
_NARROWEST_RULE = 28

#: More columns than any table needs.
_WIDE = 1000

#: Sections that a plan without a configuration file does not depend on.
_PLACEHOLDERS: dict[str, Any] = {"data": "npz", "network": "linear", "optimizer": "SGD"}


def budget(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="YAML configuration.", show_default=False)
    ] = None,
    num_examples: Annotated[
        int | None, typer.Option("--num-examples", "-n", help="Number of training examples.")
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option("--batch-size", "-b", help="Expected number of examples per step.")
    ] = None,
    epochs: Annotated[int | None, typer.Option("--epochs", "-e", help="Number of epochs.")] = None,
    noise_multiplier: Annotated[float | None, typer.Option(help="Compute epsilon for this noise multiplier.")] = None,
    target_epsilon: Annotated[
        float | None, typer.Option(help="Solve for the noise multiplier that meets this epsilon.")
    ] = None,
    max_epsilon: Annotated[
        float | None, typer.Option(help="Find the most epochs that stay within this epsilon.")
    ] = None,
    delta: Annotated[float | None, typer.Option(help=r"Delta \[default: 1e-5]")] = None,
    accountant: Annotated[str | None, typer.Option(help=r"rdp, pld, zcdp, or all \[default: rdp]")] = None,
    sampling: Annotated[
        str | None, typer.Option(help=r"poisson, shuffle, cyclic_poisson or fixed_order \[default: poisson]")
    ] = None,
    micro_batches: Annotated[
        int | None, typer.Option(help=r"Clip this many groups per batch \[default: clip each example]")
    ] = None,
    noise: Annotated[str | None, typer.Option(help=r"Noise mechanism \[default: Gaussian]")] = None,
    bands: Annotated[
        str | None,
        typer.Option(help="Correlate the noise over this many steps, or auto (implies BandedMF, cyclic_poisson)."),
    ] = None,
    decay_policy: Annotated[
        str | None, typer.Option(help="How the noise decays: Time, Step or Exp (implies AdaGaussian).")
    ] = None,
    decay_rate: Annotated[float | None, typer.Option(help="Decay rate per step (implies AdaGaussian).")] = None,
    clip: Annotated[
        str | None, typer.Option(help=r"Clip mechanism; Gaussian is adaptive and is charged \[default: Fixed]")
    ] = None,
    fraction_stddev: Annotated[
        float | None, typer.Option(help="Noise on the count that adapts the norm bound (implies Gaussian clipping).")
    ] = None,
    tuning_runs: Annotated[
        int | None, typer.Option(min=1, help="Also show the cost of publishing the best of this many runs.")
    ] = None,
    overrides: Overrides = [],  # noqa: B006 - typer copies it
    plot: Annotated[
        Path | None, typer.Option(help="Plot epsilon against the step to this file (.png, .svg or .pdf).")
    ] = None,
    style: Style = "light",
    size: Size = None,
    as_json: AsJson = False,
) -> None:
    """Plan a privacy budget: the epsilon of a noise multiplier, the multiplier for an epsilon, or the epochs that fit.

    Reads no data and trains nothing. Give a CONFIG, the numbers as options, or both; options override CONFIG. The
    answer charges adaptive clipping and counts micro-batches at twice the sensitivity. A table compares it with other
    accounting rules and says what each of them assumes.
    """
    given = {name: value for name, value in locals().items() if name in _PLACES and value is not None}
    if bands is not None and bands.isdigit():
        given["bands"] = int(bands)
    from dpmodel.budget.answer import answer_budget, known_accountants

    _refuse_two_lengths(epochs, max_epsilon)
    _check_figure(plot, style, size)
    if config is None:
        _require(given, num_examples, max_epsilon, overrides)
    settings = _settings(config, given, overrides, accountant, max_epsilon)
    chosen = None if accountant is None else known_accountants(accountant)
    answer = answer_budget(settings, num_examples, accountants=chosen, max_epsilon=max_epsilon, tuning_runs=tuning_runs)
    if plot is not None:
        from dpmodel.budget.curves import draw_curves

        draw_curves(answer.plan, plot, style=style, size=size)
    if as_json:
        typer.echo(json.dumps(answer.to_dict()))
    else:
        _show(answer, plot)


def _settings(
    path: Path | None, given: dict[str, Any], overrides: list[str], accountant: str | None, max_epsilon: float | None
) -> Config:
    from dpmodel.budget.answer import ALL
    from dpmodel.config import load_config, make_config

    flags = [(_PLACES[name], value) for name, value in {**_implied(given), **given}.items()]
    flags += [(_PLACES[other], None) for name, other in _REPLACES.items() if name in given and other not in given]
    if accountant is not None and accountant != ALL:
        flags.append((("privacy", "accountant"), accountant))
    if path is not None:
        return load_config(path, [*overrides, *flags])
    if max_epsilon is not None and "epochs" not in given:
        flags.append((_PLACES["epochs"], 1))
    return make_config(_PLACEHOLDERS, [*overrides, *flags], "command line")


def _check_figure(plot: Path | None, style: str, size: float | None) -> None:
    if plot is not None:
        from dpmodel.budget.curves import require_drawable

        require_drawable(plot, "--plot", style=style, size=size)
    elif style != "light" or size is not None:
        raise typer.BadParameter("--style and --size apply to the figure of --plot; add --plot epsilon.png")


def _refuse_two_lengths(epochs: int | None, max_epsilon: float | None) -> None:
    if epochs is not None and max_epsilon is not None:
        raise typer.BadParameter(
            f"--max-epsilon {max_epsilon:g} asks for the number of epochs, but --epochs {epochs} already sets it; "
            "give only one of them"
        )


def _implied(given: dict[str, Any]) -> dict[str, Any]:
    implied = [implied for name, implied in _IMPLIES.items() if name in given]
    return {other: value for options in implied for other, value in options.items() if other not in given}


def _require(
    given: dict[str, Any], num_examples: int | None, max_epsilon: float | None, overrides: Sequence[str]
) -> None:
    stated = {override.partition("=")[0].strip().partition(".")[0] for override in overrides}
    needed = ["batch_size"] if max_epsilon is not None else ["batch_size", "epochs"]
    missing = [f"--{name.replace('_', '-')}" for name in needed if name not in given]
    if num_examples is None and "data" not in stated:
        missing.insert(0, "--num-examples (-n)")
    if "noise_multiplier" not in given and "target_epsilon" not in given:
        missing.append("--noise-multiplier or --target-epsilon")
    if missing:
        raise typer.BadParameter(
            f"without a CONFIG, these options are required: {', '.join(missing)}; see dpmodel budget --help"
        )


def _show(answer: BudgetAnswer, plot: Path | None) -> None:
    from rich.console import Console

    console = Console()
    console.print(_headline(answer), highlight=False, markup=False, soft_wrap=True)
    console.print()
    table = _side_by_side(answer)
    # Measured on a wide console: a narrow one reports the width that is left after truncation.
    if console.measure(table, options=console.options.update(width=_WIDE)).minimum <= console.width:
        console.print(table, highlight=False)
    else:
        console.print(_one_below_the_other(answer), highlight=False, markup=False)
    if answer.bands:
        console.print(_bands(answer), highlight=False)
    if plot is not None:
        console.print(f"figure: {plot}", highlight=False, markup=False, soft_wrap=True)


def _side_by_side(answer: BudgetAnswer) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    accountants = list(answer.figures)
    table = Table(box=box.SIMPLE_HEAD, title=_TABLE_TITLE, title_justify="left")
    table.add_column("rule, and what it assumes", min_width=_NARROWEST_RULE)
    for name in accountants if len(accountants) > 1 else ["epsilon"]:
        table.add_column(name, justify="right", no_wrap=True)
    for scenario in answer.scenarios:
        name = f"{scenario.name} (configured)" if scenario.configured else scenario.name
        rule = Text(name, style="bold" if scenario.configured else "").append(f"\n{scenario.assumes}", style="dim")
        table.add_row(rule, *_cells(scenario, accountants))
    return table


def _bands(answer: BudgetAnswer) -> Table:
    """What each number of bands needs; the numbers fit any terminal."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="bands of correlated noise at equal epsilon", title_justify="left")
    for heading in ("bands", "noise multiplier", "noise in the last weights"):
        table.add_column(heading, justify="right")
    for row in answer.bands:
        chosen = row.bands == answer.plan.release.noise.bands
        style = "bold" if chosen else None
        table.add_row(
            f"{'> ' if chosen else ''}{row.bands}", f"{row.noise_multiplier:.4g}", f"{row.noise:.3f}", style=style
        )
    return table


def _one_below_the_other(answer: BudgetAnswer) -> str:
    """The contents of the table, for a terminal that is too narrow for it."""
    accountants = list(answer.figures)
    parts = [_TABLE_TITLE]
    for scenario in answer.scenarios:
        name = f"{scenario.name} (configured)" if scenario.configured else scenario.name
        cells = _cells(scenario, accountants)
        several = [f"{cell} ({accountant})" for cell, accountant in zip(cells, accountants, strict=False)]
        parts.append(f"{name}\nepsilon {', '.join(cells if len(accountants) == 1 else several)}\n{scenario.assumes}")
    return "\n\n".join(parts)


def _cells(scenario: Scenario, accountants: list[str]) -> list[str]:
    from monitors.spent import epsilon_text

    if len(accountants) == 1:
        return ["-" if scenario.best is None else f"{epsilon_text(scenario.best[0])} ({scenario.best[1]})"]
    values = [scenario.figures.get(name, "-") for name in accountants]
    return ["-" if isinstance(value, str) else epsilon_text(value) for value in values]


def _headline(answer: BudgetAnswer) -> str:
    from dpmodel.cli.result_view import claim_caveats
    from monitors.spent import epsilon_text

    plan = answer.plan
    release, privacy = plan.release, plan.config.privacy
    first, last = plan.noise_multiplier, release.noise.noise_multiplier(plan.steps - 1)
    way = "falling" if last < first else "rising"
    noise = f"{first:.6g}" if first == last else f"{first:.6g} {way} to {last:.6g}"
    figures = [
        f"{epsilon_text(value) if isinstance(value, float) else '-'} ({name})" for name, value in answer.figures.items()
    ]
    caveats = claim_caveats(answer.epsilon, privacy.delta, release.sampler.stated_examples)
    epochs = plan.config.training.epochs
    return "\n".join(
        [
            f"epsilon           {', '.join(figures)} at delta {privacy.delta:g}",
            f"noise multiplier  {noise}",
            f"length            {epochs:,} epoch{'' if epochs == 1 else 's'}, {plan.steps:,} steps",
            f"sampling          {release.sampler.describe()}",
            f"unit              {release.unit.describe()}; neighbours: {release.sampler.relation}",
            *(f"note              {note}" for note in (*answer.notes, *caveats)),
        ]
    )
