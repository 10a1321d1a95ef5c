"""What dpmodel and Opacus do on the same faults: a table of outcomes, each observed in a run.

    PYTHONPATH=. python benchmarks/faults.py [--only CASE ...] [--output docs/results/faults.md]

Every case is a small training (see ``fault_cases.py``) in a process of its own. An observer counts the private steps;
the table compares this count with the number of steps that the accountant charges.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from fault_cases import CASES, LIBRARIES
from machine import description

#: What a case is, in the words of the table.
TITLES = {
    "batch_norm": "BatchNorm in the network",
    "mixing_layer": "a layer subtracts the mean of the batch",
    "mixing_loss": "the loss subtracts the mean of the batch",
    "buffer_of_examples": "a buffer sums up the examples",
    "tied_weights": "two layers share a weight",
    "infinite_input": "one example holds an infinity",
    "huge_gradient": "one example's gradient overflows float32",
    "repeated_rows": "one example is in the data set twice",
    "labels_out_of_range": "labels out of range",
    "batch_above_data": "batch size above the size of the data",
    "fixed_order": "batches without Poisson sampling",
    "noise_nan": "noise multiplier NaN",
    "noise_negative": "noise multiplier -1",
    "learning_rate_nan": "ExponentialLR with gamma NaN",
    "step_size_zero": "StepLR with step_size 0",
    "schedule_too_short": "OneCycleLR with fewer steps than the training",
    "step_outside": "a second optimizer steps without privacy after step 3",
    "weights_written": "a statistic of the data is added to the weights after step 3",
    "unfrozen_meanwhile": "frozen layers are unfrozen after step 3",
    "user_seed": "`torch.manual_seed(0)` before each of two trainings",
    "forked": "the process forks before the training",
    "killed_and_resumed": "`kill -9` after step 7, resumed from the state of step 4",
    "older_checkpoint": "the files of step 6 are restored after the end of the training",
    "malicious_checkpoint": "a checkpoint with a pickle that runs code",
    "damaged_checkpoint": "a flipped bit in a saved weight",
}

SECONDS = 300


def tried(case: str, library: str) -> dict[str, Any]:
    """What happened, as facts."""
    with tempfile.TemporaryDirectory() as folder:
        phases = ["first", "second"] if case == "killed_and_resumed" else [""]
        for phase in phases:
            command = [sys.executable, str(Path(__file__).with_name("fault_cases.py")), case, library, folder, phase]
            done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    try:
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        return {"crash": f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    return found


def outcome(found: dict[str, Any]) -> str:
    """The facts in words."""
    if "crash" in found:
        return f"the process ended, {found['crash']}"
    if "same_noise" in found:
        return "the same noise" if found["same_noise"] else "different noise"
    if "loaded" in found:
        text = "loaded" if found["loaded"] else "not loaded" + (", error" if found["error"] else "")
        return text + ("; the code was run" if found.get("code_run") else "")
    released, charged = found["released"], found["charged"]
    if found["error"] and not charged and not found.get("restored"):
        return "refused before the first step" if not released else f"error after {steps(released)}, none charged"
    if found["error"] and found.get("restored"):
        return "refused"
    text = f"error after {steps(released)}" if found["error"] else f"trained, {steps(released)}"
    text += f", {charged} charged" if charged != released else ", all charged"
    if charged:
        text += f", epsilon {found['epsilon']:.2f}" if found["epsilon"] < float("inf") else ", epsilon infinite"
    return text + ("" if found["finite"] else ", weights not finite")


def steps(count: int) -> str:
    return f"{count} step" if count == 1 else f"{count} steps"


def message(found: dict[str, Any]) -> str:
    text = " ".join(str(found.get("error") or "").split())
    return text[:160] + ("..." if len(text) > 160 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=sorted(TITLES), default=list(TITLES))
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    assert set(TITLES) == set(CASES)
    lines = [
        "# Faults: what happens",
        "",
        f"Measured by `python benchmarks/faults.py --output {options.output or 'FILE'}`. {description('opacus')}",
        "",
        "A small training of 12 steps. They are counted from outside and compared with what the accountant charges. "
        "Each library\nuses its default accountant: dpmodel RDP, Opacus PRV.",
        "",
        "| fault | dpmodel | Opacus |",
        "|---|---|---|",
    ]
    for case in options.only:
        found = {library: tried(case, library) for library in LIBRARIES}
        lines.append(f"| {TITLES[case]} | " + " | ".join(outcome(found[library]) for library in LIBRARIES) + " |")
        print(lines[-1], flush=True)
        for library in LIBRARIES:
            print(f"    {library}: {message(found[library])}", flush=True)
    if options.output:
        options.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
