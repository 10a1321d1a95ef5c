"""Snapshots of tensors, with which later changes of any kind are found."""

from __future__ import annotations

import random
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from operator import is_
from typing import Any

import torch
from torch import Tensor

from mechanisms.engines.host_copy import HostCopy

#: Up to this many bytes, all tensors are compared in full each time.
COMPARED_BYTES = 2**16

#: Up to this many bytes, all tensors are copied, so that any change can be compared by value and undone.
COPIED_BYTES = 2**22

#: In larger sets, a secret part of each tensor is compared each time: this many entries, or this share.
SAMPLED_ENTRIES = 1024
SAMPLED_SHARE = 1 / 256

#: Tensors with more entries are projected instead of hashed byte by byte, this many entries at a time.
PROJECTED_ENTRIES = 2**18

#: Draws the places of the parts, from a secret seed.
_PLACES = random.Random(secrets.randbits(256))

_Group = tuple[torch.device, torch.dtype]

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Comparison:
    """A comparison of the tensors of one device and type with a snapshot, whose result may still be on a GPU.

    Args:
        values: The values that were compared, flat; None if a tensor has another type, shape or device by now.
        group: Device and type.
        same: One number, 1 if nothing has changed.
    """

    values: Tensor | None
    group: _Group
    same: HostCopy


