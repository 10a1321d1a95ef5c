"""Kills a command that trains in several processes, or one of these, at random moments, and starts it again."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections import Counter
from pathlib import Path

from kill_commands import COMMANDS, Command
from kill_starts import Process

from monitors.errors import DPModelError

#: A process that lives longer than this without the process that was started has been left behind. One that is still
#: starting notices that when its modules are imported, which takes long on a busy machine.
SECONDS_LEFT = 60.0

#: Far more than any command takes by itself.
PATIENCE = 300.0

#: After its first release, a command is killed within this time.
TRAINING = 3.0

ONE = "one process"

#: What happens: SIGKILL or SIGTERM to the process that was started, or SIGKILL to one that trains; and how often of ten
#: times.
VICTIMS = {"SIGKILL": 5, "SIGTERM": 1, ONE: 4}


class Kills:
    """The kills of one kind of command.

    Args:
        kind: Name of the command in ``COMMANDS``.
        base: Folder for everything.
        draw: Draws the moments and the victims.
    """

    def __init__(self, kind: str, base: Path, draw: random.Random) -> None:
        self.kind, self.base, self.draw = kind, base, draw
        self.counts = Counter[str]()
        self._until_release = {False: 20.0, True: 2.0}  # seconds, replaced by those that are seen

    def __call__(self, kills: int) -> None:
        """Kill ``kills`` times, in as many folders as that takes."""
        while self.counts["kills"] < kills:
            command = COMMANDS[self.kind](self.base / f"{self.counts['commands']}")
            self.counts["commands"] += 1
            last = min(kills, self.counts["kills"] + self.draw.randint(5, 9))
            # Every third folder takes the long way.
            copied = self.counts["commands"] % 3 != 1
            while self.counts["kills"] < last and not command.finished:
                if not self._killed(command, last, copied=copied):
                    break
            self._complete(command, copied=copied)
            print(f"{self.kind}: {dict(self.counts)}", flush=True)

    def _killed(self, command: Command, last: int, *, copied: bool) -> bool:
        """Whether the command, started once more, was killed before it ended by itself."""
        before, begin = command.trace.size(), time.monotonic()
        process = command.start(copied=copied)
        if self.draw.random() < 0.75:
            while command.trace.size() == before and process.poll() is None:
                time.sleep(0.02)
            self._until_release[copied] = time.monotonic() - begin
            time.sleep(self.draw.uniform(0, TRAINING))
        else:
            time.sleep(self.draw.uniform(0, self._until_release[copied]))
        while True:
            victim = self.draw.choices(list(VICTIMS), list(VICTIMS.values()))[0]
            trainers = sorted(set(command.trace.trained()) & set(command.trace.members(process.pid)))
            one = victim == ONE and bool(trainers)
            if process.poll() is not None:
                break
            target = self.draw.choice(trainers) if one else process.pid
            os.kill(target, signal.SIGTERM if victim == "SIGTERM" else signal.SIGKILL)
            self.counts.update(["kills", ONE if one else "SIGTERM" if victim == "SIGTERM" else "SIGKILL"])
            self.counts["copies"] += copied
            self.counts["after a release"] += command.trace.size() > before
            if not one or not command.goes_on:
                self._await_end(command, process)
                return True
            while target in command.trace.members(process.pid):
                time.sleep(0.02)
            self._judge(command)  # while the others train
            if self.counts["kills"] == last:
                break
            time.sleep(self.draw.uniform(0, TRAINING))
        self._await_end(command, process)
        return False

    def _await_end(self, command: Command, process: Process) -> None:
        """Wait until no process is left, and read the files."""
        process.wait(PATIENCE)  # at once after SIGKILL; after SIGTERM, it waits for its workers or ranks itself
        begin = time.monotonic()
        while command.trace.members(process.pid) and time.monotonic() < begin + SECONDS_LEFT:
            time.sleep(0.05)
        self.counts["slowest"] = max(self.counts["slowest"], round(time.monotonic() - begin))
        left = command.trace.members(process.pid)
        if left:
            self.counts["left"] += 1
            _say(f"left behind by {command.base}: {left}")
        for member in left:
            os.kill(member, signal.SIGKILL)
        self._judge(command)

    def _complete(self, command: Command, *, copied: bool) -> None:
        if not command.finished and command.start(copied=copied).wait(PATIENCE):
            self.counts["not completed"] += 1
            _say((command.base / "output").read_text(encoding="utf-8", errors="replace")[-2000:])
        self._judge(command)

    def _judge(self, command: Command) -> None:
        try:
            wrong = command.understated()
        except (DPModelError, OSError, ValueError) as error:
            wrong = f"refused: {error}"
        if wrong is not None:
            self.counts["wrong"] += 1
            _say(f"WRONG in {command.base}: {wrong}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
