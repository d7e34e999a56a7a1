"""What Lightning logs is what the comparison, with GluonTS's evaluation, reports."""

import logging
from dataclasses import replace

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from gluonts.torch.distributions import GammaOutput, ISQFOutput
from torch.utils.data import DataLoader

from deltaflow import ForecastLightningModule, IrregularDataModule, IrregularDataset
from deltaflow.compare.score import accuracy
from deltaflow.heads import MonotoneQuantileOutput, is_centred, make_output
from deltaflow.tasks import Columns, Split, TaskDataModule
from deltaflow.training.metrics import ForecastScores

SPLINE = ISQFOutput(num_pieces=2, qk_x=[0.1, 0.5, 0.9])
NAMES = ("mse", "mae", "mean_weighted_quantile_loss", "coverage_80")


@pytest.mark.parametrize(
    "head", ["student_t", "normal", "quantile", MonotoneQuantileOutput([0.1, 0.5, 0.8])]
)
def test_scores_of_the_test_are_those_of_the_comparison(head):
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data = TaskDataModule("clinical_sample", context_length=16, batch_size=32)
    item = data.task.tests["clinical_sample"]
    entries = list(item.dataset)[:20]
    test = replace(item, dataset=entries)
    data.task = replace(data.task, tests={"clinical_sample": test})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = ForecastLightningModule(
            data.reader, data.prediction_length, hidden_size=4, distr_output=head
        )
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (logged,) = trainer.test(module, data, verbose=False)

    forecasts = list(module.to_predictor().predict(list(test.input)))
    channels = data.reader.schema.target
    expected = accuracy(forecasts, test, channels, np.ones(len(channels)))
    for name in (*NAMES, *(f"{name}[{channel}]" for name in NAMES for channel in channels)):
        if isinstance(head, MonotoneQuantileOutput) and not name.startswith("mae"):
            continue  # beyond its outer levels, GluonTS extrapolates
        assert logged[f"test_{name}"] == pytest.approx(expected[name], rel=1e-5), name


def test_channels_that_are_always_0_have_a_finite_loss_and_are_not_balanced():
    quantiles = torch.linspace(0.0, 8.0, 9).unsqueeze(-1).expand(9, 4)  # a median of 4
    values, channels = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([0, 0, 1, 1])
    scores, zeros = ForecastScores("ab"), ForecastScores("ab")
    scores.update(values, channels, values, quantiles)
    zeros.update(values[:2], channels[:2], values[:2], quantiles[:, :2])
    found, alone = scores.compute(), zeros.compute()
    loss = float(found["mean_weighted_quantile_loss[a]"])
    assert loss == pytest.approx(2 * np.mean([(1 - 0.1 * (k + 1)) * k for k in range(9)]))
    assert found["balanced_quantile_loss"] == found["mean_weighted_quantile_loss[b]"]
    assert float(alone["balanced_quantile_loss"]) == pytest.approx(loss)


def test_counts_at_the_end_of_an_interval_are_inside(monkeypatch):
    """Scaled in float32 and back, they are no whole numbers."""
    start = pd.Period("2024-01-01", freq="D")
    targets = np.random.default_rng(0).poisson(3.0, size=(20, 30)).astype(float)
    entries = [{"item_id": str(n), "start": start, "target": own} for n, own in enumerate(targets)]
    data = IrregularDataModule(entries, entries, prediction_length=6, centred=False)
    module = ForecastLightningModule(
        data.reader, 6, hidden_size=4, distr_output="negative_binomial", seed=0
    )
    scored = []
    monkeypatch.setattr(module.val_scores, "update", lambda values, *_: scored.append(values))
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.validate(module, data, verbose=False)
    assert torch.equal(torch.cat(scored), torch.from_numpy(targets[:, -6:].ravel()))


