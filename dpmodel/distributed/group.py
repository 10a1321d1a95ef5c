"""The ranks of an initialised ``torch.distributed`` process group, and how a failure of one reaches all."""

from __future__ import annotations

import hashlib
import json
import pickle
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from dpmodel.distributed.ranks import ALONE, Ranks
from dpmodel.training.interrupt import SIGNALS
from mechanisms.engines.tally import Tally
from monitors.errors import DistributedError

if TYPE_CHECKING:
    from dpmodel.claims.claimed import ClaimedModel
    from mechanisms.engines.base import ClippedSum

T = TypeVar("T")

#: Facts that one meeting can carry.
_FACTS = 5

#: Bits of a digest that a float64 holds exactly.
_DIGEST_BITS = 48

_RESUME = "Start all ranks again; with a saved state, resume the training (--resume, or resume=True)"


@dataclass(frozen=True)
class _Failure:
    """Why a rank has left, and the violations of the claim that it knows."""

    text: str | None
    violations: tuple[str, ...] = ()


class GroupRanks(Ranks):
    """The ranks of the default process group.

    Every exchange begins with a header of a few numbers from each rank: whether it has failed, what it is about to
    exchange, and a digest of the values that must be equal. A rank that fails sends one more header, so that the others
    learn of it instead of waiting for its data.
    """

    def __init__(self) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._backends = _backends()
        own_device = "cpu" if "cpu" in self._backends else "cuda"
        self._device = torch.device(own_device) if own_device == "cpu" else torch.device("cuda", _current_gpu())
        self._model: ClaimedModel | None = None
        self._depth = 0
        self._over = False  # every rank knows of a failure, or contact is lost
        self._stated: dict[str, tuple[str, bool]] = {}

    @contextmanager
    def together(self, model: ClaimedModel | None = None) -> Iterator[None]:
        """Every rank leaves the block without an error, or all of them raise one."""
        outer = self._model
        if not self._depth:
            self._over, self._stated = False, {}
        self._depth += 1
        self._model = outer if model is None else model
        try:
            yield
            self.meet("the end")
        except BaseException as error:
            self._attend(error)
            raise
        finally:
            self._depth -= 1
            self._model = outer

    def same(self, name: str, value: str, *, shown: bool = True) -> None:
        """State a value that must be equal on all ranks; it is compared at the next ``meet``."""
        self._stated[name] = value, shown

    def meet(self, purpose: str, *facts: float) -> list[tuple[float, ...]]:
        """Wait for all ranks; return the facts of each."""
        with _uninterrupted():
            return self._meet(purpose, *facts)

    def share(self, value: T) -> T:
        """The value of rank 0."""
        with _uninterrupted():
            data = self._packed(value) if self.first else torch.empty(0, dtype=torch.uint8)
            sizes = self._meet("a value of rank 0", data.numel())
            buffer = data if self.first else torch.empty(int(sizes[0][0]), dtype=torch.uint8, device=self._device)
            with self._contact():
                dist.broadcast(buffer, 0)
        return value if self.first else self._unpacked(buffer)

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in order."""
        with _uninterrupted():
            data = self._packed(value)
            sizes = [int(row[0]) for row in self._meet("the values of all ranks", data.numel())]
            return [self._unpacked(part) for part in self._joined(data, sizes)]

    def once(self, function: Callable[[], T]) -> T:
        """The result of ``function``, which rank 0 calls, on every rank."""
        return self.share(function() if self.first else None)  # type: ignore[return-value]

    def spread(self, tensors: Iterable[Tensor]) -> None:
        """Give ``tensors`` the values that they have on rank 0; equal ones are not written to."""
        with _uninterrupted():
            self._meet("tensors of rank 0")
            for tensor in tensors:
                found = self._broadcast(tensor.detach().clone())
                if not self.first and not torch.equal(found, tensor):
                    with torch.no_grad():
                        tensor.copy_(found)

    def whole(self, summed: ClippedSum, examples: int) -> ClippedSum:
        """The clipped sum of the logical batch; the sum of gradients is on rank 0 alone."""
        self.same("the norm bound", repr(summed.norm_bound))
        lost = summed.loss * examples if examples else 0.0
        with _uninterrupted():
            parts = self._meet("the clipped sums", examples, lost, summed.rejected, summed.norms.shape[0])
            norms = torch.cat(self._joined(summed.norms, [int(part[3]) for part in parts]))
            self._reduce(summed.flat_grad)
        drawn, loss, rejected, _ = (sum(column) for column in zip(*(part[:4] for part in parts), strict=True))
        return replace(summed, norms=norms, tally=Tally.of(loss / drawn if drawn else float("nan"), int(rejected)))

    def released(self, release: Callable[[], Tensor], summed: ClippedSum) -> Tensor:
        """The noisy sum of rank 0 on all ranks."""
        noisy = summed.flat_grad
        if self.first:
            noisy = release().to(noisy).contiguous()
            if noisy.shape != summed.flat_grad.shape:
                raise DistributedError(f"the noise mechanism returned a release of shape {tuple(noisy.shape)}")
        with _uninterrupted():
            self._meet("the release")
            return self._broadcast(noisy)

    def _meet(self, purpose: str, *facts: float) -> list[tuple[float, ...]]:
        stated, self._stated = self._stated, {}
        digest = _number(json.dumps(sorted(stated.items())))
        rows = self._headers(0.0, _number(purpose), digest, *facts)
        if any(row[0] for row in rows):
            self._over = True
            raise self._heard(self._all(_Failure(None)))
        if len({row[1] for row in rows}) > 1:
            self._over = True
            places = ", ".join(f"rank {rank} at {place!r}" for rank, place in enumerate(self._all(purpose)))
            raise DistributedError(f"the ranks are at different places of the training: {places}. {_RESUME}")
        if len({row[2] for row in rows}) > 1:
            self._over = True
            raise DistributedError(_differences(self._all(stated)))
        return [row[3:] for row in rows]

    def _attend(self, error: BaseException) -> None:
        """Let the other ranks know that this one has failed, unless they do."""
        if self._over:
            return
        self._over = True
        violations = () if self._model is None else tuple(self._model.ledger.violations)
        with suppress(DistributedError), _uninterrupted():
            self._headers(1.0)
            self._heard(self._all(_Failure(f"{type(error).__name__}: {error}", violations)))

    def _heard(self, failures: list[_Failure]) -> DistributedError:
        """The error that says which ranks have failed; their violations are recorded here too."""
        if self._model is not None:
            known = set(self._model.ledger.violations)
            for reason in dict.fromkeys(reason for failure in failures for reason in failure.violations):
                if reason not in known:
                    self._model.claim.violate(reason)
        texts = [f"rank {rank} failed: {one.text}" for rank, one in enumerate(failures) if one.text is not None]
        return DistributedError("; ".join(texts))

    def _headers(self, *numbers: float) -> list[tuple[float, ...]]:
        own = torch.zeros(3 + _FACTS, dtype=torch.float64)
        own[: len(numbers)] = torch.tensor(numbers, dtype=torch.float64)
        own = own.to(self._device)
        rows = [torch.empty_like(own) for _ in range(self.size)]
        with self._contact():
            dist.all_gather(rows, own)
            return [tuple(row) for row in torch.stack(rows).tolist()]

    def _all(self, value: T) -> list[T]:
        """``gather`` without a meeting: all ranks are known to be here."""
        data = self._packed(value)
        sizes = [int(row[0]) for row in self._headers(float(data.numel()))]
        return [self._unpacked(part) for part in self._joined(data, sizes)]

    def _joined(self, own: Tensor, sizes: list[int]) -> list[Tensor]:
        """The tensors of all ranks, which differ in the first dimension only."""
        if not max(sizes):
            return [own for _ in sizes]
        there = own if self._reaches(own) else own.to(self._device)
        padded = there.new_zeros(max(sizes), *own.shape[1:])
        padded[: own.shape[0]] = there
        parts = [torch.empty_like(padded) for _ in sizes]
        with self._contact():
            dist.all_gather(parts, padded)
        return [part[:size].to(own.device) for part, size in zip(parts, sizes, strict=True)]

    def _reduce(self, total: Tensor) -> None:
        there = total if self._reaches(total) else total.to(self._device)
        with self._contact():
            dist.reduce(there, 0)
        if not self.first:
            total.zero_()  # a reduction may leave partial sums there, which have no noise
        elif there is not total:
            total.copy_(there)

    def _broadcast(self, tensor: Tensor) -> Tensor:
        there = tensor.contiguous() if self._reaches(tensor) else tensor.to(self._device)
        with self._contact():
            dist.broadcast(there, 0)
        return there if there.device == tensor.device else tensor.copy_(there)

    def _reaches(self, tensor: Tensor) -> bool:
        """Whether the group exchanges tensors on this device directly; Gloo does so on the CPU only."""
        return tensor.device.type == self._device.type or self._backends.get(tensor.device.type) == "nccl"

    def _packed(self, value: Any) -> Tensor:
        return torch.frombuffer(bytearray(pickle.dumps(value)), dtype=torch.uint8).to(self._device)

    def _unpacked(self, data: Tensor) -> Any:
        return pickle.loads(data.cpu().numpy().tobytes())

    @contextmanager
    def _contact(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            self._over = True
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise DistributedError(
                f"rank {self.rank} of {self.size} has lost contact with another rank, which was killed, lost its "
                f"connection or was too slow ({reason}). No release was made with less noise. {_RESUME}"
            ) from error


#: Identity, rank and size of the default group -> its ranks. Not the group: it must end before Python does.
_KNOWN: dict[tuple[int, int, int], GroupRanks] = {}


def current_ranks() -> Ranks:
    """The ranks of the initialised process group; ``ALONE`` if there is none, or if it has one process.

    Example:
        >>> current_ranks().size
        1
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
        return ALONE
    key = id(dist.group.WORLD), dist.get_rank(), dist.get_world_size()
    if key not in _KNOWN:
        _KNOWN.clear()
        _KNOWN[key] = GroupRanks()
    return _KNOWN[key]


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Handle signals after the block: an interrupted exchange would leave the other ranks at a different one."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[tuple[int, FrameType | None]] = []
    before = {number: signal.getsignal(number) for number in SIGNALS}
    held = {number: handler for number, handler in before.items() if callable(handler)}
    for number in held:
        signal.signal(number, lambda signum, frame: waiting.append((signum, frame)))
    try:
        yield
    finally:
        for number, handler in held.items():
            signal.signal(number, handler)
        for received, frame in waiting:
            held[signal.Signals(received)](received, frame)


