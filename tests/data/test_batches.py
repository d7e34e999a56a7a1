"""Batches are numbered, and several processes split each of them."""

from collections import Counter
from itertools import chain

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.tuner import Tuner

from deltaflow import (
    ForecastLightningModule,
    IrregularDataModule,
    IrregularEstimator,
    UnknownNameError,
)
from deltaflow.data.batches import Batches, EpochSampler, InOrder
from deltaflow.data.reader import Reader
from deltaflow.encoders import ENCODERS


class Numbered:
    """Windows that ask for their number and read nothing."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader

    def __getitem__(self, index: int):
        series = self.reader.blank().series._replace(
            times=np.zeros(1), values=np.array([[float(index)]]), covariates=np.empty((1, 0))
        )
        return self.reader.window(series, 0)


@pytest.fixture(scope="module")
def reader(univariate) -> Reader:
    return IrregularDataModule(univariate, prediction_length=3, context_length=5).reader


def numbers_of(batch) -> list[int]:
    """The numbers of the windows of a batch, blank ones left out."""
    values = batch.loc + batch.scale * batch.target[:, 0]
    return values[batch.target_observed[:, 0]].round().int().tolist()


@given(
    num_windows=st.integers(1, 20),
    batch_size=st.integers(1, 9),
    world_size=st.integers(1, 6),
    epoch=st.integers(0, 3),
)
def test_processes_split_every_batch_of_every_epoch(
    reader, num_windows, batch_size, world_size, epoch
):
    windows = Numbered(reader)
    whole = Batches(windows, num_windows, batch_size=batch_size)
    shares = [
        Batches(windows, num_windows, batch_size=batch_size, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    assert {share.num_batches for share in shares} == {whole.num_batches}
    samplers = [EpochSampler(share) for share in shares]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    seen = []
    for order in zip(*samplers, strict=True):
        parts = [numbers_of(share[i]) for share, i in zip(shares, order, strict=True)]
        assert max(map(len, parts)) - min(map(len, parts)) <= 1
        together = list(chain(*parts))
        assert sorted(together) == numbers_of(whole[order[0]])
        assert len(together) <= batch_size
        seen += together
    first = epoch * num_windows
    assert Counter(seen) == Counter(range(first, first + num_windows))


def test_evaluation_reads_the_same_windows_in_every_epoch(reader):
    batches = Batches(Numbered(reader), 7, batch_size=3)
    sampler = InOrder(batches)
    for epoch in (0, 5):
        sampler.set_epoch(epoch)
        assert [numbers_of(batches[i]) for i in sampler] == [[0, 1, 2], [3, 4, 5], [6]]


def test_an_epoch_can_begin_in_its_middle(reader):
    sampler = EpochSampler(Batches(Numbered(reader), 7, batch_size=3), epoch=2, place=1)
    assert list(sampler) == [7, 8]
    sampler.set_epoch(3)
    assert list(sampler) == [9, 10, 11]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_blank_window_counts_for_nothing_but_reaches_every_weight(
    encoder, multivariate, make_estimator
):
    # DDP waits for the gradient of every weight, from every process.
    estimator = make_estimator(IrregularEstimator, encoder=encoder)
    data = estimator.create_data_module(multivariate)
    network = estimator.create_lightning_module(data).network
    blank = Batches(data.training_windows, 1, batch_size=1, rank=1, world_size=2)[0]
    total, count = network.loss(blank)
    assert total == count == 0
    total.backward()
    assert all((weight.grad == 0).all() for weight in network.parameters())


def test_workers_cut_the_same_windows(multivariate):
    lengths = {"prediction_length": 4, "context_length": 12}
    options = {"batch_size": 3, "num_batches_per_epoch": 4}
    data = IrregularDataModule(multivariate, multivariate, **lengths, **options)
    workers = IrregularDataModule(multivariate, multivariate, **lengths, **options, num_workers=2)
    for loader in ("train_dataloader", "val_dataloader"):
        one, other = list(getattr(data, loader)()), list(getattr(workers, loader)())
        assert len(one) == len(other) == (4 if loader == "train_dataloader" else 3)
        for left, right in zip(one, other, strict=True):
            for part, same in zip(left, right, strict=True):
                assert torch.equal(part, same)


@pytest.mark.parametrize(
    ("origins", "limit", "largest"), [("sliding", 512, 256), ("random", 64, 64)]
)
def test_batch_size_finder_counts_windows(origins, limit, largest, univariate, tmp_path):
    data = IrregularDataModule(
        univariate, prediction_length=4, context_length=12, origins=origins, batch_size=4,
        num_batches_per_epoch=4,
    )  # fmt: skip
    trainer = pl.Trainer(
        max_epochs=1, logger=False, enable_progress_bar=False, enable_checkpointing=False,
        accelerator="cpu", default_root_dir=tmp_path,
    )  # fmt: skip
    module = ForecastLightningModule(
        data.reader, data.prediction_length, encoder="gru", hidden_size=4
    )
    found = Tuner(trainer).scale_batch_size(
        module, datamodule=data, steps_per_trial=1, max_trials=9, max_val=limit
    )
    assert found == data.batch_size == largest
    windows = len(data.training_windows) if origins == "sliding" else 4 * found
    assert sum(len(batch.lengths) for batch in data.train_dataloader()) == windows


def test_unknown_origins_are_refused(univariate):
    lengths = {"prediction_length": 4, "context_length": 12}
    with pytest.raises(UnknownNameError, match="did you mean 'sliding'"):
        IrregularDataModule(univariate, **lengths, origins="slide")
    with pytest.raises(UnknownNameError, match="validation_origins"):
        IrregularDataModule(univariate, **lengths, validation_origins="random")
