"""The demo: forecasts of the vital signs of unseen intensive-care patients.

    python -m deltaflow.demo --output demo

A GRU flow learns from some patients. For the others it reads the first 24 hours and forecasts the
next 24, at the irregular times at which their vital signs were measured. GluonTS's evaluation
compares it with the baseline that repeats the last value.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import yaml
from gluonts.dataset.split import TestData
from rich.console import Console

from deltaflow import (
    DeltaflowPredictor,
    GRUFlowEstimator,
    HoldPredictor,
    IrregularDataset,
    TimeSplitter,
    plot_forecasts,
    predict_df,
    split_items,
)
from deltaflow.compare.score import accuracy
from deltaflow.process import one_thread
from deltaflow.saving import replacing_file, write
from deltaflow.tables import as_markdown, as_rich
from deltaflow.tasks import VITALS, clinical_dataset, clinical_sample

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POOLED, AVERAGE = "values pooled", "mean of channels"

COLUMNS = {
    "mean_weighted_quantile_loss": ("quantile loss", "{:.3f}"),
    "mse": ("MSE", "{:,.1f}"),
    "coverage_80": ("80 % coverage", "{:.1%}"),
}
"""The measures: name in the CSV file, heading and format in the table."""

CAPTION = (
    "Quantile loss: GluonTS's mean weighted quantile loss over the nine deciles. "
    "80 % coverage: the share of the values within the 80 % interval."
)


@one_thread()
def main(arguments: Sequence[str] | None = None) -> pd.DataFrame:
    """Run the demo, and return its scores."""
    parser = argparse.ArgumentParser(
        prog="python -m deltaflow.demo", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--output", type=Path, default=Path("demo"), help="directory to write to")
    parser.add_argument(
        "--quick", action="store_true", help="train only briefly, to try the demo out"
    )
    options = parser.parse_args(arguments)
    if find_spec("matplotlib") is None:
        parser.error("the figure needs matplotlib: pip install 'deltaflow[plot]'")

    began = time.perf_counter()
    config = read_config()
    if options.quick:
        config["trainer"]["fast_dev_run"] = True
    try:
        scores = run(config, options.output, Console())
    except OSError as error:  # for example a full disk
        parser.error(str(error))
    print(f"Done in {time.perf_counter() - began:.0f} s; table and figure: {options.output}/")
    return scores


def run(config: dict[str, Any], output: Path, console: Console) -> pd.DataFrame:
    """Train, backtest, print the table, and write table, figure and predictor."""
    output.mkdir(parents=True, exist_ok=True)
    split = config["split"]
    data = clinical_dataset()
    rest, test = split_items(data, split["test_share"], seed=split["seed"])
    training, validation = split_items(rest, split["validation_share"], seed=split["seed"])
    splitter = TimeSplitter(after=split["after"], horizon=split["horizon"])
    length = splitter.prediction_length(data)
    console.print(f"Training on {len(training)} patients, validation on {len(validation)}")

    estimator = GRUFlowEstimator(
        length,
        **config["data"],
        **config["model"],
        **config["optimizer"],
        seed=config["seed"],
        trainer_kwargs=config["trainer"],
    )
    predictor = estimator.train(training, validation)
    predictor.serialize(output / "predictor")

    console.print(f"Backtest on {len(test)} unseen patients: hours 24 to 48, forecast at hour 24")
    instances = splitter.split(test)[1].generate_instances(length)
    models: dict[str, DeltaflowPredictor] = {
        "GRU flow": predictor,
        "hold": HoldPredictor.fit(training, length),
    }
    scores = pd.concat({name: score(model, instances) for name, model in models.items()})
    scores = scores.rename_axis(["model", "channel"])
    write(output / "table.csv", scores.to_csv())
    table = readable(scores)
    write(output / "table.md", as_markdown(table))
    shown = table.rename(columns=_in_lines)
    console.print(as_rich(shown.rename_axis("vital sign"), caption=CAPTION, sections=[AVERAGE]))

    figure = draw(predictor, test, **config["figure"])
    with replacing_file(output / "forecasts.png") as file:
        figure.savefig(file, dpi=100)
    return scores


def read_config() -> dict[str, Any]:
    """Read the settings, which are inside the package in a wheel and beside it in a checkout."""
    packaged = resources.files("deltaflow") / "configs" / "demo.yaml"
    checkout = Path(__file__).parents[2] / "configs" / "demo.yaml"
    file = packaged if packaged.is_file() else checkout
    return yaml.safe_load(file.read_text(encoding="utf-8"))


def score(model: DeltaflowPredictor, instances: TestData) -> pd.DataFrame:
    """Backtest a model: a row per channel, their mean, and all values pooled.

    The pool combines values of different units, so that channels with large numbers dominate it. A
    weighted quantile loss has no unit, so its mean over the channels weights them equally; a mean
    of squared errors in different units would be meaningless, and is left out.
    """
    forecasts = list(model.predict(instances.input))
    scores = accuracy(forecasts, instances, list(VITALS), np.ones(len(VITALS)))

    def rows(measure: str) -> list[float]:
        by_channel = [scores[f"{measure}[{vital}]"] for vital in VITALS]
        return [*by_channel, scores[f"balanced_{measure}"], scores[measure]]

    columns = {measure: rows(measure) for measure in COLUMNS}
    table = pd.DataFrame(columns, index=pd.Index([*VITALS, AVERAGE, POOLED]))
    table.loc[AVERAGE, "mse"] = np.nan
    return table


def readable(scores: pd.DataFrame) -> pd.DataFrame:
    """Return the scores as text: a row per channel, and the models side by side."""
    table = {
        f"{heading}: {model}": own[measure].map(form.format).replace("nan", "").droplevel("model")
        for measure, (heading, form) in COLUMNS.items()
        for model, own in scores.groupby("model", sort=False)
    }
    units = {channel: f"{channel} ({unit})" for channel, unit in VITALS.items()}
    return pd.DataFrame(table).rename(index=units).rename_axis(None)


def draw(
    predictor: DeltaflowPredictor, test: IrregularDataset, patients: int, channels: Sequence[str]
) -> Figure:
    """Plot forecasts of the test patients whose rarest channel was measured most often.

    The queries lie on a grid of half an hour, regardless of the times of measurement.
    """
    grid = np.arange(24 * 60, 48 * 60 + 1, 30)
    stays = {str(patient): stay for patient, stay in clinical_sample().groupby("patient")}

    def rarest(patient: str) -> int:
        measured = stays[patient].loc[:, list(channels)].notna()
        later = stays[patient]["minutes"] >= grid[0]
        return int(measured.groupby(later).sum().to_numpy().min())

    chosen = sorted([entry["item_id"] for entry in test], key=rarest, reverse=True)[:patients]
    history = pd.concat([stays[patient] for patient in chosen])
    past = history[history["minutes"] < grid[0]]
    asked = pd.MultiIndex.from_product([past["patient"].unique(), grid]).to_frame(
        index=False, name=["patient", "minutes"]
    )
    forecasts = predict_df(
        predictor,
        past,
        asked,
        item_id="patient",
        timestamp="minutes",
        quantile_levels=[0.1, 0.25, 0.75, 0.9],
    )
    for frame in (history, forecasts):
        frame["hours"] = frame["minutes"] / 60
    figure = plot_forecasts(
        forecasts, history, item_id="patient", timestamp="hours", channels=channels
    )
    figure.set_size_inches(10, 7.5)
    panels = np.array(figure.axes).reshape(len(channels), patients)
    for patient, axes in zip(chosen, panels.T, strict=True):
        axes[0].set_title(describe(stays[patient].iloc[0]), fontsize=10)
        axes[-1].set(xlabel="hours since admission", xlim=(0, 48), xticks=range(0, 49, 12))
    for channel, axes in zip(channels, panels, strict=True):
        axes[0].set_ylabel(f"{channel} ({VITALS[channel]})")
    figure.align_ylabels()
    return figure


def _in_lines(heading: str) -> str:
    """Break a heading such as ``quantile loss: hold`` into short lines."""
    measure, model = heading.split(": ")
    return "\n".join([*measure.rsplit(" ", 1), model])


def describe(stay: pd.Series) -> str:
    """Return a patient in words.

    >>> describe(pd.Series({"gender": "female", "age": 73.0, "icu": "medical"}))
    'female, 73 years, medical ICU'
    """
    return f"{stay['gender']}, {stay['age']:.0f} years, {stay['icu']} ICU"


if __name__ == "__main__":
    main()
