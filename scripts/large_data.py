"""Train on a data set in a file and forecast from it as a stream; print the peak memory.

The series are written in chunks, so the whole data set is never in memory:

    python scripts/large_data.py --items 100000 --length 10 --epochs 1

Memory is the resident set of the process. This includes cached pages of the file, which the kernel
can drop at any time. "before" is the memory of Python and its libraries.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from gluonts.dataset.common import DataEntry

from deltaflow import ArrowDataset, GRUFlowEstimator, IrregularDataset, TimeSplitter, write_arrow

CHUNK = 1000


def series(num_items: int, length: int) -> Iterator[DataEntry]:
    """Make noisy daily waves at uneven times, a chunk of items at a time."""
    for first in range(0, num_items, CHUNK):
        random = np.random.default_rng(first)
        items = np.arange(first, min(first + CHUNK, num_items))
        hours = random.exponential(2.0, (len(items), length)).cumsum(axis=1)
        phase = random.random((len(items), 1))
        values = np.sin(2 * np.pi * (hours / 24 + phase)) + 0.1 * random.normal(size=hours.shape)
        frame = pd.DataFrame(
            {"item_id": items.repeat(length), "timestamp": hours.ravel(), "target": values.ravel()}
        )
        yield from IrregularDataset.from_long_dataframe(frame)


def peak_mib() -> float:
    """Return the largest resident set so far (Linux counts it in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Write, train and forecast, and print time and peak memory after each of these."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--length", type=int, default=10, help="observations of each item")
    parser.add_argument("--epochs", type=int, default=1, help="passes over all items")
    parser.add_argument("--forecasts", type=int, help="items to forecast; all by default")
    options = parser.parse_args()
    start = time.perf_counter()

    def tell(what: str) -> None:
        print(
            f"{what:40} {time.perf_counter() - start:7.0f} s  peak {peak_mib():7.0f} MiB",
            flush=True,
        )

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "series.arrow"
        tell("before")
        write_arrow(path, series(options.items, options.length))
        size = path.stat().st_size / 2**20
        tell(f"written: {options.items * options.length} observations, {size:.0f} MiB")

        data = ArrowDataset(path)
        splitter = TimeSplitter(after=f"{1.5 * options.length}h", horizon="6h")
        train, template = splitter.split(data)
        length = splitter.prediction_length(data)
        tell(f"found the longest horizon: {length}")
        estimator = GRUFlowEstimator(
            prediction_length=length,
            context_length=32,
            batch_size=256,
            num_batches_per_epoch=-(-options.items // 256),
            seed=0,
            trainer_kwargs={"max_epochs": options.epochs, "enable_progress_bar": False},
        )
        predictor = estimator.train(train)
        tell(f"trained for {options.epochs * -(-options.items // 256)} steps")

        count = options.forecasts or options.items
        errors = forecasts = 0
        pairs = template.generate_instances(length)
        if count < options.items:
            pairs = splitter.split(data[:count])[1].generate_instances(length)
        for forecast, label in zip(predictor.predict(pairs.input), pairs.label, strict=True):
            errors += np.nansum(np.abs(forecast.quantile(0.5) - label["target"]))
            forecasts += np.isfinite(label["target"]).sum()
        tell(f"forecast {count} series")
        print(f"mean absolute error of the medians: {errors / forecasts:.3f} (noise: 0.08)")


if __name__ == "__main__":
    main()
