"""Draw the errors of encoders on all data of the documentation, relative to a GRU fed Δt.

    python scripts/draw_encoders.py

reads `docs/results/encoders.csv`, which repeats figures of the result pages, and writes
`docs/results/encoders.png`.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

FOLDER = Path(__file__).parent.parent / "docs" / "results"

BASELINE = "gru"

MARKERS = {
    "gru_d": "v",
    "gru_flow": "o",
    "resnet_flow": "s",
    "coupling_flow": "D",
    "linear_flow": "^",
    "ode_rnn": "x",
    "gru_ode": "+",
    "neural_cde": "1",
}


def main() -> None:
    """Read the errors, and draw them."""
    table = pd.read_csv(FOLDER / "encoders.csv").iloc[::-1]
    ratios = table[list(MARKERS)].div(table[BASELINE], axis=0)
    figure = Figure(figsize=(8, 0.4 * len(table) + 1.2), layout="constrained")
    axes = figure.subplots()
    places = range(len(table))
    for number, (encoder, marker) in enumerate(MARKERS.items()):
        if ratios[encoder].notna().any():
            axes.plot(
                ratios[encoder], places, marker, color=f"C{number}", label=encoder, alpha=0.85
            )
    axes.axvline(1, color="0.4", lw=1)
    axes.set(xscale="log", xlabel="error ÷ that of a GRU fed Δt (less is better)")
    ticks = [0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.3]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(places, [f"{own.data} ({own.error})" for own in table.itertuples()])
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.93")
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(FOLDER / "encoders.png", dpi=110)


if __name__ == "__main__":
    main()
