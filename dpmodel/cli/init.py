"""``dpmodel init``: write a first configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from dpmodel.cli.options import AsJson

EXAMPLES = """
[b]Examples[/b]

  dpmodel init

  # For arrays of your own, and for folders of images
  dpmodel init data.npz --output mine.yaml
  dpmodel init pictures --target-epsilon 1 --output pictures.yaml

  # With a network of another package
  dpmodel init cifar10 --network torchvision.models:resnet18
"""


def init(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="DATA",
            help=r"An .npz file, a folder of images, or a name such as fashion_mnist \[default: mnist]",
            show_default=False,
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help=r"mnist, fashion_mnist, cifar10, npz, image_folder, ... \[default: seen from --root]"),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="Where your data lie: an .npz file, or a folder of images.")] = None,
    network: Annotated[
        str | None, typer.Option(help=r"A name, or package.module:Class \[default: one for the shape of the data]")
    ] = None,
    target_epsilon: Annotated[float, typer.Option(help="Epsilon of the whole training.")] = 3.0,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write.")] = Path("run.yaml"),
    as_json: AsJson = False,
) -> None:
    """Write a first configuration for your data, with a comment on each choice.

    It asks nothing and trains nothing. Your data are read for their size, their shape and the kind of their targets.
    """
    from dpmodel.starter import write_starter

    if source is not None:
        data, root = _placed(source, data, root)
    path = write_starter(output, data, root, network=network, target_epsilon=target_epsilon)
    if as_json:
        typer.echo(json.dumps({"written": str(path)}))
        return
    typer.echo(
        f"written: {path}\nwhat it will spend:  dpmodel budget {path}\ntrain it:            dpmodel train {path}"
    )


def _placed(source: str, data: str | None, root: Path | None) -> tuple[str | None, Path | None]:
    """Reader and place that DATA means: a name that is known, else a path."""
    from dpmodel.data.datasets import DATASETS
    from monitors import checks
    from monitors.errors import ConfigError

    known = DATASETS.names()
    if source in known and data in (None, source):
        return source, root
    if source in known or root is not None:
        stated = f"--root {root}" if source not in known else f"--data {data}"
        raise typer.BadParameter(f"DATA {source!r} and {stated} state the same thing; give one of them")
    hint = checks.nearest_hint(source, known)
    if hint and not Path(source).exists():
        raise ConfigError(f"no file, folder or data set is called {source!r}{hint}")
    return data, Path(source)
