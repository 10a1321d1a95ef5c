"""Files in class folders, ``<part>/<class>/<file>``, in a folder or in a zip archive that is never unpacked."""

from __future__ import annotations

import io
import os
import re
import threading
import weakref
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from monitors import checks
from monitors.errors import DataError
from monitors.untrusted import open_untrusted

#: Folders in which macOS keeps what its file systems know about the files of an archive.
_SYSTEM = frozenset({"__MACOSX"})

#: Largest file in an archive that is read: 256 MiB, the bytes of 64 million pixels with four channels.
MOST_BYTES = 2**28

_ENCRYPTED = 0x1
_DRIVE = re.compile(r"[A-Za-z]:")


@dataclass(frozen=True)
class ClassFile:
    """A file of a class.

    Args:
        name: ``<part>/<class>/<file>``.
        version: Changes with the content, as far as it is known without reading the file.
        place: What the reader needs to find it.
    """

    name: str
    version: str
    place: Any = field(repr=False, compare=False)


class ClassFolders(ABC):
    """Parts such as ``train``, with a folder per class. Names that begin with a dot, and ``__MACOSX``, are ignored."""

    #: Identifies files whose names and versions may be the same elsewhere.
    identity = ""

    def __init__(self, path: Path) -> None:
        self.path = path

    @abstractmethod
    def part(self, part: str) -> str:
        """A part in words, for errors."""

    @abstractmethod
    def classes(self, part: str) -> list[str] | None:
        """Names of the class folders, sorted; None if there is no such part."""

    @abstractmethod
    def files(self, part: str, name: str, endings: Collection[str]) -> list[ClassFile]:
        """The files directly in a class folder whose names have one of the endings, sorted by name.

        Raises:
            DataError: The folder cannot be listed, or a file cannot be read without unpacking.
        """

    @abstractmethod
    def open(self, file: ClassFile) -> Any:
        """A context with the content of a file as a binary stream."""

    @abstractmethod
    def where(self, file: ClassFile) -> str:
        """A file in words, for errors."""


def class_folders(path: Path) -> ClassFolders:
    """The class folders at ``path``: those of an archive if it is a file."""
    return ArchivedClassFolders(path) if os.path.exists(path) and not os.path.isdir(path) else PlainClassFolders(path)


