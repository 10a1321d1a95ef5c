"""The page that ``benchmarks/cuda.py`` writes: tables of the records that its sections have sent so far."""

from __future__ import annotations

import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Record = dict[str, Any]

STEP_COLUMNS = (
    *("workload (batch)", "row", "ms/step", "x plain", "x plain graph", "x best Opacus"),
    *("peak MiB", "x plain memory", "kernels", "host waits", "busy ms"),
)
STEP_NOTES = (
    "A step is forward, backward, clip, noise and SGD with momentum; plain rows have neither clip nor noise. Times are",
    "medians over alternating rounds, measured between CUDA events. Ratios are medians over rounds of the times in one",
    "round; rows in bf16 and TF32 are compared with plain torch in that precision. Other rows use torch's defaults:",
    "convolutions in TF32, matrix products in full precision. `plain-graph` replays the whole step as one CUDA graph.",
    "`dpmodel` is the default (engine `auto`) with secure noise. Peak memory includes weights, momentum and",
    "batch.",
    "Kernels (including copies and fills), waits of the host for the device, and milliseconds of device work are per",
    "step, as counted by torch's profiler.",
)


class Report:
    """Turns records into Markdown; a record replaces an earlier one of the same kind and place.

    Args:
        command: The command line, for the heading.
    """

    def __init__(self, command: str) -> None:
        self.command = command
        self._records: dict[tuple[Any, ...], Record] = {}

    def add(self, record: Record) -> None:
        """Add one record."""
        key = tuple(record.get(part) for part in ("kind", "section", "row", "size"))
        self._records[key] = record

    def of(self, kind: str) -> list[Record]:
        """Records of one kind, in the order of arrival."""
        return [record for record in self._records.values() if record["kind"] == kind]

    def text(self) -> str:
        """The page."""
        machine = next((record["text"] for record in self.of("machine")), "no section has run yet")
        lines = ["# Private training on a GPU", "", f"Written by `{self.command}`. {machine}", ""]
        return (
            "\n".join([*lines, *self._parts(_tests, _steps, _engines, _noise, _fits, _longest, _failures)]).rstrip()
            + "\n"
        )

    def brief(self) -> str:
        """Only the tables, for the terminal."""
        return "\n".join(self._parts(_steps, _noise, _fits, _failures, _tests))

    def _parts(self, *parts: Callable[[Report], Iterator[str]]) -> list[str]:
        return [line for part in parts for line in part(self)]


def table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    head = list(columns)
    cells = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in rows]
    return [f"| {' | '.join(head)} |", f"|{'|'.join(['---'] * len(head))}|", *cells, ""]


def _tests(report: Report) -> Iterator[str]:
    for record in report.of("tests"):
        counts = ", ".join(f"{count} {what}" for what, count in record["counts"].items())
        yield from (
            "## Correctness first",
            "",
            f"Tests that need CUDA: {counts or 'none'}; {record['seconds']:.0f} s.",
            "",
        )
        yield from (f"- `{name}`: {why}" for name, why in record["failures"])
        if record["failures"]:
            yield ""


def _steps(report: Report) -> Iterator[str]:
    found = report.of("step")
    if found:
        yield from ("## Steps", "", *STEP_NOTES, "")
        places = list(dict.fromkeys((record["section"], record["size"]) for record in found))
        found.sort(key=lambda record: (places.index((record["section"], record["size"])), record["order"]))
        yield from table(STEP_COLUMNS, (_step_row(record, report) for record in found))


def _step_row(record: Record, report: Report) -> list[str]:
    place = f"{record['section']} ({record['size']})"
    if "why" in record:
        return [place, record["row"], f"failed: {record['why']}", *[""] * (len(STEP_COLUMNS) - 3)]
    beside = {other["row"]: other for other in report.of("step") if _same_place(other, record) and "ms" in other}
    coarse = next((ending for ending in ("-bf16", "-tf32") if record["row"].endswith(ending)), "")
    opacus = [other for name, other in beside.items() if name.startswith("opacus-")]
    best = min(opacus, key=lambda other: statistics.median(other["ms"]), default=None)
    plain, own = beside.get(f"plain{coarse}"), record["peak_mib"]
    seen = next((other for other in report.of("launches") if _same_row(other, record)), None)
    return [
        *(place, record["row"], f"{statistics.median(record['ms']):.3g}"),
        *(_ratio(plain, record), _ratio(beside.get("plain-graph"), record), _ratio(best, record)),
        "" if own is None else f"{own:,.0f}",
        "" if own is None or plain is None else f"{own / plain['peak_mib']:.2f}",
        *(
            ("", "", "")
            if seen is None
            else (f"{seen['kernels']:.0f}", f"{seen['waits']:.0f}", f"{seen['busy_ms']:.3g}")
        ),
    ]


def _ratio(reference: Record | None, record: Record) -> str:
    if reference is None:
        return "n/a"
    return f"{statistics.median(a / b for a, b in zip(reference['ms'], record['ms'])):.2f}"  # noqa: B905 - cut short


def _same_place(one: Record, other: Record) -> bool:
    return (one["section"], one["size"]) == (other["section"], other["size"])


def _same_row(one: Record, other: Record) -> bool:
    return _same_place(one, other) and one["row"] == other["row"]


def _engines(report: Report) -> Iterator[str]:
    found = report.of("engine")
    if found:
        yield from ("## What `auto` chose", "")
        rows = ([f"{r['section']} ({r['size']})", r["row"], r["why"], _formulas(r["plans"])] for r in found)
        yield from table(("workload (batch)", "row", "why", "formulas"), rows)


def _formulas(lines: list[str]) -> str:
    """Number of parameters for each formula."""
    chosen = (re.search(r"\)\): ([^(]+)", line) for line in lines)
    counts = Counter(match[1].strip() for match in chosen if match)
    return ", ".join(f"{count} {formula}" for formula, count in counts.items())


def _noise(report: Report) -> Iterator[str]:
    found = report.of("noise")
    if found:
        yield from (
            "## Noise",
            "",
            "Milliseconds to add noise to a vector on the device, as medians over alternating rounds.",
            "",
        )
        rows = (
            [f"{r['size']:,}", f"{r['ours']:.3f}", f"{r['randn']:.3f}", f"{r['ours'] / r['randn']:.1f}"] for r in found
        )
        yield from table(("numbers", "secure noise", "`torch.randn`", "ratio"), rows)


def _fits(report: Report) -> Iterator[str]:
    found = report.of("fit")
    if found:
        yield from (
            "## Whole fits",
            "",
            "Times include drawing and fetching rows, checks, steps and update. The epoch is the fastest of all.",
            "",
        )
        rows = ([r["section"], r["row"], r["took"], r["words"]] for r in found)
        yield from table(("what", "row", "time", "result"), rows)


def _longest(report: Report) -> Iterator[str]:
    found = [record for record in report.of("launches") if record["longest"] and record["row"] == "dpmodel"]
    if found:
        yield from ("## Most expensive kernels", "")
        rows = (
            [
                f"{r['section']} ({r['size']})",
                r["row"],
                f"{r['host_ms']:.1f}",
                "; ".join(f"{n} {t:.2f}" for n, t in r["longest"]),
            ]
            for r in found
        )
        yield from table(("workload (batch)", "row", "host ms (profiled)", "kernel and ms/step"), rows)


def _failures(report: Report) -> Iterator[str]:
    found = report.of("failed")
    if found:
        yield from ("## Not measured", "", *(f"- {record['section']}: {record['why']}" for record in found), "")
