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
  dpmodel init --root data.npz --output mine.yaml
  dpmodel init --root pictures --target-epsilon 1 --output pictures.yaml

  # With a network of another package
  dpmodel init --data cifar10 --network torchvision.models:resnet18
"""


def init(
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

    path = write_starter(output, data, root, network=network, target_epsilon=target_epsilon)
    if as_json:
        typer.echo(json.dumps({"written": str(path)}))
        return
    typer.echo(
        f"written: {path}\nwhat it will spend:  dpmodel budget {path}\ntrain it:            dpmodel train {path}"
    )
