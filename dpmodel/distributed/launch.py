"""The process group of a command that was started by torchrun."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import NoReturn

#: What torchrun tells each process that it starts.
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

#: A rank that does not answer for this long is lost; rank 0 validates for all, while the others wait.
TIMEOUT = timedelta(minutes=30)


def launched_processes(environment: Mapping[str, str] = os.environ) -> int:
    """Number of processes that torchrun has started for this training; 1 without torchrun.

    Example:
        >>> launched_processes({})
        1
        >>> launched_processes({"RANK": "0", "WORLD_SIZE": "4", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"})
        4
    """
    if not all(environment.get(name) for name in VARIABLES):
        return 1
    size = environment["WORLD_SIZE"]
    return max(1, int(size)) if size.isdigit() else 1


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this process on its machine, from 0; it uses the GPU of that number."""
    value = environment.get("LOCAL_RANK", "0")
    return int(value) if launched_processes(environment) > 1 and value.isdigit() else 0


@contextmanager
def launched() -> Iterator[int]:
    """Join the process group that torchrun describes, if it has started several processes, and leave it at the end.

    Yields:
        The rank, from 0.
    """
    if launched_processes() == 1:
        yield 0
        return
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available() and local_rank() < torch.cuda.device_count()
    if gpu:
        torch.cuda.set_device(local_rank())
    dist.init_process_group("cpu:gloo,cuda:nccl" if gpu else "gloo", timeout=TIMEOUT)
    ended = False
    try:
        yield dist.get_rank()
        ended = True
    finally:
        if ended or not gpu:  # NCCL would wait for ranks that are lost
            dist.destroy_process_group()


def leave(code: int) -> NoReturn:
    """End this process without the shutdown of the interpreter, once everything is written.

    With torch 2.14, a process that has left a Gloo group sometimes aborts while the interpreter shuts down ("terminate
    called without an active exception"), and torchrun would call a finished training failed.

    Args:
        code: The exit code.
    """
    atexit._run_exitfuncs()  # temporary files, worker processes, logging
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, as the interpreter would ignore it
            stream.flush()
    os._exit(code)
