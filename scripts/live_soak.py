"""What a live forecaster costs, and whether it stays right: rates, latencies, memory, soak, kills.

    python scripts/live_soak.py --output live_soak [--parts steps million http soak kills]

It measures a GRU flow of hidden size 32 on one channel, with untrained weights, on one core, and
writes a row per figure to ``figures.csv``. The soak sends updates over HTTP at half of the highest
rate, and compares the forecasts at its end with those of `predict_df` on the whole history. The
kills end the server by SIGKILL at random moments while it saves and answers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from deltaflow import (
    IrregularDataModule,
    IrregularDataset,
    IrregularPredictor,
    LiveForecaster,
    predict_df,
)
from deltaflow.saving import write
from deltaflow.tables import as_markdown
from deltaflow.tasks import irregular_sine

START = pd.Timestamp("2024-01-01")
BATCH = 10_000
CLIENTS = 8
FIGURES: list[dict[str, Any]] = []
RANDOM = np.random.default_rng(0)


def note(part: str, figure: str, value: float, unit: str) -> None:
    """Keep a figure, and print it."""
    FIGURES.append({"part": part, "figure": figure, "value": value, "unit": unit})
    print(f"{part}: {figure}: {value:.4g} {unit}", flush=True)


def make_predictor() -> IrregularPredictor:
    """A predictor with untrained weights: what it costs does not depend on them."""
    data = IrregularDataset.from_long_dataframe(irregular_sine(num_series=8))
    reader = IrregularDataModule(data, prediction_length=8, context_length=64).reader
    network = {"encoder": "gru_flow", "network": "joint", "hidden_size": 32}
    return IrregularPredictor(reader.to_dict(), prediction_length=8, network=network)


def rows(items: Any, seconds: Any) -> pd.DataFrame:
    """An observation of each item, whose value follows from the time."""
    times = START + pd.to_timedelta(seconds, unit="s")
    return pd.DataFrame({"item_id": items, "timestamp": times, "target": np.sin(seconds)})


def questions(item: str, after: float, count: int = 10) -> pd.DataFrame:
    """Every ten minutes behind a time, a question about an item."""
    return rows(item, after + 600.0 * np.arange(1, count + 1)).drop(columns="target")


def latencies(action: Callable[[int], object], count: int) -> np.ndarray:
    """The milliseconds of each call, after some to warm up."""
    taken = []
    for number in range(count + 20):
        began = time.perf_counter()
        action(number)
        taken.append(time.perf_counter() - began)
    return 1e3 * np.array(taken[20:])


def resident() -> float:
    """Megabytes of memory that this process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


def steps(output: Path) -> None:
    """Rates and latencies within the process."""
    live = LiveForecaster(make_predictor())
    items = [f"item{number:06d}" for number in range(BATCH)]
    batches = [rows(items, np.full(BATCH, 60.0 * step)) for step in range(13)]
    rates = []
    for batch in batches:
        began = time.perf_counter()
        live.update(batch)
        rates.append(BATCH / (time.perf_counter() - began))
    note("steps", "observations a second, 10 000 new items", rates[0], "1/s")
    note("steps", "observations a second, 10 000 known items", float(np.median(rates[1:])), "1/s")
    singles = [rows(["one"], [60.0 * step]) for step in range(420)]
    asked = questions("one", 1e6)
    for name, action in (
        ("update of one item", lambda number: live.update(singles[number])),
        ("forecast of ten queries", lambda number: live.forecast(asked)),
    ):
        began = time.process_time()
        taken = latencies(action, 400)
        used = 1e3 * (time.process_time() - began) / 420
        note("steps", f"{name}, median", float(np.median(taken)), "ms")
        note("steps", f"{name}, fastest tenth", float(np.quantile(taken, 0.1)), "ms")
        note("steps", f"{name}, mean processor time", used, "ms")


def growth(output: Path) -> None:
    """The cost of an update after 10 rows and after 100 000."""
    live = LiveForecaster(make_predictor())
    live.update(rows("young", np.arange(10.0)))
    history, began = rows("old", np.arange(1e5)), time.perf_counter()
    live.update(history)
    note("growth", "the first 100 000 rows of an item", time.perf_counter() - began, "s")
    ratios = []
    for start in range(200_000, 204_000, 100):
        medians = []
        for item in ("young", "old"):
            batches = [rows([item], [float(start + step)]) for step in range(100)]
            medians.append(
                np.median(latencies(lambda number, b=batches: live.update(b[number]), 80))
            )
        ratios.append(medians[1] / medians[0])
    note("growth", "cost of an update, 100 000 rows to 10 rows", float(np.median(ratios)), "")


