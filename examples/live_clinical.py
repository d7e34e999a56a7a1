"""Replay a patient minute by minute, and draw how the forecast moves.

A GRU flow learns from 240 intensive-care stays. Then the measurements of a patient whom it has not
seen arrive one after the other, and each minute it is asked twice: for the heart rate in an hour,
and for that at hour 24. The figure is written to live_clinical.png.

python examples/live_clinical.py [--quick]
"""

import sys

import pandas as pd
from matplotlib.figure import Figure

from deltaflow import GRUFlowEstimator, LiveForecaster, split_items
from deltaflow.tasks import clinical_dataset, clinical_sample

CHANNEL, HOUR = "HR", 60.0
BLUE, GREY = "#2166ac", "0.2"


def replay(live: LiveForecaster, stay: pd.DataFrame, end: float) -> pd.DataFrame:
    """Return what is forecast of a patient at each minute, a row per minute and question."""
    patient, arrived = stay["patient"].iloc[0], dict(list(stay.groupby("minutes")))
    moved = []
    for minute in range(int(end)):
        if minute in arrived:
            live.update(arrived[minute])
        if patient in live:
            ahead = pd.DataFrame({"patient": patient, "minutes": [minute + HOUR, end]})
            told = live.forecast(ahead, quantile_levels=[0.1, 0.9])
            told = told[told["target_name"] == CHANNEL]
            moved.append(told.assign(asked_at=float(minute), question=["ahead", "end"]))
    return pd.concat(moved, ignore_index=True)


def draw(moved: pd.DataFrame, stay: pd.DataFrame, end: float) -> Figure:
    """Draw the forecasts above each other: one hour ahead, and of a fixed time."""
    measured = stay[["minutes", CHANNEL]].dropna()
    figure = Figure(figsize=(9, 6), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True, sharey=True)
    for axes, question, time in ((top, "ahead", "minutes"), (bottom, "end", "asked_at")):
        own = moved[moved["question"] == question]
        hours = own[time] / HOUR
        axes.fill_between(hours, own["0.1"], own["0.9"], color=BLUE, alpha=0.2, lw=0,
                          label="80 % interval")  # fmt: skip
        axes.plot(hours, own["predictions"], color=BLUE, lw=1.4, label="median")
        axes.plot(measured["minutes"] / HOUR, measured[CHANNEL], "o", ms=3, color=GREY,
                  label="measured")  # fmt: skip
        axes.set_ylabel(f"{CHANNEL} (beats/min)")
        axes.spines[["top", "right"]].set_visible(False)
    top.set_title("forecast one hour before, at each minute", loc="left", fontsize=10)
    bottom.set_title(f"forecast of hour {end / HOUR:.0f}, as it stood at each minute", loc="left",
                     fontsize=10)  # fmt: skip
    nearest = measured.loc[[(measured["minutes"] - end).abs().idxmin()]]
    bottom.plot(nearest["minutes"] / HOUR, nearest[CHANNEL], "o", ms=7, mfc="none", color=BLUE,
                label="what it was")  # fmt: skip
    bottom.set_xlabel("hours since admission")
    bottom.set_xlim(0, end / HOUR + 1)
    for axes in (top, bottom):
        axes.legend(frameon=False, fontsize=8, ncols=4)
    return figure


def main(quick: bool) -> None:
    training, unseen = split_items(clinical_dataset(), 0.2, seed=0)
    estimator = GRUFlowEstimator(
        prediction_length=16,
        blend=False,  # networks alone, whose states are small
        trainer_kwargs={"max_epochs": 12, "fast_dev_run": quick},
        seed=0,
    )
    predictor = estimator.train(training)
    live = LiveForecaster(predictor, item_id="patient", timestamp="minutes")

    end = (2 if quick else 24) * HOUR
    stays = {str(patient): stay for patient, stay in clinical_sample().groupby("patient")}
    often = max((e["item_id"] for e in unseen), key=lambda patient: stays[patient][CHANNEL].count())
    moved = replay(live, stays[often], end)
    draw(moved, stays[often], end).savefig("live_clinical.png", dpi=110)

    shown = moved[moved["question"] == "end"].set_index("asked_at")[["predictions", "0.1", "0.9"]]
    print(f"The heart rate of patient {often} at hour {end / HOUR:.0f}, as forecast at minute …")
    print(shown.iloc[:: max(1, len(shown) // 8)].round(1))
    print(f"{live}; figure: live_clinical.png")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
