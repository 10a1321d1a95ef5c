"""The values that tensors had at one moment, kept so that a later change of any kind is found."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

#: Tensors of at most so many bytes in all are compared in full each time.
COMPARED_BYTES = 2**18

#: Tensors of at most so many bytes in all are copied, so that any change can be judged by value, and undone.
COPIED_BYTES = 2**28

#: Of each tensor in larger sets a secret stretch of so many entries, or of this share, is compared each time.
SAMPLED_ENTRIES = 1024
SAMPLED_SHARE = 1 / 256

#: Tensors of more entries are projected instead of hashed byte by byte, so many entries at a time.
PROJECTED_ENTRIES = 2**18

_Group = tuple[torch.device, torch.dtype]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class _Kept:
    """One tensor: the object itself, its version, the stretch that is compared, and its copy if there is one."""

    tensor: Tensor
    version: int
    start: int
    length: int
    copy: Tensor | None


class Snapshot:
    """What named tensors held when it was taken.

    A write that goes through torch raises a tensor's version; one through ``.data``, a NumPy view or a fused kernel
    leaves nothing but the values. Small sets of tensors are compared in full. Of larger ones a stretch of each tensor,
    at a place drawn secretly for each snapshot, is compared: a write to the whole of a tensor is always found, one to a
    few entries when the next thorough comparison is made.

    Args:
        tensors: Name to tensor. Those without a strided layout are known by object and version only.
        reused: An earlier snapshot of the same tensors, whose memory is taken over; it is of no use afterwards.
        copied: Whether to copy what is too large to be compared in full each time.

    Example:
        >>> weight = torch.zeros(3)
        >>> snapshot = Snapshot({"weight": weight})
        >>> weight.numpy()[1] = 1.0
        >>> snapshot.changed({"weight": weight})
        ['weight']
        >>> snapshot.restore(["weight"]), weight.tolist()
        (True, [0.0, 0.0, 0.0])
    """

    def __init__(self, tensors: Mapping[str, Tensor], reused: Snapshot | None = None, *, copied: bool = True) -> None:
        held = sum(value.numel() * value.element_size() for value in tensors.values() if _readable(value))
        self.compared_in_full = held <= COMPARED_BYTES
        #: Whether any change can be undone.
        self.copied = self.compared_in_full or (copied and held <= COPIED_BYTES)
        separate = self.copied and not self.compared_in_full
        memory = {} if reused is None or not separate else {name: reused._copy_of(name) for name in tensors}
        copies = {name: _copied(value, memory.get(name)) for name, value in tensors.items() if separate}
        self._kept = {
            name: _Kept(value, value._version, *self._place(value), copies.get(name)) for name, value in tensors.items()
        }
        self._groups: dict[_Group, list[str]] = {}
        for name, kept in self._kept.items():
            if kept.length:
                self._groups.setdefault(_group(kept.tensor), []).append(name)
        self._stretches = self._gathered()
        self._digest: bytes | None = None

    def keep_digest(self) -> bytes:
        """Let the next thorough comparison see every entry, also of tensors that are too large to be copied.

        Returns:
            The digest.
        """
        self._digest = digest({name: kept.tensor for name, kept in self._kept.items()})
        return self._digest

    def changed(self, tensors: Mapping[str, Tensor], *, thorough: bool = False) -> list[str]:
        """Names of tensors that are others, or hold other values, than when the snapshot was taken; empty for none.

        Args:
            tensors: What the names stand for now.
            thorough: Compare every entry that is known.
        """
        replaced = [name for name, kept in self._kept.items() if tensors.get(name) is not kept.tensor]
        added = [name for name in tensors if name not in self._kept]
        written = [name for name, kept in self._kept.items() if kept.tensor._version != kept.version]
        if not (thorough or replaced or added or written) and self._stretches_equal():
            return []
        others = {*replaced, *added}
        differing = [name for name in self._kept if name not in others and not self._as_kept(name)]
        if not (others or differing):
            differing = self._by_digest(written, thorough)
        return [*replaced, *added, *differing]

    def restore(self, names: Iterable[str]) -> bool:
        """Write the values of ``names`` back; False, and nothing is written, if one of them was not copied."""
        copies = {name: self._copy_of(name) for name in names}
        if any(copy is None for copy in copies.values()):
            return False
        with torch.no_grad():
            for name, copy in copies.items():
                if copy is not None:
                    self._kept[name].tensor.copy_(copy)
        return True

    def tensor(self, name: str) -> Tensor | None:
        """The tensor that had this name when the snapshot was taken."""
        return self._kept[name].tensor if name in self._kept else None

    def _by_digest(self, written: list[str], thorough: bool) -> list[str]:
        # Without a copy a version that rose says that something was written, and only a digest can say that it was
        # what was there before.
        if self.copied:
            return []
        doubtful = [name for name in written if self._kept[name].copy is None and _readable(self._kept[name].tensor)]
        if self._digest is None:
            return doubtful
        if (thorough or doubtful) and digest({name: kept.tensor for name, kept in self._kept.items()}) != self._digest:
            return doubtful or list(self._kept)
        return []

    def _as_kept(self, name: str) -> bool:
        kept = self._kept[name]
        if not _readable(kept.tensor):
            return kept.tensor._version == kept.version
        if kept.copy is not None:
            return _same(kept.tensor, kept.copy)
        return not kept.length or _same(self._stretch_now(kept), self._stretch_kept(name))

    def _copy_of(self, name: str) -> Tensor | None:
        kept = self._kept.get(name)
        if kept is None or kept.copy is not None or not self.compared_in_full or not _readable(kept.tensor):
            return None if kept is None else kept.copy
        if not kept.length:
            return kept.tensor.detach().clone()
        return _shaped(self._stretch_kept(name), kept.tensor)

    def _place(self, value: Tensor) -> tuple[int, int]:
        size = value.numel()
        if not _readable(value):
            return 0, 0
        if self.compared_in_full:
            return 0, size
        length = min(size, max(SAMPLED_ENTRIES, int(size * SAMPLED_SHARE)))
        return (secrets.randbelow(size - length + 1) if size else 0), length

    def _gathered(self) -> dict[_Group, Tensor]:
        """The stretches of all tensors of one device and type as one tensor: one comparison, and one wait for a GPU."""
        with torch.no_grad():
            return {
                group: torch.cat([self._stretch_now(self._kept[name]) for name in names])
                for group, names in self._groups.items()
            }

    def _stretches_equal(self) -> bool:
        now = self._gathered()
        return all(_same(kept, now[group]) for group, kept in self._stretches.items())

    def _stretch_now(self, kept: _Kept) -> Tensor:
        return _flat(kept.tensor)[kept.start : kept.start + kept.length]

    def _stretch_kept(self, name: str) -> Tensor:
        group = _group(self._kept[name].tensor)
        names = self._groups[group]
        lengths = [self._kept[other].length for other in names]
        start = sum(lengths[: names.index(name)])
        return self._stretches[group][start : start + self._kept[name].length]


def digest(tensors: Mapping[str, Tensor]) -> bytes:
    """A digest over names, types, shapes and values; it means something in this process only.

    Of large tensors it takes a secret random projection: the bits as integers, times secret odd multipliers, added up
    where the tensor is. Two states that differ have the same digest with a chance below one in a billion.

    Example:
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.zeros(2)})
        True
        >>> digest({"a": torch.zeros(2)}) == digest({"a": torch.ones(2)})
        False
    """
    found = hashlib.blake2b(digest_size=16)
    small: dict[_Group, list[Tensor]] = {}
    large: dict[_Group, list[Tensor]] = {}
    for name, value in tensors.items():
        found.update(f"{name}:{value.dtype}:{tuple(value.shape)};".encode())
        if _readable(value) and value.numel():
            table = small if value.numel() <= PROJECTED_ENTRIES else large
            table.setdefault(_group(value), []).append(_bits(_flat(value)))
    for parts in small.values():
        found.update(torch.cat(parts).cpu().numpy().tobytes())
    for parts in large.values():
        sums = torch.stack([total for part in parts for total in _projections(part)])
        found.update(sums.cpu().numpy().tobytes())
    return found.digest()


def _projections(bits: Tensor) -> Iterator[Tensor]:
    keys = _keys(bits.device)
    for chunk in bits.split(PROJECTED_ENTRIES):
        yield (chunk.to(torch.int64) * keys[: chunk.numel()]).sum()


@cache
def _keys(device: torch.device) -> Tensor:
    drawn = torch.frombuffer(bytearray(secrets.token_bytes(8 * PROJECTED_ENTRIES)), dtype=torch.int64)
    return (drawn | 1).to(device)


def _bits(value: Tensor) -> Tensor:
    """A flat tensor as whole numbers of the same bits."""
    value = torch.view_as_real(value).reshape(-1) if value.is_complex() else value
    return value.view(_BITS[value.element_size()])


def _group(value: Tensor) -> _Group:
    return value.device, value.dtype


def _readable(value: Tensor) -> bool:
    return value.layout == torch.strided and not value.is_quantized and value.device.type != "meta"


def _copied(value: Tensor, memory: Tensor | None) -> Tensor | None:
    if not _readable(value):
        return None
    if memory is None or memory.shape != value.shape or memory.dtype != value.dtype or memory.device != value.device:
        return value.detach().clone()
    return memory.copy_(value.detach())


def _channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def _flat(value: Tensor) -> Tensor:
    """The entries, in the order of memory where that costs no copy."""
    value = value.detach()
    return value.as_strided((value.numel(),), (1,)) if _channels_last(value) else value.reshape(-1)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """What ``_flat`` made of a tensor such as ``like``, in its shape."""
    return flat.as_strided(like.shape, like.stride()) if _channels_last(like) else flat.view(like.shape)


def _same(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other):
        return True
    # NaN is not equal to itself, but its bits are.
    if not (one.is_floating_point() or one.is_complex()) or one.shape != other.shape:
        return False
    return torch.equal(_bits(_flat(one)), _bits(_flat(other)))