class PlainClassFolders(ClassFolders):
    """Class folders in a folder."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        # Two folders can hold files of the same names, sizes and times: those that an archive was unpacked to.
        self.identity = os.fspath(path)

    def part(self, part: str) -> str:
        """The folder of a part."""
        return str(self.path / part)

    def classes(self, part: str) -> list[str] | None:
        """The folders in the part."""
        if not os.path.isdir(self.path / part):
            return None
        return sorted(entry.name for entry in _listed(self.path / part) if entry.is_dir())

    def files(self, part: str, name: str, endings: Collection[str]) -> list[ClassFile]:
        """The files in the folder; links are followed."""
        folder = self.path / part / name
        if not os.path.isdir(folder):
            return []
        found = [entry for entry in _listed(folder) if _ending(entry.name) in endings and not entry.is_dir()]
        return [self._file(entry, f"{part}/{name}/{entry.name}") for entry in sorted(found, key=lambda each: each.name)]

    @staticmethod
    def _file(entry: os.DirEntry[str], name: str) -> ClassFile:
        try:
            known = entry.stat()
        except OSError as error:
            raise DataError(f"{entry.path} cannot be read: {error.strerror}. Repair or remove it.") from error
        # The time of change cannot be set: a file that was replaced by one with an old time of modification is noticed.
        return ClassFile(name, f"{known.st_size} {known.st_mtime_ns} {known.st_ctime_ns}", entry.path)

    def open(self, file: ClassFile) -> Any:
        """The file, if it is a regular one."""
        return open_untrusted(file.place)

    def where(self, file: ClassFile) -> str:
        """The path of a file."""
        return str(file.place)


class ArchivedClassFolders(ClassFolders):
    """Class folders in a zip archive, possibly within folders that hold nothing else.

    Nothing is written: files are decompressed into memory, one by one.

    Raises:
        DataError: The file is not a readable zip archive, or its names are ambiguous or lead outside it.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._lock = threading.Lock()
        with self._naming():
            stream = open_untrusted(path)
            # Open as long as this object: reading the directory of an archive of 60,000 files takes 0.4 s.
            weakref.finalize(self, stream.close)
            self._archive = zipfile.ZipFile(stream)
        self._parts: dict[str, dict[str, dict[str, zipfile.ZipInfo]]] = {}
        for (part, *inner), entry in _within(self._entries()):
            classes = self._parts.setdefault(part, {})
            if len(inner) > 1 or (inner and entry.is_dir()):
                files = classes.setdefault(inner[0], {})
                if len(inner) == 2 and not entry.is_dir():
                    files[inner[1]] = entry

    def _entries(self) -> dict[tuple[str, ...], zipfile.ZipInfo]:
        found: dict[tuple[str, ...], zipfile.ZipInfo] = {}
        for entry in self._archive.infolist():
            name = entry.filename
            steps = tuple(step for step in name.split("/") if step not in ("", "."))
            if not name or name.startswith("/") or "\\" in name or ".." in steps or _DRIVE.match(name):
                raise DataError(
                    f"{self.path} holds {checks.shown(name)}, which is not a path within an archive. Make it anew from "
                    "the folder, with relative paths and forward slashes (zip -r pictures.zip train test)"
                )
            if not all(map(_visible, steps)):
                continue
            if steps in found and not entry.is_dir():
                raise DataError(
                    f"{self.path} holds {checks.shown(name)} twice, and it is unclear which one counts. Make it anew "
                    "from the folder (zip -r pictures.zip train test)"
                )
            found[steps] = entry
        return found

    def part(self, part: str) -> str:
        """A part and the archive."""
        return f"{part}/ in {self.path}"

    def classes(self, part: str) -> list[str] | None:
        """The folders in the part, also those without files."""
        found = self._parts.get(part)
        return None if found is None else sorted(found)

    def files(self, part: str, name: str, endings: Collection[str]) -> list[ClassFile]:
        """The files in the archive."""
        found = sorted(self._parts.get(part, {}).get(name, {}).items())
        return [self._file(f"{part}/{name}/{file}", entry) for file, entry in found if _ending(file) in endings]

    def _file(self, name: str, entry: zipfile.ZipInfo) -> ClassFile:
        if entry.flag_bits & _ENCRYPTED:
            raise DataError(
                f"{self.path} is protected by a password ({name} is encrypted). Unpack it and give the folder, or make "
                "an archive without a password"
            )
        return ClassFile(name, f"{entry.file_size} {entry.CRC:08x}", entry)

    @contextmanager
    def open(self, file: ClassFile) -> Iterator[BinaryIO]:
        """The file, decompressed and compared with its checksum."""
        size = file.place.file_size
        if size > MOST_BYTES:
            raise ValueError(f"it states {size:,} bytes, more than {MOST_BYTES:,}")
        with self._lock, self._archive.open(file.place) as member:
            # A number of bytes bounds what is decompressed, whatever the archive states.
            content = member.read(size + 1)
        if len(content) != size:
            raise ValueError(f"it states {size:,} bytes, but has {len(content):,}")
        yield io.BytesIO(content)

    def where(self, file: ClassFile) -> str:
        """The name of a file and the archive."""
        return f"{file.name} in {self.path}"

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # zipfile raises a dozen types of exception for damaged archives
            reason = checks.shortened(" ".join(str(error).split()))
            raise DataError(
                f"{self.path} is not a readable zip archive of class folders: {reason}. Give a folder or a zip archive "
                "that is complete; unpack archives of other formats"
            ) from error


def _within(entries: dict[tuple[str, ...], zipfile.ZipInfo]) -> Iterator[tuple[tuple[str, ...], zipfile.ZipInfo]]:
    """The entries without the folders that hold everything: ``pictures/train/...`` is ``train/...``."""
    depth = 0
    while True:
        below = [steps[depth:] for steps, entry in entries.items() if len(steps) > depth + 1 or entry.is_dir()]
        outer = {steps[0] for steps in below if steps}
        if len(outer) != 1 or outer & {"train", "test"}:
            break
        depth += 1
    return ((steps[depth:], entry) for steps, entry in entries.items() if len(steps) > depth)


def _visible(name: str) -> bool:
    return not name.startswith(".") and name not in _SYSTEM


def _ending(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return [entry for entry in entries if _visible(entry.name)]
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
