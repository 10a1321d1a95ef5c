"""Deterministic damage to the files of a run folder: bytes, lines, JSON values, tensors, and kinds of files."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from dpmodel.saving.tensor_file import FORMAT, METADATA_KEY, _checksum, read_tensor_file
from monitors import journal, ledger

Rng = np.random.Generator


def _deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


#: Values that replace a value.
EXTREMES: tuple[Any, ...] = (
    *(None, True, False, -1, 0, 1, 2, 7, 1.5, -0.5, 1e-300, 1e308, 2**31, 2**63, 2**64, -(2**63), 10**50, 10**300),
    *(float("nan"), float("inf"), float("-inf"), "", "x", "\0", "\ud800", "../../x", "1", "nan", "a\nb", "x" * 5000),
    *([], {}, [[]], [0, 1], {"x": 1}, {"tensor": "x"}, {"tuple": 3}, {"mapping": [[1]]}, _deep(40), _deep(300)),
)


def extreme(rng: Rng) -> Any:
    """One of ``EXTREMES``."""
    return copy.deepcopy(EXTREMES[rng.integers(len(EXTREMES))])


def bytes_damaged(content: bytes, rng: Rng) -> bytes:
    """``content`` with flipped bits, or a part deleted, doubled, moved, zeroed or overwritten."""
    if not content:
        return b"\xff" * 8
    data = bytearray(content)
    first, last = sorted(int(place) for place in rng.integers(0, len(data) + 1, size=2))
    kinds: list[Callable[[], bytes]] = [
        lambda: bytes(data[:first]),
        lambda: bytes(data[: len(data) - int(rng.integers(1, 9))]),
        lambda: bytes(data[:first] + data[last:]),
        lambda: bytes(data[:last] + data[first:]),
        lambda: bytes(data[last:] + data[first:last] + data[:first]),
        lambda: bytes(data[:first] + bytes(last - first) + data[last:]),
        lambda: bytes(data[:first] + rng.bytes(min(last - first, 64)) + data[last:]),
        lambda: b"",
        lambda: b"\xff" * len(data),
        lambda: bytes(data) + rng.bytes(9),
        lambda: bytes(data).decode("latin-1").encode("utf-16"),
        lambda: b"\xef\xbb\xbf" + bytes(data),
    ]
    if rng.random() < 0.5:
        for place in rng.integers(0, len(data), size=int(rng.integers(1, 9))):
            data[place] ^= 1 << int(rng.integers(8))
        return bytes(data)
    return kinds[rng.integers(len(kinds))]()


def lines_damaged(content: bytes, rng: Rng) -> bytes:
    """``content`` with a line deleted, doubled or moved, or a cell replaced."""
    lines = content.split(b"\n")
    place, other = rng.integers(0, len(lines), size=2)
    kind = rng.integers(4)
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.insert(other, lines[place])
    elif kind == 2:
        lines[place], lines[other] = lines[other], lines[place]
    else:
        cells = lines[place].split(b",")
        cells[rng.integers(len(cells))] = str(extreme(rng)).encode("utf-8", "replace")
        lines[place] = b",".join(cells)
    return b"\n".join(lines)


def _containers(value: Any) -> Iterator[Any]:
    if isinstance(value, (dict, list)) and value:
        yield value
        for part in value.values() if isinstance(value, dict) else value:
            yield from _containers(part)


def value_damaged(value: Any, rng: Rng) -> Any:
    """A JSON value in which an entry is deleted, renamed, doubled, added or replaced; ``value`` is changed."""
    found = list(_containers(value))
    if not found:
        return extreme(rng)
    where = found[rng.integers(len(found))]
    keys = list(where) if isinstance(where, dict) else range(len(where))
    key, kind = keys[rng.integers(len(keys))], rng.integers(6)
    if kind == 0:
        del where[key]
    elif kind == 1 and isinstance(where, dict):
        where[str(extreme(rng))[:20]] = where.pop(key)
    elif kind == 1:
        where.append(copy.deepcopy(where[key]))
    elif kind == 2 and isinstance(where, dict):
        where[str(rng.integers(100))] = extreme(rng)
    elif kind == 2:
        where[key], where[0] = where[0], where[key]
    elif kind == 3 and isinstance(where[key], (int, float)):
        factors = (-1, 0.5, 2, 10, 1e9)
        where[key] = where[key] * factors[rng.integers(len(factors))]
    else:
        where[key] = extreme(rng)
    return value


def json_damaged(content: bytes, rng: Rng) -> bytes:
    """A JSON text with one to three damaged values."""
    value = json.loads(content)
    for _ in range(int(rng.integers(1, 4))):
        value = value_damaged(value, rng)
    return json.dumps(value).encode("utf-8", "replace")


def ledger_resigned(content: bytes, rng: Rng) -> bytes:
    """A ledger with damaged rows and a digest that fits them."""
    value = json.loads(json_damaged(content, rng))
    if isinstance(value, dict):
        value["digest"] = _ledger_digest(value)
        if rng.integers(2):
            value.pop("origins", None)  # which may not fit the rows
    return json.dumps(value).encode()


def _lines(content: bytes) -> list[Any]:
    return [json.loads(line.partition(b" ")[2]) for line in content.split(b"\n") if line]


def _chained(values: Any) -> tuple[bytes, list[str]]:
    """A journal of these lines, and its heads."""
    heads, lines = [journal._digest("", journal.FORMAT)], []
    for value in values if isinstance(values, list) else [values]:
        text = json.dumps(value, sort_keys=True)
        heads.append(journal._digest(heads[-1], text))
        lines.append(f"{heads[-1]} {text}\n")
    return "".join(lines).encode("utf-8", "replace"), heads


def _journal_damaged(values: list[Any], rng: Rng) -> Any:
    """Lines of which one is replaced by a line of a different kind, some are left out, or a value is damaged."""
    place, kind = int(rng.integers(len(values))), rng.integers(4)
    if kind == 0:
        step = int(rng.integers(12))
        rows = [[{"type": "GaussianEvent", "noise_multiplier": 1.1}, int(10.0 ** rng.integers(1, 9))]]
        others = [
            {"kind": "begun", "step": step, "id": "ab" * 16},
            {"kind": "recorded", "rows": rows},
            {"kind": "block", "step": step, "rows": rows},
            {"kind": "violation", "step": step, "reason": "a reason"},
            {"kind": "ended", "status": "finished", "ledger": "0" * 64},
        ]
        values.insert(place + 1, others[rng.integers(len(others))])
    elif kind == 1:
        del values[place : place + int(rng.integers(1, 3))]
    else:
        return value_damaged(values, rng)
    return values


def journal_resigned(content: bytes, rng: Rng) -> bytes:
    """A journal with damaged lines and digests that fit them."""
    return _chained(_journal_damaged(_lines(content), rng))[0]


def forge(folder: Path, rng: Rng) -> None:
    """Change the journal, and let ledger, report, weights and state name its new heads, as an attacker would."""
    file = folder / journal.JOURNAL_NAME
    values = _lines(file.read_bytes())
    old = _chained(values)[1]
    content, new = _chained(_journal_damaged(values, rng))
    file.write_bytes(content)
    new += [new[-1]] * max(0, len(old) - len(new))

    def renamed(text: str) -> str:
        for before, after in zip(old[1:], new[1:], strict=False):
            text = text.replace(before, after)
        return text

    for path in sorted(folder.iterdir()):
        if path.suffix == ".safetensors":
            tensors, inside = read_tensor_file(path)
            path.write_bytes(_tensors_signed(tensors, {}, json.loads(renamed(json.dumps(inside)))))
        elif path.name in ("ledger.json", "privacy_report.json"):
            value = json.loads(renamed(path.read_text(encoding="utf-8")))
            if "digest" in value:
                value["digest"] = _ledger_digest(value)
            path.write_text(json.dumps(value), encoding="utf-8")


def _ledger_digest(value: dict[str, Any]) -> str:
    return ledger._digest({name: value[name] for name in value if name not in ("digest", "format", "origins")})


def _tensor_damaged(tensor: torch.Tensor, rng: Rng) -> torch.Tensor:
    kinds: list[Callable[[], torch.Tensor]] = [
        lambda: torch.zeros(0),
        lambda: torch.zeros(1),
        lambda: torch.zeros(()),
        lambda: tensor.reshape(-1),
        lambda: tensor.reshape(-1)[: tensor.numel() // 2].clone(),
        lambda: torch.cat([tensor.reshape(-1)] * 2),
        lambda: tensor.unsqueeze(0),
        lambda: tensor.double(),
        lambda: tensor.to(torch.int64),
        lambda: tensor.to(torch.bool),
        lambda: tensor.to(torch.bfloat16),
        lambda: torch.full_like(tensor, 99),
        lambda: torch.full_like(tensor, float("nan")) if tensor.is_floating_point() else tensor * 0,
        lambda: torch.zeros(3, 3, 3),
    ]
    return kinds[rng.integers(len(kinds))]()


def _tensors_signed(tensors: dict[str, torch.Tensor], aliases: Any, values: Any) -> bytes:
    from safetensors.torch import save

    body = {"format": FORMAT, "aliases": aliases, "values": values}
    tensors = {key: value.contiguous().clone() for key, value in tensors.items()}
    text = json.dumps({**body, "sha256": _checksum(tensors, body)}, sort_keys=True)
    content: bytes = save(tensors, metadata={METADATA_KEY: text.encode("ascii", "replace").decode()})
    return content


def tensors_resigned(path: Path, rng: Rng) -> bytes:
    """A file of tensors whose values or tensors are damaged, with a checksum that fits them."""
    tensors, values = read_tensor_file(path)
    aliases: Any = {}
    names, kind = sorted(tensors), rng.integers(8)
    name = names[rng.integers(len(names))]
    if kind <= 2:
        tensors[name] = _tensor_damaged(tensors[name], rng)
    elif kind == 3:
        del tensors[name]
    elif kind == 4:
        aliases = [{"a": "b", "b": "a"}, {name: "x"}, {"x": 3}, {name: name}, {"a": name}][rng.integers(5)]
    else:
        for _ in range(int(rng.integers(1, 4))):
            values = value_damaged(values, rng)
    return _tensors_signed(tensors, aliases, values)


def rows_resigned(path: Path, rng: Rng) -> bytes:
    """A training state whose ledger rows (compressed JSON in a tensor) are damaged, with a fitting checksum."""
    tensors, values = read_tensor_file(path)
    name = "training.rows"
    values.pop("origins")  # which may not fit the rows
    rows = value_damaged(json.loads(zlib.decompress(tensors[name].numpy().tobytes())), rng)
    tensors[name] = torch.frombuffer(bytearray(zlib.compress(json.dumps(rows).encode())), dtype=torch.uint8)
    return _tensors_signed(tensors, {}, values)


def replaced_by_something_else(path: Path, rng: Rng) -> None:
    """Replace the file by a folder, a named pipe, a link to a device, a huge file, or nothing."""
    path.unlink()
    kind = rng.integers(6)
    if kind == 0:
        path.mkdir()
    elif kind == 1:
        os.mkfifo(path)
    elif kind == 2:
        path.symlink_to("/dev/zero")
    elif kind == 3:
        path.symlink_to(path)
    elif kind == 4:
        with path.open("wb") as stream:
            stream.truncate(2**40)


def damage(folder: Path, number: int, names: Container[str] | None = None) -> tuple[str, bool]:
    """Damage one file in ``folder``, as ``number`` determines.

    Args:
        folder: The folder.
        number: Seed.
        names: Names of the files that may be damaged; None for all.

    Returns:
        What was done, and whether the checks of content (digests, checksums) were made to fit.
    """
    rng = np.random.default_rng(number)
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix not in (".md", ".html"))
    candidates = [path for path in files if names is None or path.name in names]
    path = candidates[rng.integers(len(candidates))]
    signed = {".safetensors": [tensors_resigned] * 6, ".json": [], ".jsonl": [], ".csv": [], ".yaml": []}
    content, kinds = path.read_bytes(), [bytes_damaged, bytes_damaged]
    if path.suffix != ".safetensors":
        kinds += [lines_damaged]
    if path.suffix == ".json":
        kinds += [json_damaged] * 3
    resign: list[Callable[..., bytes]] = list(signed[path.suffix])
    if path.name == "ledger.json":
        resign += [ledger_resigned] * 3
    if path.name == journal.JOURNAL_NAME:
        resign += [journal_resigned] * 3
    if path.name.startswith("training_state"):
        resign += [rows_resigned] * 2
    place, choice = rng.random(), rng.integers(len(kinds) + len(resign))
    if place < 0.03:
        replaced_by_something_else(path, rng)
        return f"{number}: {path.name} replaced", False
    if place > 0.85:
        forge(folder, rng)
        return f"{number}: forged from the journal on", True
    if place < 0.06:
        other = files[rng.integers(len(files))]
        path.write_bytes(other.read_bytes())
        return f"{number}: {path.name} replaced by {other.name}", False
    if choice < len(kinds):
        path.write_bytes(kinds[choice](content, rng))
        return f"{number}: {path.name} {kinds[choice].__name__}", False
    kind = resign[choice - len(kinds)]
    path.write_bytes(kind(path if path.suffix == ".safetensors" else content, rng))
    return f"{number}: {path.name} {kind.__name__}", True


def tree(folder: Path) -> dict[str, str]:
    """Digest of each file in ``folder``; links, pipes and folders by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = f"link to {os.readlink(path)}"
        elif not path.is_file():
            found[name] = "not a file"
        elif path.stat().st_size > 2**24:
            found[name] = f"{path.stat().st_size} bytes"
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def copied(template: Path, place: Path) -> Path:
    """A fresh copy of ``template`` at ``place``."""
    if place.exists():
        shutil.rmtree(place)
    shutil.copytree(template, place)
    return place
