"""Images in folders, one folder per class."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from dpmodel.data import locations
from dpmodel.data.class_folders import ClassFile, ClassFolders, class_folders
from dpmodel.data.encoded_images import CACHED, EncodedImages
from dpmodel.data.image_decoding import ENDINGS, MODES
from dpmodel.data.splits import RawSplits
from monitors import checks
from monitors.errors import DataError, MissingDataError

LAYOUT = "train/<class>/*.png and test/<class>/*.png"


def image_folder(
    root: str | os.PathLike[str],
    channels: int = 3,
    image_size: int | None = None,
    cache: bool | str | os.PathLike[str] | None = True,
) -> RawSplits:
    """Images in ``root/train/<class>/`` and ``root/test/<class>/``, decoded once.

    Classes are numbered in the alphabetical order of the folders in ``train``, and examples are sorted by class and
    name. Files with other endings, names that begin with a dot and ``__MACOSX`` are ignored. Images are decoded after
    ``limit``, ``test_limit`` and ``validation`` have chosen the rows: others are not read.

    Decoded images are kept on disk by a digest of names, sizes, times of change and settings. They are private data
    outside ``root``: uncompressed, in files that their owner alone can read, until somebody deletes them. Before they
    are used, their checksum is compared, and some of the images are decoded and compared.

    Args:
        root: The folder, or a zip archive of it, which is read without unpacking. In an archive, ``train`` and ``test``
            may be in a folder that holds both.
        channels: 3 for colour, 1 for grey; other images are converted.
        image_size: Height and width to which every image is resized; None requires that all have the same size.
        cache: The folder that keeps decoded images, in its subfolder ``decoded_images``. True: ``$DPMODEL_CACHE``, or
            ``~/.cache/dpmodel``. None or False: no files.

    Raises:
        MissingDataError: A folder does not exist or is empty.
        DataError: A class has no training folder, an image or the archive cannot be read, the sizes differ, or the
            images do not fit into memory.
    """
    checks.one_of(MODES, channels=channels)
    folders, place = class_folders(locations.full_path(root)), _cache_place(cache)
    for part in ("train", "test"):
        if folders.classes(part) is None:
            raise MissingDataError(f"{folders.part(part)} does not exist; an image folder must contain {LAYOUT}")
    classes = _classes(folders, "train")

    def read(part: str) -> tuple[EncodedImages, Tensor]:
        files, labels = _listed(folders, part, classes)
        rows = torch.arange(len(files))
        return EncodedImages(folders, files, rows, channels, image_size, place, f"decoding {part}"), labels

    source = f"{folders.path} ({', '.join(classes)})"
    return RawSplits(*read("train"), *read("test"), num_classes=len(classes), source=source)


def _classes(folders: ClassFolders, part: str) -> list[str]:
    names = folders.classes(part)
    if not names:
        raise MissingDataError(f"{folders.part(part)} contains no class folders; an image folder must contain {LAYOUT}")
    return names


def _listed(folders: ClassFolders, part: str, classes: Sequence[str]) -> tuple[list[ClassFile], Tensor]:
    """The image files of a part and their labels."""
    strangers = sorted(set(_classes(folders, part)) - set(classes))
    if strangers:
        raise DataError(
            f"{folders.part(part)} has the class {strangers[0]!r}, which has no training folder; classes: "
            f"{', '.join(classes)}"
        )
    files: list[ClassFile] = []
    labels: list[int] = []
    for number, name in enumerate(classes):
        found = folders.files(part, name, ENDINGS)
        files += found
        labels += [number] * len(found)
    if not files:
        raise MissingDataError(
            f"the class folders in {folders.part(part)} contain no images ({', '.join(sorted(ENDINGS))})"
        )
    return files, torch.tensor(labels)


def _cache_place(cache: bool | str | os.PathLike[str] | None) -> Path | None:
    if cache is None or cache is False:
        return None
    if cache is True:
        try:
            return locations.cache_folder()
        except RuntimeError as error:  # a user without a home folder, as in many containers
            CACHED.warn_not_kept(error)
            return None
    if not isinstance(cache, (str, os.PathLike)) or not os.fspath(cache) or "://" in os.fspath(cache):
        raise ValueError(f"data.cache must be a folder, true, or null for no cache, got {checks.shown(cache)}")
    return locations.full_path(cache, "data.cache")
