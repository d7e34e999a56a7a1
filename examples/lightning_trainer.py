"""Train with Lightning's own Trainer, then plot a forecast on the real time axis.

python examples/lightning_trainer.py [--quick]
"""

import sys

import lightning.pytorch as pl
import matplotlib.pyplot as plt

from deltaflow import (
    ForecastLightningModule,
    IrregularDataModule,
    IrregularDataset,
    TimeSplitter,
    split_items,
)
from deltaflow.tasks import irregular_wave


def main(quick: bool) -> None:
    data = IrregularDataset.from_long_dataframe(irregular_wave("triangle"))
    train, validation = split_items(data, test_share=0.2, seed=0)
    splitter = TimeSplitter(after="60h", horizon="24h")
    length = splitter.prediction_length(data)

    pl.seed_everything(0)
    windows = IrregularDataModule(train, validation, prediction_length=length, context_length=32)
    model = ForecastLightningModule(
        windows.reader, windows.prediction_length, encoder="coupling_flow"
    )
    trainer = pl.Trainer(max_epochs=10, fast_dev_run=quick, logger=False)
    trainer.fit(model, datamodule=windows)
    print("validation loss:", round(float(trainer.callback_metrics["val_loss"]), 3))

    past, label = next(iter(splitter.split(validation)[1].generate_instances(length)))
    (forecast,) = model.to_predictor().predict([past])
    forecast.plot(name="forecast", show_label=True)
    observed = forecast.timestamps.notna()
    plt.plot(
        forecast.timestamps[observed], label["target"][observed], "o", mfc="none", label="observed"
    )
    plt.legend()
    plt.gcf().autofmt_xdate()
    plt.savefig("lightning_trainer.png")
    print("wrote lightning_trainer.png")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
