"""Images in files, decoded once the rows to keep are known."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dpmodel.data.class_folders import ClassFile, ClassFolders
from dpmodel.data.image_decoding import read_image
from dpmodel.data.progress import progress
from dpmodel.data.tensor_cache import CachedKind, TensorCache
from mechanisms.engines.memory import free_memory
from monitors.errors import ConfigError, DataError

#: How decoded images are kept on disk.
CACHED = CachedKind(
    "decoded images", torch.uint8, "decoded", remedy=". Set data.cache to another folder, or to null for no cache"
)

#: Part of each digest: changes if the same files and settings give different images.
_VERSION = "dpmodel-images/1"

#: Images that are decoded and compared before cached ones are used.
COMPARED = 8

#: Largest ratio of all images to chosen ones at which the cache of all is read: a few images are decoded sooner.
_MOST_UNUSED = 4

#: Images that one thread decodes before it reports.
_TASK = 64


@dataclass(frozen=True)
class EncodedImages:
    """Rows of the images in class folders; see ``LazyRows``.

    Args:
        folders: The class folders.
        files: All image files of a part.
        rows: Rows of ``files``, from 0.
        channels: 3 for colour, 1 for grey.
        size: Height and width to which every image is resized; None requires that all have the same size.
        cache: Folder that keeps decoded images; None: no files.
        what: Text before the progress bar.
    """

    folders: ClassFolders
    files: Sequence[ClassFile]
    rows: Tensor
    channels: int
    size: int | None
    cache: Path | None
    what: str

    def __len__(self) -> int:
        return len(self.rows)

    def index_select(self, dim: int, index: Tensor, /) -> EncodedImages:
        """Some of the rows; ``dim`` is 0."""
        return replace(self, rows=self.rows.index_select(dim, index))

    def load(self) -> Tensor:
        """The images, from the cache if it has them: uint8 of shape (rows, channels, height, width).

        Raises:
            DataError: An image cannot be read, the sizes differ, or the images do not fit into memory.
        """
        if self.cache is None:
            return self._decoded()
        images = self._kept(self.cache)
        if images is None:
            images = self._decoded()
            self._cached(self.cache).write(images)
        return images

    def digest(self) -> str:
        """SHA-256 of what the images depend on, as far as it is known without reading them."""
        import PIL

        settings = f"{_VERSION};{PIL.__version__};{self.channels};{self.size};{self.folders.identity};"
        chosen = (self.files[row] for row in self.rows.tolist())
        listing = "".join(f"{file.name}\0{file.version}\n" for file in chosen)
        return hashlib.sha256((settings + listing).encode("utf-8", "surrogateescape")).hexdigest()

    def _cached(self, folder: Path) -> TensorCache:
        return TensorCache(folder, self.digest(), len(self), CACHED)

    def _kept(self, folder: Path) -> Tensor | None:
        """The cached images, or these rows of all images if they are many and only all are cached."""
        cached = self._cached(folder)
        images = cached.read()
        many = len(self) < len(self.files) <= _MOST_UNUSED * len(self)
        if many and not cached.exists():
            images = replace(self, rows=torch.arange(len(self.files)))._cached(folder).read()
            images = None if images is None else images.index_select(0, self.rows)
        if images is None or self._agrees(images):
            return images
        CACHED.warn_made_again("the cached images are not those in the files")
        return None

    def _agrees(self, images: Tensor) -> bool:
        """Whether ``images`` have the pixels of the files, in some rows."""
        rows = np.linspace(0, len(self) - 1, min(COMPARED, len(self))).astype(int)
        return all(np.array_equal(self._image(int(self.rows[row])), images[row].numpy()) for row in rows)

    def _decoded(self) -> Tensor:
        rows = self.rows.tolist()
        first = self._image(rows[0])
        self._require_memory(len(rows) * first.nbytes)
        images = np.empty((len(rows), *first.shape), dtype=np.uint8)

        def fill(start: int) -> int:
            for at, row in enumerate(rows[start : start + _TASK], start):
                image = self._image(row)
                if image.shape != first.shape:
                    raise DataError(
                        f"images differ in size: {self._where(rows[0])} is {first.shape[1:]} and {self._where(row)} is "
                        f"{image.shape[1:]}; set data.image_size"
                    )
                images[at] = image
            return min(_TASK, len(rows) - start)

        # Pillow releases the interpreter lock while it decodes, so threads use every core.
        with progress(self.what, len(rows)) as advance, ThreadPoolExecutor(torch.get_num_threads()) as pool:
            for done in pool.map(fill, range(0, len(rows), _TASK)):
                advance(done)
        return torch.from_numpy(images)

    def _image(self, row: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        file = self.files[row]
        return read_image(lambda: self.folders.open(file), self._where(row), self.channels, self.size)

    def _where(self, row: int) -> str:
        return self.folders.where(self.files[row])

    def _require_memory(self, needed: int) -> None:
        with contextlib.suppress(ConfigError):  # a system that does not report its free memory
            free = free_memory(torch.device("cpu"))
            if needed > free:
                raise DataError(
                    f"the {len(self):,} images need {needed:,} bytes of memory, but only {free:,} are free. Set "
                    "data.image_size to a smaller size, or data.limit and data.test_limit to fewer images"
                )
