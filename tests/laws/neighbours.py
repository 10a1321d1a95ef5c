"""Neighbouring trainings through the public ``fit``: how far one example moves the sum, and what the ledger states.

The trainings use two data sets that differ in one example, the same noise stream, every row in every step, and an
optimizer that leaves the weights unchanged. The noise cancels, so the difference between two released gradients is the
difference between the two clipped sums.
"""

from __future__ import annotations

import contextlib
import copy
import io
import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset, default_collate

from dpmodel import Callback, DPModel, NoiseMechanismsFactory, poisson_loader

BOUND, DELTA, EXAMPLES, FEATURES, CLASSES = 1.0, 1e-5, 24, 8, 4

#: What rounding may add to the accounted sensitivity, relative to it.
ROUNDING = 1e-3

Rows = tuple[Tensor, ...]


@dataclass
class Training:
    """What a user provides for a training; made anew for each training.

    Args:
        network: The network.
        loss: ``loss(outputs, targets)``.
        dataset: Makes a data set from the rows.
        collate: As in ``DataLoader``.
        callbacks: Makes the callbacks from the rows, because some callbacks hold the data.
        close: Called afterwards, to undo changes outside the training.
    """

    network: nn.Module
    loss: Callable[..., Tensor] = field(default_factory=nn.CrossEntropyLoss)
    dataset: Callable[..., Any] = TensorDataset
    collate: Callable[[list[Any]], Any] | None = None
    callbacks: Callable[[Rows], Sequence[Any]] = lambda rows: ()
    close: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class Neighbours:
    """Two data sets that differ in one example.

    Args:
        rows: Tensors of the first.
        others: Tensors of the second.
        moves: Number of norm bounds by which the clipped sums may differ: 1 if an example is added or removed, 2 if one
            is replaced.
    """

    rows: Rows
    others: Rows
    moves: float = 1.0


def drawn(count: int = EXAMPLES, seed: int = 1) -> Rows:
    """Standard normal inputs; most labels are 0, so that gradients are aligned, and none is the last class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator)
    others = torch.randint(0, CLASSES - 1, (count,), generator=generator)
    return x, others * (torch.rand(count, generator=generator) < 0.3)


def extreme(size: float = 1000.0) -> Rows:
    """One example with large inputs, the only one of the last class."""
    x, _ = drawn(1, seed=5)
    return x * size, torch.tensor([CLASSES - 1])


def one_more_first() -> Neighbours:
    """The neighbour has one more example, which comes before all others."""
    return Neighbours(drawn(), join(extreme(), drawn()))


def one_more_last(size: float = 1000.0) -> Neighbours:
    """The neighbour has one more example, which comes after all others, so their places do not change."""
    return Neighbours(drawn(), join(drawn(), extreme(size)))


def one_replaced(row: int = 7, size: float = 1000.0, count: int = EXAMPLES) -> Neighbours:
    """The neighbour has a different example in one row; places and batch size are the same."""
    rows = drawn(count)
    others = tuple(value.clone() for value in rows)
    for value, new in zip(others, extreme(size), strict=True):
        value[row] = new[0]
    return Neighbours(rows, others, moves=2.0)


def bytes_appear() -> Neighbours:
    """All inputs lie in [0, 1), as images do; the neighbour has one more example, with entries up to 255."""
    x, y = drawn()
    x = (x - x.min()) / (x.max() - x.min() + 1e-3)
    return Neighbours((x, y), join((x, y), (x[:1] * 255, y[:1])))


def join(*parts: Rows) -> Rows:
    return tuple(torch.cat(values) for values in zip(*parts, strict=True))


class Apply(nn.Module):
    """A layer without parameters that applies a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def body(*before: nn.Module, after: Sequence[nn.Module] = (), bias: bool = True) -> nn.Sequential:
    """A small dense network with the given layers before it, and after its hidden layer."""
    hidden = [nn.Linear(FEATURES, 16, bias=bias), nn.ReLU(), *after]
    return nn.Sequential(*before, *hidden, nn.Linear(16, CLASSES, bias=bias))


def layered(*make: Callable[[], nn.Module]) -> Callable[[], Training]:
    """Trainings whose inputs pass through the layers made by ``make``."""
    return lambda: Training(body(*(one() for one in make), bias=False))


def applying(function: Callable[[Tensor], Tensor]) -> Callable[[], Training]:
    """Trainings whose inputs pass through a function."""
    return layered(lambda: Apply(function))


def under(make: Callable[[], Callable[..., Tensor]]) -> Callable[[], Training]:
    """Trainings with the loss made by ``make``."""
    return lambda: Training(body(), make())


