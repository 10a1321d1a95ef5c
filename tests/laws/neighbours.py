"""Neighbouring trainings through the public ``fit``: what one example moves, beside what the ledger accounts for.

Two data sets that differ in one example are trained on with one noise stream, every row in every step, and an optimizer
that keeps the weights where they are. The noise cancels, so that the difference of two released gradients is the
difference of the two clipped sums.
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
    """What a user brings to a training; made anew for each one.

    Args:
        network: The network.
        loss: ``loss(outputs, targets)``.
        dataset: Makes the data set of the rows.
        collate: As in ``DataLoader``.
        callbacks: Makes the callbacks of the rows: some callbacks hold the data.
        close: Called afterwards, to undo what reaches beyond the training.
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
        rows: Tensors of the one.
        others: Tensors of the other.
        moves: Norm bounds by which the clipped sum may differ: 1 where an example was added or removed, 2 where one
            took the place of another.
    """

    rows: Rows
    others: Rows
    moves: float = 1.0


def drawn(count: int = EXAMPLES, seed: int = 1) -> Rows:
    """Standard normal inputs; most labels are 0, so that gradients point one way, and none is of the last class."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, FEATURES, generator=generator)
    others = torch.randint(0, CLASSES - 1, (count,), generator=generator)
    return x, others * (torch.rand(count, generator=generator) < 0.3)


def extreme(size: float = 1000.0) -> Rows:
    """One example of large inputs, the only one of the last class."""
    x, _ = drawn(1, seed=5)
    return x * size, torch.tensor([CLASSES - 1])


def one_more_first() -> Neighbours:
    """The neighbour has one more example, which is read before all others."""
    return Neighbours(drawn(), join(extreme(), drawn()))


def one_more_last(size: float = 1000.0) -> Neighbours:
    """The neighbour has one more example, which is read after all others: their places do not change."""
    return Neighbours(drawn(), join(drawn(), extreme(size)))


def one_replaced(row: int = 7, size: float = 1000.0, count: int = EXAMPLES) -> Neighbours:
    """An example of the neighbour is another one; places and the size of the batch stay."""
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
    """A layer without parameters, from a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def body(*before: nn.Module, after: Sequence[nn.Module] = (), bias: bool = True) -> nn.Sequential:
    """A small dense network with layers of the user's before it, and after its hidden layer."""
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
    """A way to tie examples together, and its benign twin: code of the same shape that treats each by itself.

    Args:
        name: What it does.
        kind: Its kind.
        coupled: Makes the training in which an example reaches the gradients of others.
        benign: Makes the twin; None where there is none of its own.
        pair: The neighbouring data sets.
        steps: Steps of a training.
        accepts: What may become of it; see ``outcome``.
        one_sided: Whether it may be found on one of the two data sets alone. A network or a loss is found by what it
            is, but what a data set or a collation does shows in the data only.
        seen: Whether ``unprotected`` shows the coupling.
        engine: The engine that ``"auto"`` takes for the twin; None where that is left open.
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
    """Records the gradients that it is given and moves nothing."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(list(parameters), {"lr": 0.0})
        self.seen: list[Tensor] = []

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        values = [value for group in self.param_groups for value in group["params"]]
        grads = [torch.zeros_like(value) if value.grad is None else value.grad for value in values]
        self.seen.append(torch.cat([grad.flatten().double() for grad in grads]))


class SameDraws(Callback):
    """The same randomness in step n of every training, so that masks do not differ between neighbours."""

    def on_train_step_begin(self, run: Any) -> None:
        seed_all(1000 + run.step)


def seed_all(seed: int) -> None:
    torch.manual_seed(seed)
    np.random.seed(seed)
    random.seed(seed)


@dataclass(frozen=True)
class Trained:
    """What became of a training.

    Args:
        sums: The clipped sum with its noise, of each step.
        weights: Parameters and buffers afterwards.
        attributes: What network and loss hold beside them, by its path.
        epsilon: Of its ledger.
        released: Events on its ledger.
        error: What it ended with, or None.
        notes: Statements on the ledger beside those of reproducible streams.
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
        """``trained``, ``refused`` (nothing released), ``voided`` (epsilon is infinite) or ``broken off``."""
        if math.isinf(self.epsilon):
            return "voided"
        if self.error is None:
            return "trained"
        return "broken off" if self.released else "refused"

    def __str__(self) -> str:
        error = "" if self.error is None else f", {type(self.error).__name__}: {self.error}"[:300]
        reason = self.explained.splitlines()[0][:200]
        return f"{self.ending} after {self.released} releases, epsilon {self.epsilon:.3g}{error} [{reason}]"


def fit(make: Callable[[], Training], rows: Rows, *, steps: int = 3, engine: str = "auto", **options: Any) -> Trained:
    """Train by ``DPModel.fit`` with reproducible noise, on every row in each step."""
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
    """What network and loss hold in plain attributes: tensors, arrays and numbers with a fraction, by their path.

    Whole numbers count calls, of which there may be one for each example.
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
    """What the one example moves over what is accounted for, of each step that both have taken."""
    differences = (a - b for a, b in zip(one, other, strict=False))
    return [float(torch.nan_to_num(difference, nan=math.inf).norm()) / (moves * BOUND) for difference in differences]


def outcome(one: Trained, other: Trained, moves: float = 1.0, *, one_sided: bool = False) -> str:
    """What became of a pair of neighbouring trainings.

    Returns:
        ``exact``: both trained, and no step moved by more than is accounted for. ``refused``: nothing was released.
        ``voided``: both ledgers say that epsilon is infinite. ``noted``: the ledger says what it does not cover.
        Anything else is a claim that is not true, in words: also that the endings tell the data sets apart.
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
        left = "" if _equal(one.weights, other.weights) else ", and what is left in the network differs"
        return f"one example moves the sum by {moved:.3g} times what is accounted for{left}"
    if one_sided and within and endings in ({"trained", "refused"}, {"trained", "voided"}):
        return "refused" if "refused" in endings else "voided"
    return f"the endings tell the data sets apart: {one.ending} and {other.ending}, moved by {moved:.3g}"


def _equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def report(one: Trained, other: Trained, moves: float = 1.0) -> str:
    """Both trainings in words, for the message of a failed assertion."""
    moved = ", ".join(f"{ratio:.3g}" for ratio in ratios(one.sums, other.sums, moves))
    return f"moved by [{moved}] of what is accounted for\n  one:   {one}\n  other: {other}\n  notes: {other.notes}"


def unprotected(make: Callable[[], Training], rows: Rows, *, steps: int = 3) -> list[Tensor]:
    """The clipped sums of a training that trusts the network: whole batches, and per-example gradients by hooks.

    It knows dense layers only. What it shows is the coupling that the law is about, with no protection at all.
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