def _backends() -> dict[str, str]:
    """Device type to backend."""
    config = dist.distributed_c10d.get_backend_config(dist.group.WORLD)
    pairs = (part.partition(":") for part in str(config).split(","))  # "cpu:gloo,cuda:nccl"
    return {device: backend for device, _, backend in pairs}


def _current_gpu() -> int:
    return torch.cuda.current_device()


def _number(text: str) -> float:
    """A digest of ``text`` that a float64 holds exactly."""
    return float(int.from_bytes(hashlib.sha256(text.encode()).digest()[: _DIGEST_BITS // 8], "big"))


def _differences(stated: list[dict[str, tuple[str, bool]]]) -> str:
    """Which values differ between the ranks, in words."""
    names = dict.fromkeys(name for one in stated for name in one)
    texts = []
    for name in names:
        values = [one.get(name, ("not stated", True)) for one in stated]
        if len(set(values)) == 1:
            continue
        other = next(rank for rank, value in enumerate(values) if value != values[0])
        shown = values[0][1] and values[other][1]
        texts.append(
            f"{name} ({values[0][0]} on rank 0, {values[other][0]} on rank {other})"
            if shown
            else f"{name} (rank {other})"
        )
    return (
        f"rank 0 and other ranks differ in {'; '.join(texts)}. Start every rank with the same script, arguments, files "
        "and versions, with the whole data set in the same order"
    )