@dataclass(frozen=True)
class Member:
    """A way in which examples affect each other, and its benign twin: similar code that treats each example alone.

    Args:
        name: What the code does.
        kind: Where the coupling is: network, loss, data, ...
        coupled: Makes the training in which an example reaches the gradients of others.
        benign: Makes the twin; None if a different member has the same one.
        pair: The neighbouring data sets.
        steps: Number of steps of a training.
        accepts: The accepted outcomes; see ``outcome``.
        one_sided: Whether the coupling may be detected on only one of the two data sets. A network or a loss is
            examined itself, but the effect of a data set or a collation depends on the data.
        seen: Whether ``unprotected`` shows the coupling.
        engine: The engine that ``"auto"`` chooses for the twin; None for any.
    """

    name: str
    kind: str
    coupled: Callable[[], Training]
    benign: Callable[[], Training] | None
    pair: Callable[[], Neighbours] = one_more_last
    steps: int = 3
    accepts: frozenset[str] = frozenset({"exact", "refused", "voided"})
    one_sided: bool = False
    seen: bool = True
    engine: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.name}"


class KeepsWeights(torch.optim.Optimizer):
    """Records the gradients that it receives, and leaves the weights unchanged."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(list(parameters), {"lr": 0.0})
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        values = [value for group in self.param_groups for value in group["params"]]
        grads = [torch.zeros_like(value) if value.grad is None else value.grad for value in values]
        self.seen.append(torch.cat([grad.flatten().double() for grad in grads]))


class SameDraws(Callback):
    """The same random numbers in step n of every training, so that neighbours have the same masks."""

    def on_train_step_begin(self, run: Any) -> None:
        seed_all(1000 + run.step)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@dataclass(frozen=True)
class Trained:
    """The result of a training.

    Args:
        sums: The noisy clipped sum of each step.
        weights: Parameters and buffers afterwards.
        attributes: Other values that network and loss hold, by path.
        epsilon: Epsilon of the ledger.
        released: Number of events on the ledger.
        error: The error that ended the training, or None.
        notes: Notes on the ledger, without those about reproducible streams.
        engine: Name of the engine, or None.
        explained: What ``explain_engine`` says.
    """

    sums: list[Tensor]
    weights: dict[str, Tensor]
    attributes: dict[str, Any]
    epsilon: float
    released: int
    error: Exception | None
    notes: tuple[str, ...]
    engine: str | None
    explained: str

    @property
    def ending(self) -> str:
        """``trained``, ``refused`` (nothing released), ``voided`` (epsilon is infinite) or ``failed``."""
        if math.isinf(self.epsilon):
            return "voided"
        if self.error is None:
            return "trained"
        return "failed" if self.released else "refused"

    def __str__(self) -> str:
        error = "" if self.error is None else f", {type(self.error).__name__}: {self.error}"[:300]
        reason = self.explained.splitlines()[0][:200]
        return f"{self.ending} after {self.released} releases, epsilon {self.epsilon:.3g}{error} [{reason}]"


def fit(make: Callable[[], Training], rows: Rows, *, steps: int = 3, engine: str = "auto", **options: Any) -> Trained:
    """Train with ``DPModel.fit`` and reproducible noise, on every row in each step."""
    seed_all(0)
    training = make()
    dataset = training.dataset(*rows)
    optimizer = KeepsWeights(training.network.parameters())
    noise = NoiseMechanismsFactory.create("Gaussian", initial_noise_multiplier=1.0, seed=7)
    model = DPModel(
        training.network,
        training.loss,
        optimizer,
        norm_bound=BOUND,
        noise_mech=noise,
        engine=engine,
        **options,
    )
    error = None
    try:
        loader = poisson_loader(dataset, batch_size=len(dataset), collate_fn=training.collate)
        with contextlib.redirect_stdout(io.StringIO()):
            model.fit(loader, epochs=steps, callbacks=[SameDraws(), *training.callbacks(rows)])
    except Exception as raised:
        error = raised
    finally:
        training.close()
    divisor = options.get("micro_batches") or len(dataset)
    explained = model.explain_engine()
    named = re.match(r"engine '(\w+)'", explained)
    return Trained(
        [grad * divisor for grad in optimizer.seen],
        {name: value.detach().clone() for name, value in training.network.state_dict().items()},
        attributes(training),
        model.privacy_spent(DELTA).epsilon,
        model.ledger.total,
        error,
        tuple(note for note in model.ledger.notes if "reproducible" not in note),
        named and named.group(1),
        explained,
    )


def attributes(training: Training) -> dict[str, Any]:
    """Tensors, arrays and floats in plain attributes of network and loss, by path.

    Integers are left out: they count calls, and there may be one call per example.
    """
    found: dict[str, Any] = {}
    owners = {f"network.{name}": module for name, module in training.network.named_modules()}
    for owner, held in {**owners, "loss": training.loss}.items():
        for name, value in getattr(held, "__dict__", {}).items():
            if not name.startswith("_"):
                _collect(f"{owner}.{name}", value, found)
    return found


def _collect(path: str, value: Any, found: dict[str, Any]) -> None:
    if isinstance(value, (Tensor, np.ndarray, float)):
        try:
            found[path] = value.detach().clone() if isinstance(value, Tensor) else copy.copy(value)
        except RuntimeError:
            found[path] = math.nan  # a tensor of a transform that has ended; equal to nothing, itself included
    elif isinstance(value, (list, tuple, dict)):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _collect(f"{path}[{key}]", part, found)


def ratios(one: Sequence[Tensor], other: Sequence[Tensor], moves: float = 1.0) -> list[float]:
    """How far the example moves the sum, relative to the accounted sensitivity, in each step that both have taken."""
    differences = (a - b for a, b in zip(one, other, strict=False))
    return [float(torch.nan_to_num(difference, nan=math.inf).norm()) / (moves * BOUND) for difference in differences]


def outcome(one: Trained, other: Trained, moves: float = 1.0, *, one_sided: bool = False) -> str:
    """The outcome of a pair of neighbouring trainings.

    Returns:
        ``exact``: both trained, and no step moved the sum by more than the accounted sensitivity. ``refused``: nothing
        was released. ``voided``: both ledgers state an infinite epsilon. ``noted``: the ledger says what it does not
        cover. Any other string describes a false claim, for example that the trainings end differently.
    """
    endings = {one.ending, other.ending}
    moved = max(ratios(one.sums, other.sums, moves), default=0.0)
    within = moved <= 1.0 + ROUNDING
    if endings in ({"refused"}, {"voided"}):
        return endings.pop()
    if endings == {"trained"}:
        if within and len(one.sums) == len(other.sums) and _equal(one.weights, other.weights):
            return "exact"
        if one.notes and other.notes:
            return "noted"
        left = "" if _equal(one.weights, other.weights) else ", and the values left in the network differ"
        return f"one example moves the sum by {moved:.3g} times the accounted sensitivity{left}"
    if one_sided and within and endings in ({"trained", "refused"}, {"trained", "voided"}):
        return "refused" if "refused" in endings else "voided"
    return f"the trainings end as {one.ending} and {other.ending}, moved by {moved:.3g}"


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def report(one: Trained, other: Trained, moves: float = 1.0) -> str:
    """Both trainings in words, for the message of a failed assertion."""
    moved = ", ".join(f"{ratio:.3g}" for ratio in ratios(one.sums, other.sums, moves))
    moves_of = f"moved by [{moved}] times the accounted sensitivity"
    return f"{moves_of}\n  one:   {one}\n  other: {other}\n  notes: {other.notes}"


def unprotected(make: Callable[[], Training], rows: Rows, *, steps: int = 3) -> list[Tensor]:
    """The clipped sums of a training without any protection: whole batches, and per-example gradients from hooks.

    It supports dense layers only. It shows the coupling that the law is about.
    """
    seed_all(0)
    training = make()
    dataset = training.dataset(*rows)
    callbacks = [SameDraws(), *training.callbacks(rows)]
    run = SimpleNamespace(step=0, epoch=0, loss=None, network=training.network.train(), model=SimpleNamespace())
    sums = []
    try:
        for step in range(steps):
            run.step, run.epoch = step, step + 1
            _tell(callbacks, "on_train_epoch_begin", run)
            _tell(callbacks, "on_train_step_begin", run)
            *inputs, y = (training.collate or default_collate)([dataset[row] for row in range(len(dataset))])
            gradients, run.loss = _gradients(training, inputs, y)
            norms = gradients.norm(dim=1, keepdim=True)
            sums.append(torch.nan_to_num(gradients * (BOUND / norms).clamp(max=1.0), 0.0, 0.0, 0.0).sum(0))
            _tell(callbacks, "on_train_step_end", run)
    finally:
        training.close()
    return sums


def _tell(callbacks: Sequence[Any], hook: str, run: Any) -> None:
    for callback in callbacks:
        getattr(callback, hook, lambda run: None)(run)


def _gradients(training: Training, inputs: list[Any], y: Any) -> tuple[Tensor, float]:
    """Gradients (B, P) of the dense layers in double precision, and the mean loss."""
    calls: list[dict[str, Tensor]] = []

    def keep(module: nn.Linear, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        call = {"input": inputs[0].detach(), "bias": torch.tensor(module.bias is not None)}
        if output.requires_grad:
            output.register_hook(lambda grad: call.update(grad=grad.detach()))
            calls.append(call)

    dense = [module for module in training.network.modules() if type(module) is nn.Linear]
    handles = [module.register_forward_hook(keep) for module in dense]
    try:
        loss = training.loss(training.network(*inputs), y)
        (loss.mean() * len(y)).backward()
        training.network.zero_grad()
    finally:
        for handle in handles:
            handle.remove()
    parts = [_of_dense(call) for call in calls if "grad" in call]
    return torch.cat(parts, dim=1), float(loss.detach().mean())


def _of_dense(call: dict[str, Tensor]) -> Tensor:
    size = call["grad"].shape[0]
    grad, inputs = (call[name].double().reshape(size, -1, call[name].shape[-1]) for name in ("grad", "input"))
    weight = torch.einsum("btj,bti->bji", grad, inputs).flatten(1)
    return torch.cat([weight, grad.sum(1)], dim=1) if call["bias"] else weight
