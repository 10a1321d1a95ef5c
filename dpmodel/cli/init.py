"""``dpmodel init``: write a first configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dpmodel.cli.options import AsJson

EXAMPLES = """
  dpmodel init

  # For your own arrays, or a folder or .zip of images
  dpmodel init data.npz --output mine.yaml
  dpmodel init pictures --target-epsilon 1 --output pictures.yaml

  # With a network from a different package
  dpmodel init cifar10 --network torchvision.models:resnet18
"""


def init(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help=r"An .npz file, a folder or .zip of images, or a name such as fashion_mnist \[default: mnist]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help=r"mnist, fashion_mnist, cifar10, npz, image_folder, ... \[default: inferred from --root]"),
    ] = None,
    root: Annotated[
        Path | None, typer.Option(help="Location of your data: an .npz file, or a folder or .zip of images.")
    ] = None,
    network: Annotated[
        str | None, typer.Option(help=r"A name, or package.module:Class \[default: one that fits the data]")
    ] = None,
    target_epsilon: Annotated[float, typer.Option(help="Epsilon that the whole training may spend.")] = 3.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("run.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a first configuration for your data, with a comment on each choice.

    Asks no questions and trains nothing. The data are read only for their size, their shape and the type of their
    targets.
    """
    from dpmodel.starter.configuration import budget_command, described, written

    if source is not None:
        data, root = _placed(source, data, root)
    path, facts = written(output, data, root, network=network, target_epsilon=target_epsilon)
    if as_json:
        typer.echo(json.dumps({"written": str(path)}))
        return
    typer.echo(
        f"written: {path}, for {described(facts)}\nshow what it spends:  {budget_command(path, facts)}\n"
        f"train it:             dpmodel train {path}"
    )


def _placed(source: str, data: str | None, root: Path | None) -> tuple[str | None, Path | None]:
    """The reader and location that DATA stands for: a registered name, or else a path."""
    from dpmodel.data.datasets import DATASETS
    from monitors import checks
    from monitors.errors import ConfigError

    known = DATASETS.names()
    if source in known and data in (None, source):
        return source, root
    if source in known or root is not None:
        stated = f"--root {root}" if source not in known else f"--data {data}"
        raise typer.BadParameter(f"DATA {source!r} and {stated} both say what to read; give one of them")
    hint = checks.nearest_hint(source, known)
    if hint and not Path(source).exists():
        raise ConfigError(f"no file, folder or data set is named {source!r}{hint}")
    return data, Path(source)