def million(output: Path) -> None:
    """A million items: memory, snapshot, reload."""
    before = resident()
    live = LiveForecaster(make_predictor())
    for start in range(0, 1_000_000, BATCH):
        live.update(rows([f"item{start + n:07d}" for n in range(BATCH)], np.full(BATCH, 60.0)))
    note("million", "items", len(live), "")
    note("million", "bytes per item, without its name", live.bytes_per_item, "B")
    note("million", "process, libraries included", resident(), "MB")
    note("million", "process before the first item", before, "MB")
    path = output / "million"
    began = time.perf_counter()
    live.save(path)
    note("million", "snapshot", time.perf_counter() - began, "s")
    note("million", "size of the snapshot", path.stat().st_size / 1e6, "MB")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    note("million", "peak of the process, while saving", peak, "MB")
    del live
    began = time.perf_counter()
    again = LiveForecaster.load(path)
    note("million", "reload", time.perf_counter() - began, "s")
    assert len(again) == 1_000_000
    path.unlink()


class Client:
    """A connection to a server that stays open."""

    def __init__(self, port: int) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def __call__(self, method: str, path: str, frame: pd.DataFrame | None = None) -> Any:
        """Send a request, and return its answer."""
        body = None if frame is None else as_json(frame)
        return self.send(method, path, body)

    def send(self, method: str, path: str, body: bytes | None = None) -> Any:
        """Send a request whose body is ready."""
        headers = {"Content-Type": "application/json"} if body else {}
        self.connection.request(method, path, body, headers)
        answer = self.connection.getresponse()
        content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{path}: {answer.status} {content[:500]!r}")
        return json.loads(content)


def as_json(frame: pd.DataFrame) -> bytes:
    """The body of a request."""
    frame = frame.assign(timestamp=frame["timestamp"].map(pd.Timestamp.isoformat))
    return json.dumps({"rows": frame.to_dict("records")}).encode()


def observation(item: str, second: int) -> bytes:
    """The body of a request with one row, made without pandas, which would take the client longer
    than the server takes to read it."""
    time = START + timedelta(seconds=second)
    row = {"item_id": item, "timestamp": time.isoformat(), "target": math.sin(second)}
    return json.dumps({"rows": [row]}).encode()


@contextmanager
def served(output: Path, *options: str) -> Iterator[tuple[int, subprocess.Popen]]:
    """Start a server on a free port, and stop it at the end."""
    command = [sys.executable, "-m", "deltaflow", "serve", str(output / "model"), "--port", "0"]
    process = subprocess.Popen(
        [*command, *options], stderr=subprocess.PIPE, text=True, env=os.environ
    )
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "running on" in line)
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield int(line.split("running on ")[1].split()[0].rpartition(":")[2]), process
    finally:
        process.terminate()
        process.wait()


def clients(
    port: int, action: Callable[[Client, int], None], seconds: float, pause: float
) -> np.ndarray:
    """Let clients act for some time, each with a pause after each answer; return milliseconds."""
    taken: list[float] = []
    end = time.perf_counter() + seconds

    def run(number: int) -> None:
        client, random = Client(port), np.random.default_rng(number)
        while time.perf_counter() < end:
            began = time.perf_counter()
            action(client, number)
            taken.append(1e3 * (time.perf_counter() - began))
            if pause:
                time.sleep(random.uniform(0, 2 * pause))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return np.array(taken)


def http_latency(output: Path) -> None:
    """Latency over HTTP with eight clients: at their own pace, and one request after the other."""
    with served(output) as (port, _):
        clock = [0] * CLIENTS
        items = [f"item{number}" for number in range(CLIENTS)]
        Client(port)("POST", "/update", rows(items, np.zeros(CLIENTS)))
        asked = [as_json(questions(item, 1e6)) for item in items]

        def ask(client: Client, number: int) -> None:
            client.send("POST", "/forecast", asked[number])

        def tell(client: Client, number: int) -> None:
            clock[number] += 1
            client.send("POST", "/update", observation(items[number], clock[number]))

        for name, action in (("forecast of ten queries", ask), ("update of one item", tell)):
            for pace, pause in (("each every 200 ms", 0.2), ("without a pause", 0.0)):
                clients(port, action, 2.0, pause)  # a server that has just begun is slower
                taken = clients(port, action, 15.0, pause)
                for level in (0.5, 0.99):
                    figure = f"{name}, 8 clients {pace}, {level:.0%} quantile"
                    note("http", figure, float(np.quantile(taken, level)), "ms")
                note("http", f"{name}, 8 clients {pace}", len(taken) / 15.0, "requests/s")


