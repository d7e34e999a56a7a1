"""Options have one name, one default and one place, wherever they are given."""

import inspect
import re
from dataclasses import fields
from inspect import signature
from itertools import product

import pytest
import yaml

from deltaflow import (
    DeltaflowError,
    ForecastLightningModule,
    GRUEstimator,
    GRUFlowEstimator,
    IrregularDataModule,
    IrregularEstimator,
    UnknownNameError,
)
from deltaflow.cli import main
from deltaflow.compare import CompareConfig
from deltaflow.data.options import DataOptions
from deltaflow.model.options import ModelOptions
from deltaflow.options import options_from, with_changes
from deltaflow.tasks import Columns, Split, TaskDataModule
from deltaflow.training.options import (
    EarlyStoppingOptions,
    OptimizerOptions,
    TrainerOptions,
    TrainingOptions,
    WeightAveragingOptions,
)


@pytest.mark.parametrize(
    ("owner", "group"),
    [
        (IrregularEstimator, DataOptions),
        (IrregularEstimator, ModelOptions),
        (IrregularEstimator, OptimizerOptions),
        (IrregularDataModule, DataOptions),
        (TaskDataModule, DataOptions),
        (ForecastLightningModule, ModelOptions),
        (ForecastLightningModule, OptimizerOptions),
    ],
)
def test_every_option_of_a_group_is_an_argument_with_the_same_default(owner, group):
    arguments = signature(owner).parameters
    for name, default in vars(group()).items():
        assert arguments[name].default in (None, default), name
        assert f"\n{name}" in owner.__doc__ or f", {name}" in owner.__doc__, name


def test_arguments_reach_the_groups_of_an_estimator():
    data = DataOptions(context_length=7, horizon="6h", scaling="last", batch_size=3)
    model = ModelOptions(encoder="gru_d", hidden_size=5, dropout=0.5, distr_output="quantile")
    optimizer = OptimizerOptions(lr=0.1, weight_decay=0.2)
    estimator = GRUEstimator(4, **vars(data), **vars(model), **vars(optimizer))
    assert (estimator.data, estimator.model, estimator.optimizer) == (data, model, optimizer)
    assert estimator.free_options == []
    assert GRUEstimator(4).model == ModelOptions(encoder="gru")
    assert GRUEstimator(4, dropout=0.0).free_options == [
        "network", "balance", "distr_output", "scaling", "lr", "weight_decay", "batch_size",
        "num_batches_per_epoch",
    ]  # fmt: skip


def test_what_other_options_ask_for_does_not_follow_the_data():
    assert "network" not in GRUEstimator(4, network_kwargs={"summary": False}).free_options
    assert "distr_output" not in GRUEstimator(4, sampling="path").free_options
    assert "encoder_kwargs" not in GRUEstimator(4).free_options  # which has one layer only
    assert "encoder_kwargs" in GRUFlowEstimator(4).free_options


