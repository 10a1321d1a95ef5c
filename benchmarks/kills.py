"""Commands are killed at random moments and started again: what their files state, compared with what was released.

    PYTHONPATH=. python benchmarks/kills.py --train 100 --compare 35 --tune 35 --two-processes 30 --seed 1

Each process of a command writes a trace that dpmodel does not know: each event goes into a separate file once its noise
is drawn and before the weights change, in spawned workers and in the processes of torchrun too. After each kill, the
files that state an epsilon are compared with the trace of all processes so far; they may state more, never less, and a
file that is refused counts as wrong. These are `ledger.json`, `privacy_report.json` and `privacy_report.md` of each run
folder, `comparison.json`, `comparison.md` and `report.html` of a comparison, and `ledger.json`, `charged.json`,
`tuning.json` and `tuning.md` of a search. Releases are counted one by one; figures of epsilon may differ by rounding
(1e-12, relatively).

Two commands are killed at a time, which makes the moments vary. A killed process loses what is in its memory, not what
the system holds for the disk: this is not a power cut.

## One process

`dpmodel train`, with `--resume` after the first kill, dies by SIGKILL: at a random moment since its start, or since its
first release. Copies of the folder are kept, and after each kill random subsets of their files are restored into a
further copy, which must be refused or state at least the trace.

## Several processes

At a random moment since the start, or within three seconds after the first release, the process that was started gets
SIGKILL or SIGTERM, or one of the two that train gets SIGKILL (a worker of `compare` or `tune`, which continue; or
a rank of torchrun). Without the process that was started, no other may live for 60 s: they end within 5 s of noticing
its end, but one that is still importing its modules notices only after that. At last the command is started once more
and must finish. In the first of three folders, the command is started as a user does, and its workers are spawned; in
the next two it is a copy (a fork) of a process that has imported the modules, and so are its workers, and its ranks
without torchrun, which saves the many seconds that three interpreters take to start. A search with
charge `random` has to state the price of the best run and all steps beyond the plan of a run; with charge `all`, all
releases; with charge `none`, those of the best run.
"""

from __future__ import annotations

import argparse
import random
import shutil
import tempfile
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from kill_commands import COMMANDS
from kill_group import ONE, Kills
from kill_training import measured, warm_up
from machine import description

_ALONE = (
    ("training", ""),
    ("kills", "kills"),
    ("of these after a release", "after a release"),
    ("understated", "wrong"),
    ("not completed", "not completed"),
    ("restored folders refused", "refused"),
    ("stating enough", "states at least what was spent"),
    ("understated", "WRONG"),
)
_GROUPS = (
    ("command", ""),
    ("kills", "kills"),
    ("of copies", "copies"),
    ("SIGKILL", "SIGKILL"),
    ("SIGTERM", "SIGTERM"),
    ("SIGKILL of one", ONE),
    ("after a release", "after a release"),
    ("understated", "wrong"),
    ("with processes left", "left"),
    ("longest life without the parent, s", "slowest"),
    ("not completed", "not completed"),
)

#: What no kill may leave behind.
_FAULTS = ("wrong", "WRONG", "left", "not completed")

Found = dict[str, Counter[str]]


def kill_groups(base: Path, beginning: str, kills: int, seed: int) -> Found:
    """Counts by command, for those whose name begins so, which share the kills."""
    found: Found = {}
    names = [name for name in COMMANDS if name.startswith(beginning)]
    base.mkdir()
    warm_up(base / "warm")
    for number, name in enumerate(names):
        folder = base / f"{number}"
        folder.mkdir()
        one = Kills(name, folder, random.Random(f"{seed} {name}"))
        one(kills // len(names) + (number < kills % len(names)))
        found[name] = one.counts
    return found


def kill_alone(base: Path, kills: int, seed: int) -> Found:
    """Counts by case of a training in one process."""
    torch.set_num_threads(1)
    base.mkdir()
    return measured(base, kills, random.Random(f"{seed} alone")) if kills else {}


def table(columns: tuple[tuple[str, str], ...], found: Found) -> list[str]:
    """A table of ``found`` with a last row of sums."""
    total = sum(found.values(), Counter[str]())
    total["slowest"] = max((counts["slowest"] for counts in found.values()), default=0)
    rows = [[name, *(f"{counts[key]:g}" for _, key in columns[1:])] for name, counts in {**found, "all": total}.items()]
    cells = [[title for title, _ in columns], ["---"] * len(columns), *rows]
    return ["| " + " | ".join(row) + " |" for row in cells]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kills in {"train": 100, "compare": 35, "tune": 35, "two-processes": 30}.items():
        parser.add_argument(f"--{name}", type=int, default=kills, metavar="KILLS")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    conditions = description()
    base, seed = Path(tempfile.mkdtemp(prefix="kills-")), options.seed
    with ProcessPoolExecutor(2) as two:  # at once
        parts = [
            two.submit(kill_groups, base / "compare", "`compare", options.compare, seed),
            two.submit(kill_groups, base / "tune", "`tune", options.tune, seed),
            two.submit(kill_groups, base / "two", "`train", options.two_processes, seed),
            two.submit(kill_alone, base / "alone", options.train, seed),
        ]
        compared, tuned, shared, alone = (part.result() for part in parts)
    groups = {**compared, **tuned, **shared}
    total = sum([*groups.values(), *alone.values()], Counter[str]())
    command = (
        f"python benchmarks/kills.py --train {options.train} --compare {options.compare} --tune {options.tune} "
        f"--two-processes {options.two_processes} --seed {options.seed}"
    )
    paragraphs = __doc__.strip().split("\n\n")
    before, one, several = ("\n\n".join(part) for part in (paragraphs[2:4], paragraphs[4:6], paragraphs[6:]))
    lines = [
        "# Kills at random moments",
        "",
        f"Measured by `{command}`. {conditions}",
        "",
        f"**{total['kills'] - total['wrong']} of {total['kills']} kills** left files that state at least what was "
        f"released, within the limit; after **{total['left']}** of them a process was left behind.",
        "",
        *[before, "", one, "", *table(_ALONE, alone), "", several, "", *table(_GROUPS, groups)],
    ]
    print("\n".join(lines))
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    if any(total[fault] for fault in _FAULTS):
        raise SystemExit(f"see {base}")
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
