"""The conditions of a measurement: processor, threads, versions, date, and load of the machine."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch


def description(*packages: str) -> str:
    """One line about this machine and time, with the versions of torch and of the installed ``packages``."""
    versions = [f"torch {torch.__version__}", f"Python {platform.python_version()}"]
    for package in packages:
        try:
            versions.append(f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"without {package}")
    threads = torch.get_num_threads()
    return (
        f"{processor()}, {threads} thread{'s' * (threads != 1)} of {os.cpu_count()} processors, float32; "
        f"{', '.join(versions)}; {datetime.datetime.now(datetime.timezone.utc).date()}; "
        f"load average {os.getloadavg()[0]:.1f} at the start."
    )


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def gpu() -> str:
    """The first CUDA device, its memory and driver; opens CUDA."""
    found = torch.cuda.get_device_properties(0)
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"]
        driver = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        driver = "unknown"
    return f"{found.name}, {found.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, driver {driver}"