def soak(output: Path, minutes: float, size: int = 1000) -> None:
    """Updates over HTTP at half of the highest rate, with forecasts among them."""
    items = np.array([f"item{number:05d}" for number in range(20_000)])
    watched = items[:: len(items) // 20]
    history: list[pd.DataFrame] = []
    path = output / "soak"
    path.unlink(missing_ok=True)
    with served(output, "--snapshot", str(path), "--every", "20") as (port, process):
        client, step = Client(port), 0

        def send() -> None:
            nonlocal step
            place = step * size % len(items)
            batch = rows(items[place : place + size], np.full(size, float(step)))
            client("POST", "/update", batch)
            history.append(batch[batch["item_id"].isin(watched)])
            step += 1

        for _ in range(len(items) // size):
            send()
        began, first = time.perf_counter(), step
        while time.perf_counter() - began < 20:
            send()
        rate = (step - first) / (time.perf_counter() - began)
        note("soak", "highest rate", rate * size, "observations/s")
        began, first, held, due = time.perf_counter(), step, [], 0.0
        while (now := time.perf_counter() - began) < 60 * minutes:
            send()
            if step % 10 == 0:
                client("POST", "/forecast", questions(str(RANDOM.choice(watched)), float(step)))
            if now >= due:
                status = Path(f"/proc/{process.pid}/statm").read_text().split()
                held.append(int(status[1]) * resource.getpagesize() / 1e6)
                due += 15.0
            time.sleep(max(0.0, 2 * (step - first) / rate - (time.perf_counter() - began)))
        note("soak", "minutes", minutes, "min")
        note("soak", "rate", (step - first) * size / (60 * minutes), "observations/s")
        note("soak", "memory after a tenth of the time", held[len(held) // 10], "MB")
        note("soak", "memory at the end", held[-1], "MB")
        note("soak", "largest memory", max(held), "MB")
        future = pd.concat([questions(item, float(step), 3) for item in watched])
        told = pd.DataFrame(client("POST", "/forecast", future)["rows"])
    past = pd.concat(history).sort_values(["item_id", "timestamp"], kind="stable")
    whole = LiveForecaster(make_predictor()).predictor
    once = predict_df(whole, past, future)
    apart = (told["predictions"] - once["predictions"]).abs() / (once["0.9"] - once["0.1"])
    note("soak", "rows per watched item", len(past) / len(watched), "")
    note("soak", "largest difference to predict_df, in widths of the interval", apart.max(), "")


def kills(output: Path, count: int = 20) -> None:
    """Kill the server at random moments while it saves and answers, and start it again."""
    path = output / "kills"
    path.unlink(missing_ok=True)
    whole = LiveForecaster(make_predictor()).predictor
    safe = sent = wrong = 0
    bulk = [f"bulk{number}" for number in range(20_000)]
    for number in range(count):
        with served(output, "--snapshot", str(path), "--every", "0.05") as (port, process):
            client = Client(port)
            if number == 0:
                client("POST", "/update", rows(bulk, np.zeros(len(bulk))))
                client("POST", "/update", rows(["a"], [0.0]))
                sent = 1
            about = client("GET", "/items/a")
            known = about["num_observations"]
            assert safe <= known <= sent, (safe, known, sent)
            asked = questions("a", float(known))
            told = pd.DataFrame(client("POST", "/forecast", asked)["rows"])
            once = predict_df(whole, rows("a", np.arange(float(known))), asked)
            wrong += int((told["predictions"] - once["predictions"]).abs().max() > 1e-4)
            sent, end = known, time.perf_counter() + RANDOM.uniform(0.2, 1.5)
            timer = threading.Timer(
                end - time.perf_counter(), process.send_signal, [signal.SIGKILL]
            )
            timer.start()
            try:
                while True:
                    client("POST", "/update", rows(["a"], [float(sent)]))
                    sent += 1
                    if client("GET", "/health")["snapshot"]["behind"] == 0:
                        safe = sent
            except (OSError, http.client.HTTPException):
                sent += 1  # the one that was under way may have been read
            timer.join()
    note("kills", "kills", count, "")
    note("kills", "snapshots that did not load, or lacked what they had been said to hold", 0, "")
    note("kills", "wrong answers", wrong, "")
    note("kills", "updates", sent, "")


def main() -> None:
    """Measure the parts that are asked for, and write a row per figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("live_soak"))
    parser.add_argument("--minutes", type=float, default=10.0, help="of the soak")
    parts = {
        "steps": steps,
        "growth": growth,
        "million": million,
        "http": http_latency,
        "soak": lambda output: soak(output, given.minutes),
        "kills": kills,
    }
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.output.mkdir(parents=True, exist_ok=True)
    make_predictor().serialize(given.output / "model")
    for part in given.parts:
        parts[part](given.output)
    table = pd.DataFrame(FIGURES)
    write(given.output / "figures.csv", table.to_csv(index=False))
    print(as_markdown(table.set_index("part").astype(str)))


if __name__ == "__main__":
    main()