class Snapshot:
    """The values of named tensors when it was taken.

    A write through torch raises the version of a tensor; a write through ``.data``, a NumPy view or a fused kernel
    changes only the values. Small sets of tensors are compared in full. In larger sets, a part of each tensor is
    compared, at a place drawn secretly each time: a write to a whole tensor is always found, and a write to a few
    entries at the next thorough comparison.

    Args:
        tensors: Name to tensor. Tensors without a strided layout are compared by identity and version only.
        copied: Whether to copy tensors that are too large to compare in full, so that all of them can be compared, and
            restored.

    Example:
        >>> weight = torch.zeros(3)
        >>> snapshot = Snapshot({"weight": weight})
        >>> weight.numpy()[1] = 1.0
        >>> snapshot.changed({"weight": weight})
        ['weight']
        >>> snapshot.restore(["weight"]), weight.tolist()
        (True, [0.0, 0.0, 0.0])
    """

    def __init__(self, tensors: Mapping[str, Tensor], *, copied: bool = True) -> None:
        self._tensors = dict(tensors)
        self._read = {name: value for name, value in tensors.items() if is_readable(value) and value.numel()}
        held = sum(value.numel() * value.element_size() for value in self._read.values())
        self.compared_in_full = held <= COMPARED_BYTES
        #: Whether any change can be undone.
        self.copied = self.compared_in_full or (copied and held <= COPIED_BYTES)
        self._copies: dict[str, Tensor] = {}
        if self.copied and not self.compared_in_full:
            self._copies = {name: torch.empty_like(value.detach()) for name, value in self._read.items()}
        self._kinds = {name: _kind(value) for name, value in self._read.items()}
        self._lengths = {name: self._length(value.numel()) for name, value in self._read.items()}
        self._groups: dict[_Group, list[str]] = {}
        for name, value in self._read.items():
            self._groups.setdefault((value.device, value.dtype), []).append(name)
        self._flats: dict[str, tuple[object, Tensor]] = {}
        self.take()

    def take(self) -> None:
        """Take the present values."""
        self._versions = [value._version for value in self._tensors.values()]
        self._digest: int | None = None
        if self._copies:
            with torch.no_grad():
                torch._foreach_copy_(list(self._copies.values()), list(self._read.values()))
        if not self.compared_in_full:
            self._starts = {
                name: int(_PLACES.random() * (value.numel() - self._lengths[name] + 1))
                for name, value in self._read.items()
            }
        self._stretches = self._gathered()

    def holds(self, tensors: Mapping[str, Tensor]) -> bool:
        """Whether it is a snapshot of these tensor objects."""
        return self._tensors.keys() == tensors.keys() and all(map(is_, self._tensors.values(), tensors.values()))

    def keep_digest(self) -> int:
        """Let the next thorough comparison cover every entry, even of tensors that are too large to copy.

        Returns:
            The digest.
        """
        self._digest = digest(self._tensors.values())
        return self._digest

    def changed(
        self, tensors: Mapping[str, Tensor] | None = None, *, values: bool = True, thorough: bool = False
    ) -> list[str]:
        """Names of tensors that were replaced or have changed since the snapshot was taken; empty for none.

        Args:
            tensors: The tensors that now have these names. Default: the same objects.
            values: Compare values if versions have not changed.
            thorough: Compare every known entry.
        """
        others = [] if tensors is None else self._others(tensors)
        written = [value._version for value in self._tensors.values()] != self._versions or not self._are_alike()
        if not (thorough or others or written) and (not values or self._stretches_equal()):
            return []
        differing = [name for name in self._tensors if name not in others and not self._as_kept(name)]
        return others + differing if others or differing else self._by_digest(thorough)

    def comparisons(self) -> list[Comparison]:
        """Compare all known entries without waiting for a GPU."""
        if not self._are_alike():
            changed = HostCopy(torch.zeros(1, device="cpu"))
            return [Comparison(None, group, changed) for group in self._groups]
        kept = self._stretches
        return [Comparison(now, of, HostCopy(_are_same(kept[of], now))) for of, now in self._gathered().items()]

    def differing(self, compared: Comparison) -> dict[str, Tensor]:
        """The values of the tensors that had changed at a comparison, flat, as far as they are known."""
        names = self._groups[compared.group]
        if compared.values is None:
            return {name: _flat(self._read[name]) for name in names if _kind(self._read[name]) != self._kinds[name]}
        parts = zip(names, compared.values.split([self._lengths[name] for name in names]), strict=True)
        return {name: part for name, part in parts if not _same(part, self._kept_stretch(name))}

    def are_still(self, compared: Comparison) -> bool:
        """Whether the known entries are those of a comparison."""
        if compared.values is None or not self._are_alike():
            return compared.values is None
        return _same(self._gathered()[compared.group], compared.values)

    def restore(self, names: Iterable[str]) -> bool:
        """Restore the values of ``names``; False, and nothing is written, if one of them was not copied."""
        copies = {name: self._copy_of(name) for name in names}
        if any(copy is None for copy in copies.values()):
            return False
        with torch.no_grad():
            for name, copy in copies.items():
                if copy is not None:
                    self._tensors[name].copy_(copy)
        return True

    def written(self, name: str, value: Tensor | None) -> bool:
        """Whether ``value`` is a different tensor than had this name, or was written to through torch."""
        return self._tensors.get(name) is not value or (value is not None and value._version != self._version(name))

    def tensor(self, name: str) -> Tensor | None:
        """The tensor that had this name when the snapshot was taken."""
        return self._tensors.get(name)

    def _others(self, tensors: Mapping[str, Tensor]) -> list[str]:
        replaced = [name for name, value in self._tensors.items() if tensors.get(name) is not value]
        return replaced + [name for name in tensors if name not in self._tensors]

    def _version(self, name: str) -> int:
        return self._versions[list(self._tensors).index(name)]

    def _by_digest(self, thorough: bool) -> list[str]:
        if self.copied:
            return []
        # Without a copy, a raised version says that something was written, and only a digest can show that the values
        # are the same as before.
        doubtful = [name for name, value in self._read.items() if value._version != self._version(name)]
        if self._digest is None:
            return doubtful
        if (thorough or doubtful) and digest(self._tensors.values()) != self._digest:
            return doubtful or list(self._tensors)
        return []

    def _as_kept(self, name: str) -> bool:
        value = self._tensors[name]
        if name not in self._read:
            return not value.numel() or value._version == self._version(name)
        if _kind(value) != self._kinds[name]:  # after `value.data = other`
            return False
        if self.copied:
            copy = self._copy_of(name)
            return copy is not None and _same(value, copy)
        return _same(self._stretch(name), self._kept_stretch(name))

    def _copy_of(self, name: str) -> Tensor | None:
        if name in self._read and _kind(self._read[name]) != self._kinds[name]:
            return None
        if not self.compared_in_full:
            return self._copies.get(name)
        value = self._tensors.get(name)
        if value is None or name in self._read:
            return None if value is None else _shaped(self._kept_stretch(name), value)
        return None if value.numel() else value

    def _length(self, entries: int) -> int:
        return entries if self.compared_in_full else min(entries, max(SAMPLED_ENTRIES, int(entries * SAMPLED_SHARE)))

    def _gathered(self) -> dict[_Group, Tensor]:
        """The parts of all tensors of one device and type as one tensor: one comparison, and one wait for a GPU."""
        with torch.no_grad():
            return {group: torch.cat(list(map(self._stretch, names))) for group, names in self._groups.items()}

    def _are_alike(self) -> bool:
        return all(_kind(value) == self._kinds[name] for name, value in self._read.items())

    def _stretches_equal(self) -> bool:
        now = self._gathered()
        return all(_same(kept, now[group]) for group, kept in self._stretches.items())

    def _stretch(self, name: str) -> Tensor:
        value = self._read[name]
        place, flat = self._flats.get(name, (None, value))
        if place != (value.data_ptr(), value.stride()):  # also after `value.data = other`
            flat = _flat(value)
            if flat.data_ptr() == value.data_ptr():
                self._flats[name] = (value.data_ptr(), value.stride()), flat
        if self.compared_in_full:
            return flat
        start = self._starts[name]
        return flat[start : start + self._lengths[name]]

    def _kept_stretch(self, name: str) -> Tensor:
        group = self._kinds[name][:2]
        names = self._groups[group]
        start = sum(self._lengths[other] for other in names[: names.index(name)])
        return self._stretches[group][start : start + self._lengths[name]]


