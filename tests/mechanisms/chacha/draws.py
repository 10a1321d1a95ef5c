"""Draws under fixed keys, written to an npz file: ``python draws.py DEVICE SAMPLES FILE``, for tests to compare.

Triton decides on its first import whether to interpret, so each backend draws in a separate process.
"""

import hashlib
import sys

import numpy as np
import torch

from mechanisms.chacha.backends import backend_for, input_words
from mechanisms.chacha.stream import DeviceStream

MATERIAL = hashlib.sha512(b"draws").digest()[:40]
#: Start blocks: the beginning, a carry between the counter's halves, and the end.
STARTS = (0, 2**40 + 2**32 - 70, 2**63 - 200)
BLOCKS = 131
RFC_MATERIAL, RFC_START = bytes(range(32)) + bytes.fromhex("0000004a00000000"), 0x09000000_00000001
#: Sizes of draws, and whether the scale is a number or a tensor.
SINGLES = ((1, "number"), (10, "number"), (11, "number"), (1281, "tensor"), (40_963, "number"))
SCALE, LEVEL = 0.7, 3.0
THRESHOLDS = (0, 1, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**63 + 2**31, 2**64 - 2**11)
COINS = (*((size, 2**62 + 1) for size in (1, 8, 33_001)), *((1029, threshold) for threshold in THRESHOLDS))
RATE, SAMPLE_START = 0.3, 12345


def draw(device, samples):
    name, backend = backend_for(device)
    found = {"backend": np.array(name)}
    key = input_words(MATERIAL, device)

    def keep(name, values):
        found[name] = values.cpu().numpy()

    def at(start):
        return torch.full((1,), start, dtype=torch.int64, device=device)

    keep("rfc", backend.words(input_words(RFC_MATERIAL, device), at(RFC_START), 1))
    for start in STARTS:
        keep(f"words {start}", backend.words(key, at(start), BLOCKS))
    for size, kind in SINGLES:
        scale = SCALE if kind == "number" else torch.tensor(SCALE, dtype=torch.float64, device=device)
        stream = DeviceStream(MATERIAL, device)
        keep(f"singles {size}", stream.add_normal_(torch.full((size,), LEVEL, device=device), scale))
        found[f"blocks {size}"] = np.array(stream.blocks)
    for size, threshold in COINS:
        keep(f"coins {size} {threshold}", DeviceStream(MATERIAL, device).coins(size, threshold))
    stream = DeviceStream(MATERIAL, device, SAMPLE_START)
    keep("sample float32", stream.add_normal_(torch.zeros(samples, device=device)))
    keep("sample float64", stream.add_normal_(torch.zeros(samples, dtype=torch.float64, device=device)))
    keep("sample coins", stream.coins(samples, int(RATE * 2.0**64)))
    counter = at(5)
    keep("reserved", torch.cat([*(backend.reserve(counter, blocks) for blocks in (1, 7, 2**33)), counter]))
    return found


if __name__ == "__main__":
    np.savez(sys.argv[3], **draw(torch.zeros(0, device=sys.argv[1]).device, int(sys.argv[2])))
