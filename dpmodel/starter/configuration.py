"""The text of a first configuration."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

from dpmodel.config import load_config
from dpmodel.config.marked_yaml import read_yaml
from dpmodel.config.reader import checked_config
from dpmodel.planning.training_plan import KNOWN_SIZES
from dpmodel.starter.data_facts import DataFacts, facts_of, kind_of
from monitors import checks
from monitors.atomic import SHARED_FILE, write_atomically
from monitors.errors import ConfigError

#: Smallest image that ``small_cnn`` accepts.
_SMALLEST_IMAGE = 20
_MOST_PER_BATCH = 512
#: Fewest batches per epoch.
_FEWEST_STEPS = 20

#: Kind of targets -> loss, metrics, norm bound, learning rate for the largest batch. A small bound needs a large rate,
#: because their product moves the weights.
_TASKS = {
    "classes": ("cross_entropy", "[accuracy, loss]", 0.1, 3.0),
    "labels": ("bce_with_logits", "[loss]", 0.1, 3.0),
    "numbers": ("mse", "[mae, mse]", 1.0, 0.1),
}

_TEXT = """\
# A first configuration for {described}.
# Every setting is described in docs/config.md. Size, shape and {kinds} are treated as public.
#
#   {budget}      what it will spend
#   {train}      train it

data:
  name: {data}{options}

network:{network}

loss: {loss}

optimizer:
  name: Momentum
  lr: {lr:<23}# try others with `dpmodel tune`; choosing among runs spends privacy too
  schedule: {{name: LinearLR, start_factor: 1.0, end_factor: 0.0}}   # falls to zero: late noise weighs less

privacy:                     # what changes epsilon, with epochs and batch size
  target_epsilon: {epsilon:<11g}# the noise is solved for it; lower is more private
  delta: {delta:<20g}# keep it well below 1 / {examples:,}
  accountant: pld            # the tight one
  norm_bound: {bound:<15}# each example's gradient is clipped to this
  noise: {{name: Gaussian}}
  clip: {{name: Fixed}}

performance:
  device: auto               # a CUDA device if available

training:
  epochs: 10
  batch_size: {batch:<15}# expected examples per step; larger batches have less noise on their mean gradient
  metrics: {metrics}
