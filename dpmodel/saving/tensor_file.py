"""One file of named tensors and JSON values with a checksum over both: safetensors, never pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from monitors import checks
from monitors.atomic import write_atomically
from monitors.errors import CheckpointError
from monitors.untrusted import open_untrusted, parse_json

FORMAT = "dpmodel-tensors/1"
METADATA_KEY = "dpmodel"
HEADER_LENGTH_BYTES = 8

#: Longest header that the format allows.
MAX_HEADER_BYTES = 100_000_000


def write_tensor_file(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Tensor],
    values: Mapping[str, Any],
    *,
    folder: int | None = None,
) -> None:
    """Write ``tensors`` and JSON ``values`` to ``path``, atomically and flushed to the disk.

    Identical tensors (tied weights) are stored once. For ``folder``, see ``write_atomically``.

    Raises:
        CheckpointError: A value is not JSON, or a tensor has a type that the format does not support.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save

    stored, aliases = _without_duplicates(tensors)
    body = {"format": FORMAT, "aliases": aliases, "values": dict(values)}
    try:
        text = json.dumps({**body, "sha256": _checksum(stored, body)}, sort_keys=True)
        content = save(stored, metadata={METADATA_KEY: text})
    except (TypeError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be written: {error}") from error
    write_atomically(path, content, folder=folder)


def read_tensor_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back ``write_tensor_file``, every byte of content checked.

    Raises:
        CheckpointError: The file is missing, of a different kind, truncated, or was changed; the path is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = Path(path)
    try:
        content, body = _content(file)
        tensors = load(content)
    except OSError as error:
        raise CheckpointError(f"checkpoint {file} cannot be read: {error.strerror or error}") from error
    except MemoryError as error:
        raise CheckpointError(f"checkpoint {file} cannot be read: it does not fit into memory") from error
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = checks.shortened(str(error))
        raise CheckpointError(f"{file} is not a checkpoint, or is truncated or damaged: {reason}") from error
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} was not written by dpmodel as {FORMAT!r}: it states the format {checks.shown(body.get('format'))}"
        )
    stated = body.pop("sha256", None)
    if stated != _checksum(tensors, body):
        raise CheckpointError(
            f"{file} was damaged or changed after it was written: its checksum does not match its content"
        )
    aliases = body["aliases"]
    for name, target in aliases.items():
        if name in tensors or not isinstance(target, str) or target not in tensors:
            raise CheckpointError(
                f"{file} is damaged: {checks.shown(name)} stands for the tensor {checks.shown(target)}, which the file "
                "does not hold"
            )
    return {**tensors, **{name: tensors[target] for name, target in aliases.items()}}, body["values"]


def read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON values of a file of ``write_tensor_file``, without reading its tensors or comparing its checksum.

    Raises:
        CheckpointError: The file is missing, or its description is damaged; the path is named.
    """
    try:
        with open_untrusted(path) as stream:
            values: dict[str, Any] = _description(_header(stream)[1])["values"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        reason = checks.shortened(str(error))
        raise CheckpointError(f"{path} is not a checkpoint, or is truncated or damaged: {reason}") from error
    return values


def _without_duplicates(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first_name: dict[Any, str] = {}
    for name, tensor in tensors.items():
        place = (tensor.device, tensor.data_ptr(), tensor.dtype, tuple(tensor.shape), tensor.stride())
        # Empty tensors all have the address 0 but are not aliases.
        known = first_name.setdefault(place, name) if tensor.numel() else name
        if known != name:
            aliases[name] = known
        else:
            # A copy also separates views that share memory, which safetensors refuses.
            stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return stored, aliases


def _checksum(tensors: Mapping[str, Tensor], body: Mapping[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _content(file: Path) -> tuple[bytes, dict[str, Any]]:
    """The bytes of the file and dpmodel's description; the header is checked before the tensors are read."""
    with open_untrusted(file) as stream:
        begin, header = _header(stream)
        size, body = os.fstat(stream.fileno()).st_size, _description(header)
        ends = [item["data_offsets"][1] for name, item in header.items() if name != "__metadata__"]
        stated = len(begin) + max(ends, default=0)
        if stated != size:
            raise ValueError(f"its header states {stated:,} bytes, but it has {size:,}")
        return begin + stream.read(max(ends, default=0)), body


def _header(stream: BinaryIO) -> tuple[bytes, dict[str, Any]]:
    """The bytes up to the first tensor, and the header in them."""
    size, begin = os.fstat(stream.fileno()).st_size, stream.read(HEADER_LENGTH_BYTES)
    length = int.from_bytes(begin, "little")
    if length > min(size, MAX_HEADER_BYTES):
        raise ValueError(f"its first bytes state a header of {length:,} bytes")
    text = stream.read(length)
    header: dict[str, Any] = parse_json(text.decode("utf-8"))
    return begin + text, header


def _description(header: Mapping[str, Any]) -> dict[str, Any]:
    text = header.get("__metadata__", {}).get(METADATA_KEY)
    if text is None:
        raise ValueError("it is a safetensors file without dpmodel's description")
    body = parse_json(text)
    if (
        not isinstance(body, dict)
        or not isinstance(body.get("aliases"), dict)
        or not isinstance(body.get("values"), dict)
    ):
        raise ValueError("its description has an unknown form")
    if text != json.dumps(body, sort_keys=True):  # a digit beyond the precision of a number changes no checksum
        raise ValueError("its description was changed after it was written")
    return body
