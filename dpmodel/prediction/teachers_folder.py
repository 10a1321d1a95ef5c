"""The folder of an ensemble of teachers: its secret parts, the weights of each teacher, and what they belong to."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dpmodel.prediction.partition import Partition
from dpmodel.saving.lock import LOCK_NAME, FolderLock
from dpmodel.saving.marks import TrainingMark
from dpmodel.saving.tensor_file import read_tensor_file, read_values, write_tensor_file
from monitors import checks
from monitors.errors import CheckpointError, ConfigError

FORMAT = "dpmodel-teachers/1"

_ID_BYTES = 32

#: Bytes of the digest of a row: of a billion rows, two different ones still have equal digests once in 10^20 folders.
_ROW_BYTES = 16


@dataclass(frozen=True)
class TeachersFolder:
    """Files of an ensemble. All of them are private: they may hold private data, and tell who is in which part.

    Args:
        path: The folder.

    Example:
        >>> TeachersFolder(Path("teachers")).teacher(7).as_posix()
        'teachers/teacher-0007.safetensors'
    """

    path: Path

    @property
    def partition(self) -> Path:
        """The part of each row, and the configuration."""
        return self.path / "partition.safetensors"

    def teacher(self, part: int) -> Path:
        """The weights of the teacher of a part."""
        return self.path / f"teacher-{part:04d}.safetensors"

    @property
    def queries(self) -> Path:
        """The query ledger of these teachers, if no other one is chosen."""
        return self.path / "queries"

    def require_trained(self) -> None:
        """Refuse a folder without teachers.

        Raises:
            ConfigError: There are none.
        """
        if not self.partition.is_file():
            what = "holds no teachers" if self.path.exists() else "does not exist"
            raise ConfigError(f"{self.path} {what}; give a folder of `dpmodel teachers`")

    def require_unused(self) -> None:
        """Refuse a folder with other files.

        Raises:
            ConfigError: There are some.
        """
        if any(file.name != LOCK_NAME for file in self.path.iterdir()):
            raise ConfigError(
                f"the folder {self.path} holds files but no {self.partition.name}, so it is not a folder of teachers; "
                "choose a different one with --output"
            )


@dataclass(frozen=True)
class Ensemble:
    """What all teachers of a folder share.

    Args:
        ensemble_id: Random ID, as hex; also the key of the digest of the data.
        partition: The parts.
        config: The configuration as YAML.
        settings: What the teachers depend on, by path.
        data: Keyed digest of the training data.
        facts: Arguments of the network that follow from the data.
        classes: Number of scores of each teacher.
        row_digests: A keyed digest of the stored inputs of each row, uint8 (N, bytes); None in folders of earlier
            versions.
    """

    ensemble_id: str
    partition: Partition
    config: str
    settings: Mapping[str, Any]
    data: str
    facts: Mapping[str, Any]
    classes: int
    row_digests: Tensor | None = None

    def save(self, folder: TeachersFolder, lock: FolderLock) -> None:
        """Write the file of the parts, and mark the folder as made here."""
        values = {
            "format": FORMAT,
            "id": self.ensemble_id,
            "parts": len(self.partition),
            "config": self.config,
            "settings": dict(self.settings),
            "data": self.data,
            "facts": dict(self.facts),
            "classes": self.classes,
        }
        tensors = {"owners": torch.from_numpy(self.partition.owners)}
        if self.row_digests is not None:
            tensors["row_digests"] = self.row_digests
        write_tensor_file(folder.partition, tensors, values, folder=lock.handle())
        TrainingMark(self.ensemble_id, 0, "", self._config_digest).save()

    @classmethod
    def load(cls, folder: TeachersFolder) -> Ensemble:
        """The ensemble in a folder.

        Raises:
            ConfigError: The folder holds no teachers.
            CheckpointError: The file is damaged.
        """
        folder.require_trained()
        tensors, values = read_tensor_file(folder.partition)
        try:
            if values["format"] != FORMAT:
                raise ValueError(f"its format is {checks.shown(values['format'])}")
            checks.positive_int(parts=values["parts"], classes=values["classes"])
            partition = Partition(tensors["owners"].numpy(), values["parts"])
            texts = (str(values[name]) for name in ("id", "config", "data"))
            ensemble_id, config, data = texts
            settings, facts = dict(values["settings"]), dict(values["facts"])
            rows = tensors.get("row_digests")
            return cls(ensemble_id, partition, config, settings, data, facts, values["classes"], rows)
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{folder.partition} was written by a different version of dpmodel: {error}"
            ) from error

    @property
    def made_here(self) -> bool:
        """Whether this user's mark shows that the configuration is the one that was written here."""
        mark = TrainingMark.of(self.ensemble_id)
        return mark is not None and mark.config == self._config_digest

    @property
    def _config_digest(self) -> str:
        return hashlib.sha256(self.config.encode()).hexdigest()

    def is_finished(self, folder: TeachersFolder, part: int) -> bool:
        """Whether the teacher of a part was trained."""
        file = folder.teacher(part)
        try:
            return file.is_file() and _is_of(read_values(file), self.ensemble_id, part)
        except CheckpointError:
            return False

    def save_teacher(self, folder: TeachersFolder, part: int, teacher: Mapping[str, Tensor] | int) -> None:
        """Write the weights of a teacher, or the class for which it always votes."""
        constant = teacher if isinstance(teacher, int) else None
        tensors = {} if isinstance(teacher, int) else teacher
        values = {"format": FORMAT, "id": self.ensemble_id, "part": part, "constant": constant}
        write_tensor_file(folder.teacher(part), tensors, values)

    def load_teacher(self, folder: TeachersFolder, part: int) -> dict[str, Tensor] | int:
        """What ``save_teacher`` wrote.

        Raises:
            CheckpointError: The file is damaged, or belongs to other teachers.
        """
        tensors, values = read_tensor_file(folder.teacher(part))
        if not _is_of(values, self.ensemble_id, part):
            raise CheckpointError(
                f"{folder.teacher(part)} belongs to other teachers; remove it, and repeat `dpmodel teachers`"
            )
        constant = values.get("constant")
        if constant is None:
            return tensors
        if not isinstance(constant, int) or not 0 <= constant < self.classes:
            raise CheckpointError(f"{folder.teacher(part)} votes for class {checks.shown(constant)}, which is unknown")
        return constant


def _is_of(values: Mapping[str, Any], ensemble_id: str, part: int) -> bool:
    return (values.get("id"), values.get("part")) == (ensemble_id, part)


def new_id() -> str:
    """A random ID of an ensemble, as hex."""
    return secrets.token_hex(_ID_BYTES)


def keyed_row_digests(inputs: Tensor, key: str) -> Tensor:
    """``keyed_digest`` of each row of ``inputs``, shortened, uint8 (N, bytes)."""
    begun = hmac.new(bytes.fromhex(key), f"{inputs.dtype} {tuple(inputs.shape[1:])};".encode(), hashlib.sha256)
    found = bytearray()
    for row in inputs.cpu().flatten(1).contiguous().numpy():
        digest = begun.copy()
        digest.update(row.data)
        found += digest.digest()[:_ROW_BYTES]
    return torch.frombuffer(found, dtype=torch.uint8).reshape(-1, _ROW_BYTES)


def keyed_digest(tensors: Sequence[Tensor], key: str) -> str:
    """A digest of examples that tells nothing about them without the key, as hex."""
    digest = hmac.new(bytes.fromhex(key), digestmod=hashlib.sha256)
    for tensor in tensors:
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()