"""


def starter_configuration(
    data: str | None = None,
    root: str | os.PathLike[str] | None = None,
    *,
    network: str | None = None,
    target_epsilon: float = 3.0,
    file: str | os.PathLike[str] = "run.yaml",
) -> str:
    """The text of a configuration that trains on your data.

    Args:
        data: Name of a data set. Default: the data at ``root``, or MNIST.
        root: File or folder of the data, relative to the current folder.
        network: A registered name, or ``package.module:Class``. Default: a network for the shape of the examples.
        target_epsilon: Epsilon of the whole training, positive.
        file: Where it will be written; a relative ``root`` is stated relative to its folder.

    Raises:
        ValueError: A name is unknown, or ``target_epsilon`` is out of range.
        ConfigError: No reader can read ``root``, or no built-in network accepts such inputs.
        DataError: The data are missing or damaged.
    """
    checks.positive(target_epsilon=target_epsilon)
    return _text(facts_of(data or kind_of(root), root), network, target_epsilon, file)


def described(facts: DataFacts) -> str:
    """The data in words, such as "1,000 examples of shape 8 (2 classes)"."""
    s, shape = "" if facts.num_classes == 1 else "s", " x ".join(map(str, facts.shape))
    counted = {"classes": f"class{s and 'es'}", "labels": f"label{s} of 0 and 1 per example"}
    what = counted.get(facts.targets, f"number{s} to predict per example")
    return f"{facts.num_examples:,} examples of shape {shape} ({facts.num_classes} {what})"


def _text(facts: DataFacts, network: str | None, target_epsilon: float, file: str | os.PathLike[str]) -> str:
    budget = budget_command(file, facts)
    loss, metrics, bound, lr = _TASKS[facts.targets]
    batch = _batch_size(facts.num_examples)
    return _TEXT.format(
        examples=facts.num_examples,
        described=described(facts),
        kinds="number of classes" if facts.targets == "classes" else "number of targets",
        budget=budget,
        train=f"dpmodel train {os.fspath(file)}".ljust(len(budget)),
        data=facts.name,
        options=_options(_stated(facts, Path(file))),
        network=_network(facts, network),
        loss=loss,
        lr=float(f"{lr * (batch / _MOST_PER_BATCH) ** 0.5:.1g}"),
        epsilon=target_epsilon,
        delta=min(1e-5, 10.0 ** -len(str(facts.num_examples))),
        bound=bound,
        batch=batch,
        metrics=metrics,
    )


def write_starter(
    file: str | os.PathLike[str],
    data: str | None = None,
    root: str | os.PathLike[str] | None = None,
    *,
    network: str | None = None,
    target_epsilon: float = 3.0,
) -> Path:
    """Write ``starter_configuration`` to ``file``, which must not exist, and return its path.

    Raises:
        ConfigError: ``file`` exists, or the configuration would not be valid.
        ValueError, DataError: As for ``starter_configuration``.
    """
    return written(file, data, root, network=network, target_epsilon=target_epsilon)[0]


def written(
    file: str | os.PathLike[str],
    data: str | None,
    root: str | os.PathLike[str] | None,
    *,
    network: str | None,
    target_epsilon: float,
) -> tuple[Path, DataFacts]:
    """``write_starter``, and what it found out about the data."""
    path = Path(file)
    if os.path.lexists(path):
        raise ConfigError(f"{path} already exists; choose a different file with --output, or remove it")
    checks.positive(target_epsilon=target_epsilon)
    facts = facts_of(data or kind_of(root), root)
    text = _text(facts, network, target_epsilon, path)
    config = checked_config(read_yaml(text, str(path)), str(path))
    from dpmodel.preflight.configured import require_known_names

    require_known_names(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text, mode=SHARED_FILE)
    load_config(path)
    return path, facts


def budget_command(file: str | os.PathLike[str], facts: DataFacts) -> str:
    """The command that plans the training of ``file``. It reads no data, so it states a size that is not public."""
    size = "" if facts.name in KNOWN_SIZES else f" --num-examples {facts.num_examples}"
    return f"dpmodel budget {os.fspath(file)}{size}"


def _stated(facts: DataFacts, file: Path) -> DataFacts:
    root = facts.options.get("root")
    if root is None or Path(root).is_absolute():
        return facts
    return replace(facts, options={**facts.options, "root": os.path.relpath(root, file.parent)})


def _options(facts: DataFacts) -> str:
    lines = [f"\n  {key}: {json.dumps(value)}" for key, value in facts.options.items()]
    if facts.classes_counted:  # whether a number from private labels is public is for the user to say
        lines.append(
            f"\n  # num_classes: {facts.num_classes}           # counted in the labels; state it if it is public"
        )
    return "".join(lines)


def _network(facts: DataFacts, chosen: str | None) -> str:
    if chosen is not None and ":" in chosen:
        return (
            f"\n  module: {json.dumps(chosen)}\n  fix: true                  # replaces layers that mix examples "
            "(BatchNorm)"
        )
    if chosen is not None:
        return f"\n  name: {chosen}"
    if facts.tokens:
        raise ConfigError(
            f"the inputs of {facts.name!r} are integers, such as tokens, which no built-in network accepts; give "
            "your own with --network package.module:Class"
        )
    large = facts.image_size is not None and facts.image_size >= _SMALLEST_IMAGE
    return (
        f"\n  name: {'small_cnn' if large else 'mlp'}\n  activation: tanh           # better than relu under clipping"
    )


def _batch_size(num_examples: int) -> int:
    """The largest power of two that leaves enough batches per epoch."""
    most = max(1, min(_MOST_PER_BATCH, num_examples // _FEWEST_STEPS))
    return int(2 ** (most.bit_length() - 1))