def digest(tensors: Iterable[Tensor]) -> int:
    """A digest of types, shapes and values, in their order; valid in this process only.

    Large tensors enter by a secret random projection: the bits as integers, times secret odd multipliers, summed on the
    device of the tensor. Two different states have the same digest with probability below one in a billion.

    Example:
        >>> digest([torch.zeros(2)]) == digest([torch.zeros(2)]), digest([torch.zeros(2)]) == digest([torch.ones(2)])
        (True, False)
    """
    small: dict[_Group, list[Tensor]] = {}
    large: dict[_Group, list[Tensor]] = {}
    found: list[Any] = []
    for value in tensors:
        found.append((value.dtype, value.shape))
        if is_readable(value) and value.numel():
            table = small if value.numel() <= PROJECTED_ENTRIES else large
            table.setdefault(_group(value), []).append(_bits(_flat(value)))
    found += [torch.cat(parts).cpu().numpy().tobytes() for parts in small.values()]
    for parts in large.values():
        sums = torch.stack([total for part in parts for total in _projections(part)])
        found.append(sums.cpu().numpy().tobytes())
    return hash(tuple(found))


def _projections(bits: Tensor) -> Iterator[Tensor]:
    keys = _keys(bits.device)
    for chunk in bits.split(PROJECTED_ENTRIES):
        yield (chunk.to(torch.int64) * keys[: chunk.numel()]).sum()


@cache
def _keys(device: torch.device) -> Tensor:
    drawn = torch.frombuffer(bytearray(secrets.token_bytes(8 * PROJECTED_ENTRIES)), dtype=torch.int64)
    return (drawn | 1).to(device)


def _kind(value: Tensor) -> tuple[torch.device, torch.dtype, torch.Size]:
    return value.device, value.dtype, value.shape


def _bits(value: Tensor) -> Tensor:
    """A flat tensor as integers of the same bits."""
    value = torch.view_as_real(value).reshape(-1) if value.is_complex() else value
    return value.view(_BITS[value.element_size()])


def _group(value: Tensor) -> _Group:
    return value.device, value.dtype


def is_readable(value: Tensor) -> bool:
    """Whether the values of a tensor are plain numbers in memory."""
    return value.layout == torch.strided and not value.is_quantized and value.device.type != "meta"


def _channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)


def _flat(value: Tensor) -> Tensor:
    """The entries, in the order of memory if that needs no copy."""
    value = value.detach()
    return value.as_strided((value.numel(),), (1,)) if _channels_last(value) else value.reshape(-1)


def _shaped(flat: Tensor, like: Tensor) -> Tensor:
    """Undo ``_flat`` for a tensor such as ``like``."""
    return flat.as_strided(like.shape, like.stride()) if _channels_last(like) else flat.view(like.shape)


def _are_same(one: Tensor, other: Tensor) -> Tensor:
    """Whether two flat tensors are the same, as a tensor of shape (1,); the bits of NaN are compared."""
    return ((one == other) | (_bits(one) == _bits(other)).view(len(one), -1).all(1)).all().reshape(1)


def _same(one: Tensor, other: Tensor) -> bool:
    if torch.equal(one, other):
        return True
    # NaN differs from itself, but its bits do not.
    if not (one.is_floating_point() or one.is_complex()) or one.shape != other.shape:
        return False
    return torch.equal(_bits(_flat(one)), _bits(_flat(other)))