def test_an_interval_includes_its_ends():
    scores, deciles = ForecastScores(["count"]), torch.tensor([0.0] * 5 + [2.0] * 4)
    values = torch.tensor([0.0, 2.0, 3.0])
    scores.update(values, torch.zeros(3, dtype=torch.int64), values, deciles[:, None].expand(9, 3))
    assert float(scores.compute()["coverage_80"]) == pytest.approx(2 / 3)


def test_counts_without_quantile_function_are_scored_by_samples(make_frame, tmp_path):
    make_frame(num_items=10).round({"HR": 0}).to_csv(tmp_path / "counts.csv", index=False)
    data = TaskDataModule(
        str(tmp_path / "counts.csv"),
        columns=Columns(target=["HR"]),
        split=Split(after="24h", horizon="12h"),
        centred=False,
    )
    data.check_counts()
    module = ForecastLightningModule(
        data.reader, data.prediction_length, hidden_size=4, distr_output="negative_binomial"
    )
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    scores = trainer.validate(module, data, verbose=False)[0]
    assert trainer.validate(module, data, verbose=False)[0] == scores  # and repeatably so
    assert all(np.isfinite(score) for score in scores.values())


@pytest.mark.parametrize("network", ["joint", "channelwise"])
@pytest.mark.parametrize("head", ["student_t", "mean_quantile", GammaOutput(), SPLINE])
def test_blank_batch_changes_no_score(head, network, univariate):
    # A process without a window of its own reads one; a spline has no mean in GluonTS.
    data = IrregularDataModule(
        univariate, univariate, prediction_length=4, context_length=12,
        centred=is_centred(make_output(head)),
    )  # fmt: skip
    (batch,) = data.val_dataloader()
    module = ForecastLightningModule(
        data.reader,
        data.prediction_length,
        network=network,
        hidden_size=4,
        distr_output=head,
        seed=0,
    )
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    expected, scores = (
        trainer.validate(module, DataLoader(batches, batch_size=None), verbose=False)[0]
        for batches in ([batch], [batch, data.reader.collate([data.reader.blank()])])
    )
    assert scores == expected
    assert {"val_mse", "val_coverage_80"} <= {k for k, v in scores.items() if np.isfinite(v)}


def test_scores_do_not_depend_on_the_division_into_batches():
    values, mean = torch.randn(2, 50, dtype=torch.float64)
    quantiles = torch.randn(9, 50, dtype=torch.float64).sort(0).values
    channels = torch.arange(50) % 3
    whole, parts = ForecastScores("abcd"), ForecastScores("abcd")
    whole.update(values, channels, mean, quantiles)
    for part in torch.arange(50).split(7):
        parts.update(values[part], channels[part], mean[part], quantiles[:, part])
    expected = {name: float(score) for name, score in whole.compute().items()}
    assert {name: float(score) for name, score in parts.compute().items()} == pytest.approx(
        expected
    )
    assert {"mse", "mse[a]", "coverage_80[c]"} <= set(expected)
    assert not any(name.endswith("[d]") for name in expected)


def test_printed_scores_name_every_channel_as_it_is_named(make_frame, capsys):
    """Rich would read `[bili]` as markup, and print `test_mae` once more in its place."""
    names = {"HR": "bili", "MAP": "[/red] :heart: [C]"}
    frame = make_frame(("HR", "MAP"), num_items=4, length=12).rename(columns=names)
    dataset = IrregularDataset.from_long_dataframe(frame, target=list(names.values()))
    data = IrregularDataModule(dataset, dataset, prediction_length=4, context_length=8)
    module = ForecastLightningModule(data.reader, data.prediction_length, hidden_size=4)
    trainer = pl.Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (logged,) = trainer.validate(module, data)
    printed = capsys.readouterr().out

    for name in names.values():
        assert f"val_mae[{name}]" in logged
        assert printed.count(f"\n{name} ") == 1
    for measure in NAMES:
        assert f"val_{measure}" in printed.splitlines()[0]

    trainer.validate(module, data, verbose=False)
    trainer.test(module, data.val_dataloader())
    printed = capsys.readouterr().out
    assert "test_mae" in printed
    assert "val_mae" not in printed
