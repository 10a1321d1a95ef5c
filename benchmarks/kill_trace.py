"""What the killed processes of a command released, by their own trace."""

from __future__ import annotations

import json
import os
from collections import defaultdict
from pathlib import Path

from monitors.events import event_from_dict
from monitors.ledger import Ledger

ROOT = Path(__file__).resolve().parent.parent


class Trace:
    """The trace of one command over all its starts: a file for each process.

    Args:
        folder: Its folder, which is made.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder, self.starts = folder, 0

    def environment(self) -> dict[str, str]:
        """The variables of a new start, in which every process writes a trace."""
        self.starts += 1
        path = os.pathsep.join([str(ROOT), str(ROOT / "benchmarks" / "kill_hook")])
        return {"PYTHONPATH": path, "KILLS_TRACE": str(self.folder), "KILLS_START": str(self.starts)}

    def size(self) -> int:
        """Its bytes."""
        return sum(file.stat().st_size for file in self.folder.iterdir())

    def trained(self) -> list[int]:
        """The processes that have released something since the latest start."""
        return [int(file.stem.split("-")[2]) for file in self.folder.glob(f"{self.starts}-*")]

    def released(self) -> dict[str, Ledger]:
        """The releases of each run folder. Ranks write the same one each: that of a start is what one of them wrote."""
        written: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        for file in sorted(self.folder.iterdir()):
            start, rank, _ = file.stem.split("-")
            for line in file.read_text(encoding="utf-8").splitlines():
                values = json.loads(line)
                written[values["run"], start, rank].append(json.dumps(values["event"], sort_keys=True))
        longest: dict[tuple[str, str], list[str]] = {}
        for (run, start, _), events in written.items():
            longest[run, start] = max(longest.get((run, start), []), events, key=len)
        found: dict[str, Ledger] = defaultdict(Ledger)
        for (run, _), events in longest.items():
            for event in events:
                found[run].record(event_from_dict(json.loads(event)))
        return dict(found)

    def total(self) -> Ledger:
        """The releases of all run folders."""
        return Ledger().merge(*self.released().values())

    def members(self, session: int) -> list[int]:
        """The living processes of a command: those that have inherited its variables, and those of its session."""
        mark, found = f"KILLS_TRACE={self.folder}\0".encode(), []
        for entry in Path("/proc").iterdir():
            try:
                if not entry.name.isdigit():
                    continue
                state, _, _, its_session = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                ours = int(its_session) == session or mark in (entry / "environ").read_bytes()
                if ours and state not in "ZX":
                    found.append(int(entry.name))
            except OSError:  # it has ended, or is somebody else's
                continue
        return found