def test_an_option_has_the_same_place_in_fit_and_compare(capsys):
    pytest.importorskip("jsonargparse")
    printed = []
    for command in ("fit", "compare"):
        with pytest.raises(SystemExit):
            main([command, "--print_config"])
        printed.append(yaml.safe_load(capsys.readouterr().out))
    fit, compare = printed
    groups = [field.name for field in fields(TrainingOptions)]
    for group, other in product(groups, groups):
        if group == other:
            assert set(compare[group]) <= set(fit[group])
        else:
            assert not set(compare[group]) & set(fit[other])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModelOptions(hidden_size=0), "hidden_size must be at least 1, got 0"),
        (
            lambda: ModelOptions(hidden_size="wide"),
            "hidden_size must be a whole number, got 'wide'",
        ),
        (lambda: DataOptions(seasonality="day"), r"list of cycles: give \['day'\]"),
        (lambda: DataOptions(batch_size=2.5), "batch_size must be a whole number, got 2.5"),
        (lambda: DataOptions(num_workers=1.0), "num_workers must be a whole number, got 1.0"),
        (lambda: ModelOptions(balance=-0.1), "balance must be at least 0, got -0.1"),
        (lambda: ModelOptions(dropout=float("nan")), "dropout must lie between 0 and 1, got nan"),
        (lambda: ModelOptions(network="channel"), "unknown network 'channel'"),
        (lambda: ModelOptions(distr_output="student"), "did you mean 'student_t'"),
        (lambda: DataOptions(num_workers=-1), "num_workers must be at least 0, got -1"),
        (lambda: DataOptions(horizon="soon"), "field 'horizon': 'soon' is not a duration"),
        (lambda: DataOptions(origins_within=["9h", "1h"]), "field 'origins_within'"),
        (lambda: DataOptions(scaling="lats"), "did you mean 'last'"),
        (lambda: OptimizerOptions(lr=float("inf")), "lr must be at least 0, got inf"),
        (lambda: TrainerOptions(max_epochs=0), "max_epochs must be at least 1, got 0"),
        (lambda: TrainerOptions(gradient_clip_val=-1.0), "gradient_clip_val must be at least 0"),
        (lambda: EarlyStoppingOptions(patience=0), "patience must be at least 1, got 0"),
        (lambda: WeightAveragingOptions(decay=2.0), "decay must lie between 0 and 1, got 2.0"),
        (lambda: CompareConfig(num_parameters=-3), "num_parameters must be at least 1, got -3"),
        (lambda: CompareConfig(emphasis=-1.0), "emphasis must be at least 0, got -1.0"),
        (lambda: CompareConfig(threads=0), "threads must be at least 1, got 0"),
        (lambda: CompareConfig(variants={"hold": {}}), "'hold' has the name of a baseline"),
        (
            lambda: CompareConfig(variants={"mine": {"model": {"dropout": 7}}}),
            "dropout must lie between 0 and 1, got 7",
        ),
        (
            lambda: CompareConfig(variants={"mine": {"model": None}}),
            "model of the variant 'mine' takes options by name, got None",
        ),
        (
            lambda: with_changes(CompareConfig(), {"data": {"dataset": []}}),
            "at least one data set",
        ),
    ],
)
def test_values_out_of_range_are_refused_by_name(make, message):
    with pytest.raises(DeltaflowError, match=message):
        make()


def test_changes_are_a_part_of_the_same_tree():
    before = TrainingOptions()
    after = with_changes(before, {"data": {"batch_size": 3}, "trainer": {"max_epochs": 1}})
    assert after.data == DataOptions(batch_size=3)
    assert after.trainer == TrainerOptions(max_epochs=1)
    assert (after.model, after.optimizer) == (before.model, before.optimizer)
    with pytest.raises(UnknownNameError, match="option of data of the options 'lr'"):
        with_changes(before, {"data": {"lr": 1.0}})


def test_rows_take_the_options_of_their_encoder_alone():
    config = with_changes(
        CompareConfig(),
        {
            "model": {"encoder": "gru_flow", "encoder_kwargs": {"num_layers": 1}, "hidden_size": 9},
            "variants": {
                "plain": {"data": {"scaling": "last"}},
                "ode": {"model": {"encoder": "ode_rnn"}},
                "euler": {"model": {"encoder": "ode_rnn", "encoder_kwargs": {"solver": "euler"}}},
            },
        },
    )
    options = {row: config.row_options(row) for row in ("gru_flow", "gru", "plain", "ode", "euler")}
    assert {row: own.model.encoder_kwargs for row, own in options.items()} == {
        "gru_flow": {"num_layers": 1},
        "gru": {},
        "plain": {"num_layers": 1},
        "ode": {},
        "euler": {"solver": "euler"},
    }
    assert options["plain"].data.scaling == "last"
    assert {own.model.hidden_size for own in options.values()} == {9}
    assert {type(own.data) for own in options.values()} == {DataOptions}


def test_an_argument_that_is_none_leaves_the_default():
    given = {"lr": None, "weight_decay": 0.0, "other": 3}
    assert options_from(OptimizerOptions, given) == OptimizerOptions(weight_decay=0.0)


@pytest.mark.parametrize(
    "group",
    [
        DataOptions, ModelOptions, OptimizerOptions, TrainerOptions, EarlyStoppingOptions,
        WeightAveragingOptions, Columns, Split,
    ],
)  # fmt: skip
def test_each_option_is_described_on_its_own(group):
    """The command line shows no help for options that share a description."""
    described = re.findall(r"^(\w+)$", inspect.getdoc(group) or "", re.MULTILINE)
    assert {field.name for field in fields(group)} <= set(described)
