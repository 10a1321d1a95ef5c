"""Starts ranks for tests: processes with a Gloo group that is found through a file, ended after a time limit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]

#: Runs ``function(rank, folder)`` of a module in a process of the group, and writes what it returns.
_RANK = """
import json, os, sys
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
import torch
import torch.distributed as dist
path, name, folder, rank, size, meeting, timeout = sys.argv[1:]
torch.set_num_threads(1)
torch.manual_seed(0)
if int(size) > 1:
    dist.init_process_group(
        "gloo", init_method="file://" + meeting, rank=int(rank), world_size=int(size),
        timeout=timedelta(seconds=float(timeout)),
    )
spec = spec_from_file_location("ranks", path)
module = module_from_spec(spec)
sys.modules["ranks"] = module
spec.loader.exec_module(module)
found = getattr(module, name)(int(rank), folder)
with open(f"{folder}/{name}-{size}-{rank}.json", "w") as file:
    file.write(json.dumps(found))
if int(size) > 1:
    dist.destroy_process_group()
sys.stdout.flush()
os._exit(0)  # threads of torch that are still running may abort an interpreter that ends (seen with torch 2.14)
"""


def start(path, name, folder, size, timeout=120):
    """The processes of ``size`` ranks that call ``name(rank, folder)`` of the module at ``path``."""
    meeting = Path(folder) / f"meeting-{name}-{size}-{os.urandom(4).hex()}"
    arguments = [str(path), name, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", _RANK, *arguments, str(rank), str(size), str(meeting), str(timeout)],
            env=environment,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(size)
    ]


def finish(processes, limit=200):
    """Output and exit code of each process; all are killed if one does not end in time."""
    try:
        outputs = [process.communicate(timeout=limit)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        outputs = [process.communicate()[0] for process in processes]
        raise AssertionError("a rank hangs:\n" + "\n----\n".join(outputs)) from None
    return outputs, [process.returncode for process in processes]


def results(path, name, folder, size, limit=200):
    """What ``name`` returns on each of ``size`` ranks."""
    outputs, codes = finish(start(path, name, folder, size), limit)
    assert not any(codes), "\n----\n".join(outputs)
    return [json.loads((Path(folder) / f"{name}-{size}-{rank}.json").read_text()) for rank in range(size)]
