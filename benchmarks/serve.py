"""Requests a second of the server, with the ledger synced to the disk before the answers of each batch.

    PYTHONPATH=. python benchmarks/serve.py [--seconds 8] [--connections 1 8 32 128]
        [--output benchmarks/results/serve.md]

The server is a process of its own, as `dpmodel serve` runs it: LeNet5 with noise on its logits, one row of 32 x 32
pixels per request, JSON over HTTP. The clients share one further process, and keep their connections. At most a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from machine import description

from monitors.journal import JOURNAL_NAME

SHAPE, CLASSES, DELTA = (1, 32, 32), 10, 1e-5

#: A budget that fits all requests of a measurement.
EPSILON, NOISE_MULTIPLIER = 8.0, 5000.0


def server(folder: Path, cache: bool) -> None:
    import torch

    from dpmodel.data.input_form import InputForm
    from dpmodel.nets import LeNet5
    from dpmodel.prediction import DPLogits, QueryLedger
    from dpmodel.runs.predict import RunPredictor
    from dpmodel.serving.application import Limits
    from dpmodel.serving.server import bound_socket, serve
    from monitors import GaussianEvent, Ledger, privacy_spent

    class Bytes(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = LeNet5()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scores: torch.Tensor = self.network(x / 255.0)
            return scores

    ledger = QueryLedger(folder, EPSILON, DELTA)
    mechanism = DPLogits(Bytes(), noise_multiplier=NOISE_MULTIPLIER, ledger=ledger, cache=cache)
    spent = privacy_spent(Ledger().record(GaussianEvent(1.0)), DELTA)
    predictor = RunPredictor(mechanism, InputForm(SHAPE, "uint8", CLASSES), {}, spent, CLASSES)
    with bound_socket("127.0.0.1", 0, has_tokens=False) as listening:
        print(listening.getsockname()[1], flush=True)
        serve(predictor, listening, Limits(requests_per_minute=None))


@dataclass
class Measured:
    """The requests that were answered, and the charges for them."""

    requests: int
    seconds: float
    latencies: list[float]
    charges: int

    def quantile(self, share: float) -> float:
        ordered = sorted(self.latencies)
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def ask(port: int, body: bytes, until: float, latencies: list[float]) -> None:
    """Requests over one connection, one after the other."""
    head = ["POST /predict HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    request = "\r\n".join([*head, f"Content-Length: {len(body)}", "", ""]).encode() + body
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    while (begin := time.perf_counter()) < until:
        writer.write(request)
        answer = await reader.readuntil(b"\r\n\r\n")
        if not answer.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(answer.decode())
        await reader.readexactly(int(re.search(rb"content-length: (\d+)", answer, re.IGNORECASE)[1]))  # type: ignore[index]
        latencies.append(time.perf_counter() - begin)
    writer.close()


async def load(port: int, connections: int, seconds: float) -> tuple[list[float], float]:
    bodies = [json.dumps({"rows": [[[[(7 * row + number) % 256 for row in range(32)]] * 32]]}) for number in range(8)]
    latencies: list[float] = []
    begin = time.perf_counter()
    clients = (ask(port, bodies[number % 8].encode(), begin + seconds, latencies) for number in range(connections))
    await asyncio.gather(*clients)
    return latencies, time.perf_counter() - begin


def measured(connections: int, seconds: float, cache: bool) -> Measured:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "queries"
        arguments = [sys.executable, __file__, "--server", str(folder), *(["--cache"] if cache else [])]
        with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            asyncio.run(load(port, connections, 1.0))  # the first passes are slower
            before = len((folder / JOURNAL_NAME).read_text().splitlines())
            latencies, wall = asyncio.run(load(port, connections, seconds))
            lines = len((folder / JOURNAL_NAME).read_text().splitlines())
            process.terminate()
    return Measured(len(latencies), wall, latencies, lines - before)


def table(rows: dict[int, Measured]) -> str:
    lines = [
        "| connections | requests a second | median, ms | 99 %, ms | requests per charge | charges a second |",
        "|---|---|---|---|---|---|",
    ]
    for connections, found in rows.items():
        lines.append(
            f"| {connections} | {found.requests / found.seconds:,.0f} | {found.quantile(0.5):.1f} | "
            f"{found.quantile(0.99):.1f} | {found.requests / max(1, found.charges):.1f} | "
            f"{found.charges / found.seconds:.0f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 128])
    parser.add_argument("--cache", action="store_true", help="answer repeated queries from the cache")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--server", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.server is not None:
        server(options.server, options.cache)
        return
    rows = {count: measured(count, options.seconds, options.cache) for count in options.connections}
    text = table(rows)
    print(text)
    if options.output is not None:
        what = "LeNet5, one row per request, answers by noisy logits; each charge is one write that reaches the disk"
        options.output.write_text(f"# The server under load\n\n{description()}\n\n{what}.\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
