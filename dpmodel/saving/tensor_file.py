"""One file of named tensors and JSON values with a checksum over both: safetensors, never pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monitors.atomic import write_atomically
from monitors.errors import CheckpointError

FORMAT = "dpmodel-tensors/1"
METADATA_KEY = "dpmodel"
HEADER_LENGTH_BYTES = 8


def write_tensor_file(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    """Write ``tensors`` and JSON ``values`` to ``path``, atomically and flushed to the disk.

    Identical tensors (tied weights) are stored once.

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
    write_atomically(path, content)


def read_tensor_file(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read back ``write_tensor_file``, every byte of content checked.

    Raises:
        CheckpointError: The file is missing, of a different kind, truncated, or was changed; the path is named.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    file = Path(path)
    try:
        content = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"checkpoint {file} cannot be read: {error.strerror or error}") from error
    try:
        tensors = load(content)
        body = _metadata(content)
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{file} is not a checkpoint, or is truncated or damaged: {error}") from error
    if body.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} was not written by dpmodel as {FORMAT!r}: it states the format {body.get('format')!r}"
        )
    stated = body.pop("sha256", None)
    if stated != _checksum(tensors, body):
        raise CheckpointError(
            f"{file} was damaged or changed after it was written: its checksum does not match its content"
        )
    for name, target in body["aliases"].items():
        tensors[name] = tensors[target]
    return tensors, body["values"]


def read_values(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The JSON values of a file of ``write_tensor_file``, without reading its tensors or comparing its checksum.

    Raises:
        CheckpointError: The file is missing, or its description is damaged; the path is named.
    """
    try:
        with Path(path).open("rb") as stream:
            length = stream.read(HEADER_LENGTH_BYTES)
            header = stream.read(min(int.from_bytes(length, "little"), Path(path).stat().st_size))
        values: dict[str, Any] = _metadata(length + header)["values"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not a checkpoint, or is truncated or damaged: {error}") from error
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


def _metadata(content: bytes) -> dict[str, Any]:
    length = int.from_bytes(content[:HEADER_LENGTH_BYTES], "little")
    header = json.loads(content[HEADER_LENGTH_BYTES : HEADER_LENGTH_BYTES + length])
    text = header.get("__metadata__", {}).get(METADATA_KEY)
    if text is None:
        raise ValueError("it is a safetensors file without dpmodel's description")
    body = json.loads(text)
    if (
        not isinstance(body, dict)
        or not isinstance(body.get("aliases"), dict)
        or not isinstance(body.get("values"), dict)
    ):
        raise ValueError("its description has an unknown form")
    return body
