"""Checkpoints: one file with weights, optimizer state and the position of the training; never pickle."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dpmodel.claims.weights import read_late
from dpmodel.saving.form import restoring
from dpmodel.saving.nest import pack_nest, unpack_nest
from dpmodel.saving.optimizer_state import fitting_state
from dpmodel.saving.tensor_file import read_tensor_file, read_values, write_tensor_file
from monitors import checks
from monitors.errors import CheckpointError
from monitors.untrusted import open_untrusted

if TYPE_CHECKING:
    from dpmodel.model import DPModel
    from dpmodel.training.run import Run

NETWORK_PREFIX = "network."
OPTIMIZER_PREFIX = "optimizer."
MAX_DIFFERENCES = 5

#: First bytes of what torch.save writes: a zip archive, or in older versions a bare pickle.
_BEGINS_OF_TORCH_FILES = (b"PK\x03\x04", b"\x80")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a checkpoint states besides its tensors.

    Args:
        architecture: Fingerprint of the names, shapes and types of the network's tensors.
        network: Name of the network's class.
        step: Steps done over the model's life.
        epoch: Epoch of the training that saved it; None outside a training.
        norm_bound: Clipping bound that the next step would use; None for a bare network.
        ledger_digest: Digest of the ledger at that moment. The ledger itself is kept outside checkpoints: what was
            spent stays spent, whichever checkpoint survives.
        ledger_total: Number of releases on that ledger.
        heads: Heads of the release journals at that moment; they state to which training the file belongs, and to
            which moment of it.
        extra: Further JSON values that the caller saved.
    """

    architecture: str
    network: str
    step: int = 0
    epoch: int | None = None
    norm_bound: float | None = None
    ledger_digest: str | None = None
    ledger_total: int = 0
    heads: Sequence[str] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        checks.non_negative_int(step=self.step, epoch=self.epoch or 0, ledger_total=self.ledger_total)
        if self.norm_bound is not None:
            checks.positive(norm_bound=self.norm_bound)
        texts = self.architecture, self.network, self.ledger_digest or ""
        if not all(isinstance(text, str) for text in texts) or not isinstance(self.extra, Mapping):
            raise TypeError(f"architecture, network and ledger_digest must be text, got {checks.shown(texts)}")
        if not isinstance(self.heads, (list, tuple)) or not all(isinstance(head, str) for head in self.heads):
            raise TypeError(f"heads must be a list of texts, got {checks.shown(self.heads)}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and found complete.

    Args:
        path: Where it was read from, for messages.
        info: What it states besides its tensors.
        weights: The network's tensors by name.
        optimizer: The optimizer's class, shapes and ``state_dict``; None if none was saved.
    """

    path: str
    info: CheckpointInfo
    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None = None

    def check(self, network: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Refuse a network or optimizer that differs from those it was saved from.

        Raises:
            CheckpointError: Says what differs, or that there is no optimizer state.
        """
        _check_weights(network, self.weights, self.path)
        if optimizer is not None:
            if self.optimizer is None:
                raise CheckpointError(f"{self.path} holds no optimizer state; it was saved from a bare network")
            _check_optimizer(optimizer, self.optimizer, self.path)

    def restore(self, network: nn.Module, optimizer: Optimizer | None = None) -> None:
        """Restore weights and optimizer state; everything is checked before anything changes.

        Raises:
            CheckpointError: The checkpoint belongs to a different network or optimizer, or holds no optimizer state.
        """
        self.check(network, optimizer)
        with restoring(self.path):
            network.load_state_dict(self.weights)
            if optimizer is not None and self.optimizer is not None:
                optimizer.load_state_dict(fitting_state(optimizer, self.optimizer["state"], self.path))


def save_checkpoint(
    path: str | os.PathLike[str], source: Run | DPModel | nn.Module, *, extra: Mapping[str, Any] | None = None
) -> None:
    """Save weights, optimizer state, step, epoch, bound and the ledger's digest in one file, atomically.

    Args:
        path: The file; an existing one is replaced as a whole. Missing folders are created.
        source: A run, a ``DPModel``, or a bare network (weights only).
        extra: Further JSON values to keep.

    Raises:
        CheckpointError: Something in the state is neither a tensor nor a JSON value.

    Example:
        >>> import tempfile, pathlib
        >>> file = pathlib.Path(tempfile.mkdtemp()) / "linear.ckpt"
        >>> network = nn.Linear(2, 1)
        >>> save_checkpoint(file, network)
        >>> sorted(load_checkpoint(file))
        ['bias', 'weight']
    """
    write_tensor_file(path, *checkpoint_content(source, extra))


def checkpoint_content(
    source: Run | DPModel | nn.Module, extra: Mapping[str, Any] | None = None, *, with_digest: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and JSON values of a checkpoint of ``source``, for files that hold more.

    Args:
        source: A run, a ``DPModel``, or a bare network.
        extra: Further JSON values to keep.
        with_digest: Whether to state the ledger's digest; its cost grows with the ledger.

    Raises:
        CheckpointError: Something in the state is neither a tensor nor a JSON value.
    """
    network, info, optimizer = _state_of(source, with_digest)
    tensors = {NETWORK_PREFIX + name: tensor for name, tensor in _tensors_of(network).items()}
    packed: dict[str, Any] | None = None
    if optimizer is not None:
        state = pack_nest(optimizer.state_dict(), OPTIMIZER_PREFIX + "state", tensors, "the optimizer's state")
        packed = {"class": type(optimizer).__name__, "shapes": _shapes(optimizer), "state": state}
    described = dataclasses.replace(info, extra=dict(extra or {}))
    return tensors, {"info": dataclasses.asdict(described), "optimizer": packed}


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint and check that it is complete.

    Raises:
        CheckpointError: Missing, truncated, changed, or of a different kind; the path is named.
    """
    try:
        content = read_tensor_file(path)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{_remedy(path)}") from error
    return checkpoint_in(path, *content)


def read_info(path: str | os.PathLike[str]) -> CheckpointInfo:
    """What the checkpoint at ``path`` states besides its tensors, which are neither read nor checked.

    Raises:
        CheckpointError: The file is missing, damaged, or of a different kind; the path is named.
    """
    return _info_in(path, read_values(path))


def _info_in(path: str | os.PathLike[str], values: Mapping[str, Any]) -> CheckpointInfo:
    try:
        return CheckpointInfo(**values["info"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} was written by a different version of dpmodel: {error}") from error


def checkpoint_in(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> Checkpoint:
    """The checkpoint among the contents of the file at ``path``.

    Raises:
        CheckpointError: There is none.
    """
    weights = {name[len(NETWORK_PREFIX) :]: item for name, item in tensors.items() if name.startswith(NETWORK_PREFIX)}
    try:
        packed = values["optimizer"]
        optimizer = None if packed is None else {**packed, "state": unpack_nest(packed["state"], tensors)}
        if optimizer is not None and not {"class", "shapes", "state"} <= optimizer.keys():
            raise ValueError("the optimizer's class, shapes or state is missing")
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} was written by a different version of dpmodel: {error}") from error
    return Checkpoint(str(path), _info_in(path, values), weights, optimizer)


def load_weights(network: nn.Module, path: str | os.PathLike[str]) -> CheckpointInfo:
    """Load the weights of the checkpoint at ``path`` into ``network``.

    Returns:
        What the checkpoint states besides its tensors.

    Raises:
        CheckpointError: The file is damaged or belongs to a different network (says what differs); nothing is changed.
    """
    checkpoint = read_checkpoint(path)
    checkpoint.restore(network)
    return checkpoint.info


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """The network's tensors by name, as MindSpore's function of that name returns them.

    Args:
        path: A file of ``save_checkpoint`` or ``ModelCheckpoint``. For a file of ``torch.save``, use
            ``torch.load(path, weights_only=True)``.

    Raises:
        CheckpointError: The file is missing or damaged.
    """
    return read_checkpoint(path).weights


def load_param_into_net(
    network: nn.Module, parameter_dict: Mapping[str, Tensor], strict_load: bool = True
) -> list[str]:
    """Load tensors by name into ``network``, under MindSpore's name.

    Args:
        network: Receives the tensors.
        parameter_dict: Name to tensor, such as ``load_checkpoint`` gives.
        strict_load: True: all names, shapes and types must match. False (MindSpore's default): only matching tensors
            are loaded, as for a network with a new head.

    Returns:
        Names of the network's tensors that were not loaded; empty with ``strict_load``.

    Raises:
        CheckpointError: The names, shapes or types are not those of the network, or without ``strict_load`` no
            tensor matches; nothing is changed.

    Example:
        >>> body, head = nn.Linear(2, 3), nn.Linear(3, 5)
        >>> load_param_into_net(nn.Sequential(body, head), nn.Sequential(body, nn.Linear(3, 9)).state_dict(), False)
        ['1.weight', '1.bias']
    """
    if strict_load:
        try:
            _check_weights(network, parameter_dict, "parameter_dict")
        except CheckpointError as error:
            raise CheckpointError(f"{error}. To load what fits: strict_load=False") from error
        network.load_state_dict(dict(parameter_dict))
        return []
    own = _tensors_of(network)
    fitting = {name: item for name, item in parameter_dict.items() if name in own and _alike(own[name], item)}
    if not fitting:
        raise CheckpointError(
            f"none of the {len(parameter_dict)} tensors in parameter_dict ({_some(parameter_dict)}) fits one of "
            f"{type(network).__name__} ({_some(own)}) by name, shape and type"
        )
    tied = _untied(own, fitting)
    if tied:
        raise CheckpointError(f"parameter_dict does not belong to this {type(network).__name__}: {'; '.join(tied)}")
    network.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def architecture_fingerprint(network: nn.Module) -> str:
    """SHA-256, as hex, over the names, shapes and types of all tensors of ``network``.

    Example:
        >>> architecture_fingerprint(nn.Linear(2, 1)) == architecture_fingerprint(nn.Linear(2, 2))
        False
    """
    described = {name: [list(item.shape), str(item.dtype)] for name, item in _tensors_of(network).items()}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _state_of(source: Any, with_digest: bool) -> tuple[nn.Module, CheckpointInfo, Optimizer | None]:
    if isinstance(source, nn.Module):
        read_late(source)
        return source, CheckpointInfo(architecture_fingerprint(source), type(source).__name__), None
    model = getattr(source, "model", source)
    try:
        read_late(model.network)
        info = CheckpointInfo(
            architecture=architecture_fingerprint(model.network),
            network=type(model.network).__name__,
            step=model.steps_done if source is model else source.step,
            epoch=None if source is model else source.epoch,
            norm_bound=model.clip_mech.norm_bound,
            ledger_digest=model.ledger.digest() if with_digest else None,
            ledger_total=model.ledger.total,
            heads=getattr(source, "heads", ()),
        )
        return model.network, info, model.optimizer
    except AttributeError as error:
        raise CheckpointError(
            f"a checkpoint is saved from a run, a DPModel or a network, got {source!r}: {error}"
        ) from error


def _tensors_of(network: nn.Module) -> dict[str, Tensor]:
    state = network.state_dict()
    strange = [name for name, value in state.items() if not isinstance(value, Tensor)]
    if strange:
        raise CheckpointError(f"the network's state holds {strange[0]!r}, which is not a tensor and cannot be saved")
    return state


def _check_weights(network: nn.Module, weights: Mapping[str, Tensor], source: str) -> None:
    own = _tensors_of(network)
    differences = [f"{name} is not in the checkpoint" for name in own if name not in weights]
    differences += [f"{name} is not in the network" for name in weights if name not in own]
    for name in own.keys() & weights.keys():
        ours, theirs = own[name], weights[name]
        if not _alike(ours, theirs):
            differences.append(
                f"{name} is {_described(theirs)} in the checkpoint and {_described(ours)} in the network"
            )
    differences += _untied(own, weights)
    if differences:
        more = f"; and {len(differences) - MAX_DIFFERENCES} more" if len(differences) > MAX_DIFFERENCES else ""
        listing = "; ".join(sorted(differences)[:MAX_DIFFERENCES])
        raise CheckpointError(f"{source} does not belong to this {type(network).__name__}: {listing}{more}")


def _check_optimizer(optimizer: Optimizer, values: Mapping[str, Any], path: str) -> None:
    found, stated = type(optimizer).__name__, values["class"]
    if found != stated:
        raise CheckpointError(
            f"the checkpoint holds the state of the optimizer {checks.shortened(str(stated))}, the model uses {found}"
        )
    if _shapes(optimizer) != values["shapes"]:
        raise CheckpointError(
            f"the checkpoint's optimizer updates parameters of shapes {checks.shown(values['shapes'])}, "
            f"the model's {_shapes(optimizer)}"
        )
    fitting_state(optimizer, values["state"], path)


def _shapes(optimizer: Optimizer) -> list[list[list[int]]]:
    return [[list(parameter.shape) for parameter in group["params"]] for group in optimizer.param_groups]


def _alike(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and ours.dtype == theirs.dtype


def _untied(own: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> list[str]:
    # Two names of one tensor cannot have two values; the later one would silently win.
    first: dict[tuple[int, Any], str] = {}
    found = []
    for name, tensor in own.items():
        known = first.setdefault((tensor.data_ptr(), tensor.shape), name) if tensor.numel() else name
        if known != name and {known, name} <= weights.keys() and not torch.equal(weights[known], weights[name]):
            found.append(f"{known} and {name} are tied in the network and differ in the checkpoint")
    return found


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {tensor.dtype}"


def _some(names: Iterable[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:MAX_DIFFERENCES]) + (", ..." if len(listed) > MAX_DIFFERENCES else "")


def _remedy(path: str | os.PathLike[str]) -> str:
    """What to do with a foreign file, as far as its first bytes show."""
    try:
        with open_untrusted(path) as stream:
            begin = stream.read(4)
    except OSError:
        return ""
    if not begin.startswith(_BEGINS_OF_TORCH_FILES):
        return ". A safetensors file of save_checkpoint or ModelCheckpoint is expected"
    return (
        ". It looks like a file of torch.save, but a safetensors file of save_checkpoint or ModelCheckpoint is "
        f"expected. Weights from torch: network.load_state_dict(torch.load({os.fspath(path)!r}, weights_only=True))"
    )
