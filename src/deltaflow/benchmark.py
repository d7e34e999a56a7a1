"""The benchmark: the cost of every encoder, relative to a plain `torch.nn.GRU` of the same width.

    deltaflow benchmark --output benchmark

The plain GRU, the floor, reads as many inputs per observation as the encoders' cells. It is timed
in the same process and in every round, so that ratios to it are reliable even on a busy machine.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from torch.utils.benchmark import timer

from deltaflow.encoders import ENCODERS, make_encoder
from deltaflow.forecast.predictor import find_device
from deltaflow.process import threads
from deltaflow.randomness import seeded
from deltaflow.saving import replacing_file, write
from deltaflow.tables import as_markdown, as_rich
from deltaflow.tasks import clinical_task
from deltaflow.training.estimator import GRUFlowEstimator

FLOOR = "nn.GRU"

PASSES = {"train": "training step", "forward": "forward only"}
"""The timed passes: their names in the tables, and in words."""

GROWTH = {
    "observations": (50, 100, 200, 400, 800),
    "hidden_size": (16, 32, 64, 128, 256),
    "series": (16, 64, 256),
    "queries": (1, 10, 100, 1000),
    "long": (1_600, 10_000, 100_000),
}
"""The sizes along each axis of growth; ``long`` counts the observations of a single series."""

LONG_READERS = ("linear_flow", "coupling_flow", "gru")
"""Encoders that read series of any length in a reasonable time."""

MIN_ROUNDS, MAX_ROUNDS = 3, 30

OVERTIME = 10
"""A call stops taking part in rounds after this many times its ``seconds``, even if they are
few."""

Tell: TypeAlias = Callable[..., None]
"""Called between two measurements with the name of the next one, in parts."""


@dataclass(frozen=True)
class Workload:
    """The work of one call.

    An observation has 16 inputs: 7 values and their masks, a covariate and the gap.

    Attributes
    ----------
    series, observations
        The size of the batch.
    hidden_size
        The width of encoders and floor.
    queries
        The number of queries per series.
    encoders
        The encoders to time.
    """

    series: int = 64
    observations: int = 100
    hidden_size: int = 32
    queries: int = 1
    encoders: Sequence[str] = tuple(ENCODERS)

    num_channels, num_features = 7, 1

    def batch(self, device: torch.device) -> dict[str, Tensor]:
        """Draw a batch for an encoder, with half of the values observed."""
        random = torch.Generator().manual_seed(0)
        shape = self.series, self.observations
        observed = torch.rand(*shape, self.num_channels, generator=random) < 0.5
        batch = {
            "values": torch.randn(observed.shape, generator=random) * observed,
            "observed": observed,
            "delta_t": torch.empty(shape).exponential_(generator=random),
            "lengths": torch.full((self.series,), self.observations),
            "features": torch.randn(*shape, self.num_features, generator=random),
        }
        return {name: part.to(device) for name, part in batch.items()}

    @property
    def num_inputs(self) -> int:
        """The number of inputs of the floor: values, their mask, features and the gap."""
        return 2 * self.num_channels + self.num_features + 1

    def inputs(self, device: torch.device) -> Tensor:
        """Draw the inputs of the floor."""
        return torch.randn(self.series, self.observations, self.num_inputs, device=device)

    def modules(self, device: torch.device) -> dict[str, Any]:
        """Return the floor and the encoders."""
        sizes = self.num_channels, self.num_features, self.hidden_size
        with seeded(0):
            encoders = {name: make_encoder(name, *sizes) for name in self.encoders}
            floor = nn.GRU(self.num_inputs, self.hidden_size, batch_first=True)
        return {name: module.to(device) for name, module in {FLOOR: floor, **encoders}.items()}

    def grown(self, axis: str, size: int) -> Workload:
        """Return the workload with another size along an axis of `GROWTH`."""
        if axis == "long":
            return replace(self, series=1, observations=size, encoders=LONG_READERS)
        return replace(self, **{axis: size})


def benchmark(
    output: Path,
    *,
    quick: bool = False,
    device: str = "cpu",
    workload: Workload | None = None,
    growth: Mapping[str, Sequence[int]] | None = None,
    seconds: float = 1.5,
) -> pd.DataFrame:
    """Time all encoders, print the tables, and write them to ``output``, with a figure.

    Parameters
    ----------
    output
        The directory for ``benchmark.csv``, ``benchmark_growth.csv``, ``benchmark_epoch.csv``,
        ``benchmark.md``, which has all three, and ``benchmark.png``.
    quick
        Whether to stop after the first table. It is written as CSV and Markdown.
    device
        The device.
    workload
        The sizes of the first table, from which growth starts.
    growth
        The sizes along each axis; by default `GROWTH`.
    seconds
        The measuring time of each number.

    Returns
    -------
    pandas.DataFrame
        The first table, with the columns ``encoder``, ``pass``, ``ms`` and ``ratio``.
    """
    place, workload, console = find_device(device), workload or Workload(), Console()
    growth = {} if quick else growth or GROWTH
    output.mkdir(parents=True, exist_ok=True)
    texts: list[str] = []

    def show(name: str, table: pd.DataFrame, shown: dict[str, pd.DataFrame]) -> None:
        write(output / f"{name}.csv", table.to_csv(index=False))
        for title, part in shown.items():
            heads = {name: str(name).replace(", ", "\n") for name in part}
            progress.console.print(as_rich(part.rename(columns=heads), title))
            texts.append(f"## {title}\n\n{as_markdown(part)}")
        write(output / "benchmark.md", "\n".join(texts))

    text = TextColumn("{task.description}")
    columns = BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), text
    # A thread that draws the bar would disturb the measurements, so it is drawn between them.
    bars = Progress(*columns, console=console, auto_refresh=False, transient=True)
    # Tensors this small do not benefit from several threads.
    with threads(1), bars as progress:
        bar = progress.add_task("", total=1 if quick else 2 + sum(map(len, growth.values())))

        def tell(*what: str) -> None:
            progress.update(bar, description=" · ".join(what))
            progress.refresh()

        table = time_reading(workload, place, seconds, tell)
        show("benchmark", table, _costs(table, workload))
        progress.advance(bar)
        if quick:
            return table
        grown = []
        for axis, sizes in growth.items():
            measure = time_queries if axis == "queries" else time_reading
            for size in sizes:
                tell_growth = partial(tell, axis, str(size))
                part = measure(workload.grown(axis, size), place, seconds / 3, tell_growth)
                grown.append(part.assign(axis=axis, size=size))
                progress.advance(bar)
        grown = pd.concat(grown, ignore_index=True)
        shown = grown[(grown["pass"] == "train") | (grown["axis"] == "queries")]
        show("benchmark_growth", grown, _growth(shown))
        tell("epoch")
        epoch = time_epoch(place)
        shares = epoch["share"].map("{:.0%}".format)
        parts = pd.DataFrame({"ms per batch": epoch["ms"].map(_digits), "share": shares})
        title = "training of gru_flow on the clinical sample"
        show("benchmark_epoch", epoch, {title: parts.set_axis(epoch["part"])})
        progress.advance(bar)
    with replacing_file(output / "benchmark.png") as file:
        draw(table, shown).savefig(file, dpi=120)
    return table


def time_reading(
    workload: Workload, device: torch.device, seconds: float, tell: Tell
) -> pd.DataFrame:
    """Time the reading of a batch by every encoder and by the floor, with and without gradients."""
    batch, inputs = workload.batch(device), workload.inputs(device)
    modules = workload.modules(device)

    def read(name: str) -> Tensor:
        return modules[name](inputs)[1] if name == FLOOR else modules[name](**batch).hidden

    def train(name: str) -> None:
        modules[name].zero_grad()
        read(name).sum().backward()

    def forward(name: str) -> None:
        with torch.no_grad():
            read(name)

    tables = []
    for label, run in (("train", train), ("forward", forward)):
        calls = {name: partial(run, name) for name in modules}
        tables.append(_timed(label, calls, seconds, partial(tell, PASSES[label])))
    return pd.concat(tables, ignore_index=True)


def time_queries(
    workload: Workload, device: torch.device, seconds: float, tell: Tell
) -> pd.DataFrame:
    """Time the answers to queries after reading a batch; the floor reads a batch."""
    batch = workload.batch(device)
    gaps = torch.rand(workload.series, workload.queries, device=device).cumsum(-1)
    floor, *encoders = workload.modules(device).values()
    calls: dict[str, Callable[[], object]] = {FLOOR: partial(floor, workload.inputs(device))}
    with torch.no_grad():
        for name, encoder in zip(workload.encoders, encoders, strict=True):
            calls[name] = partial(encoder.evolve, encoder(**batch), gaps)
        return _timed("forward", calls, seconds, tell)


def time_epoch(device: torch.device) -> pd.DataFrame:
    """Time the parts of training a GRU flow on the clinical sample, per batch."""
    task, num_batches = clinical_task(), 40
    estimator = GRUFlowEstimator(
        prediction_length=task.prediction_length, num_batches_per_epoch=num_batches, seed=0
    )
    data = estimator.create_data_module(task.training)
    with seeded(0):
        network = estimator.create_lightning_module(data).network.to(device)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    spent: dict[str, float] = defaultdict(float)
    for _ in range(2):  # the first one to warm up
        spent.clear()
        with _stopwatch(spent, "data"):
            batches = iter(data.train_dataloader())
        for _ in range(num_batches):
            with _stopwatch(spent, "data"):
                batch = next(batches)
                batch = type(batch)(*(part.to(device) for part in batch))
            with _stopwatch(spent, "forward"):
                total, count = network.loss(batch)
                loss = total / count.clamp(min=1)
            with _stopwatch(spent, "backward"):
                network.zero_grad()
                loss.backward()
            with _stopwatch(spent, "optimiser"):
                optimiser.step()
    parts = pd.DataFrame(spent.items(), columns=["part", "ms"])
    parts["ms"] *= 1e3 / num_batches
    return parts.assign(share=parts["ms"] / parts["ms"].sum())


def draw(table: pd.DataFrame, grown: pd.DataFrame) -> Figure:
    """Plot the ratios of the training step, and the costs along each axis."""
    along = list(grown.groupby("axis", sort=False))
    columns = 1 + len(along)
    figure = Figure(figsize=(4 * columns, 4), layout="constrained")
    panels = figure.subplots(1, columns)
    ratios = table[table["pass"] == "train"].set_index("encoder")["ratio"].iloc[::-1]
    panels[0].barh(ratios.index, ratios, color="#2166ac")
    panels[0].set(xscale="log", xlabel=f"training step, as a multiple of {FLOOR}")
    for panel, (axis, own) in zip(panels[1:], along, strict=True):
        for encoder, line in own.groupby("encoder", sort=False):
            if axis != "queries" or encoder != FLOOR:
                panel.plot(line["size"], line["ms"], marker="o", ms=3, lw=1, label=encoder)
        label = f"ms, {PASSES[own['pass'].iloc[0]]}"
        panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=label)
    panels[-1].legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure


def _timed(
    label: str, calls: Mapping[str, Callable[[], object]], seconds: float, tell: Tell
) -> pd.DataFrame:
    """Time the calls of a pass in turn: the medians of their times, and of the ratios to the floor.

    Each call takes part in the rounds until it has used up its ``seconds``, and in at least
    `MIN_ROUNDS` of them unless it is very slow. What cuDNN does not support at this size is NaN.
    """
    able = []
    for name, call in calls.items():
        tell(f"{name}, to warm up")
        try:
            call()
        except RuntimeError as error:
            if "NOT_SUPPORTED" not in str(error):
                raise
        else:
            able.append(name)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(MAX_ROUNDS):
        budget = OVERTIME * seconds if 0 < number < MIN_ROUNDS else seconds
        running = [n for n in able if n == FLOOR or not number or sum(times[n]) < budget]
        if not set(running) - {FLOOR}:
            break
        for name in running:
            tell(f"{name}, round {number + 1}")
            began = timer()
            calls[name]()
            times[name].append(timer() - began)
    rounds = pd.DataFrame({name: pd.Series(own, dtype=float) for name, own in times.items()})
    ratios = rounds.div(rounds[FLOOR], axis=0)
    columns = {"pass": label, "ms": 1e3 * rounds.median(), "ratio": ratios.median()}
    return pd.DataFrame(columns).rename_axis("encoder").reset_index()


@contextmanager
def _stopwatch(spent: dict[str, float], name: str) -> Iterator[None]:
    """Add the time spent inside, until the device has finished its work."""
    began = timer()
    yield
    spent[name] += timer() - began


def _costs(table: pd.DataFrame, workload: Workload) -> dict[str, pd.DataFrame]:
    """Return the first table as text, by its title."""
    columns = {}
    for label, heading in PASSES.items():
        own = table[table["pass"] == label].set_index("encoder")
        columns[f"{heading}, ms"] = own["ms"].map(_digits)
        columns[f"{heading}, × {FLOOR}"] = own["ratio"].map(_digits)
    title = f"{workload.series} series × {workload.observations} observations × 16 inputs"
    return {f"{title}, hidden size {workload.hidden_size}": pd.DataFrame(columns)}


def _growth(grown: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the growth along each axis as text, by its title."""
    tables = {}
    for axis, own in grown.groupby("axis", sort=False):
        wide = own.pivot_table(index="encoder", columns="size", values="ms", sort=False)
        title = f"ms by {axis}, {'answers' if axis == 'queries' else PASSES['train']}"
        tables[title] = wide.map(_digits).rename(columns=str)
    return tables


def _digits(number: float) -> str:
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark from the command line, and return its exit status."""
    parser = argparse.ArgumentParser(
        prog="deltaflow benchmark", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "--output", type=Path, default=Path("benchmark"), help="directory to write to"
    )
    parser.add_argument(
        "--quick", action="store_true", help="measure one size only, not the growth with size"
    )
    parser.add_argument("--device", default="cpu", help="where to run, such as cuda")
    options = parser.parse_args(arguments)
    benchmark(options.output, quick=options.quick, device=options.device)
    print(f"Written to {options.output}/")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
