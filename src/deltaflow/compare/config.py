"""The configuration of a comparison; its fields are the options of the command."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deltaflow.compare.models import BASELINES, HOLD, RESAMPLED
from deltaflow.compare.options import RowOptions
from deltaflow.data.options import DataOptions
from deltaflow.encoders import ENCODERS
from deltaflow.errors import DeltaflowError, check_registered, check_whole
from deltaflow.heads import describe_output
from deltaflow.options import documents, options_from, with_changes
from deltaflow.tasks import Columns, Split
from deltaflow.tasks.datasets import check_data_set


@documents(DataOptions)
@dataclass(frozen=True)
class ComparedData(DataOptions):
    """The data sets of a comparison, and the options of their windows.

    Attributes
    ----------
    dataset
        One data set or several: a task of deltaflow.tasks.TASKS by name, the path of a CSV or
        Parquet file, or the path of a GluonTS data set.
    dataset_kwargs
        Options of a named task, such as `path` and `sets` of `physionet2012`.
    columns
        The columns of a file.
    split
        The split of a file.
    """

    dataset: str | list[str] = "clinical_sample"
    dataset_kwargs: dict[str, Any] = field(default_factory=dict)
    columns: Columns = field(default_factory=Columns)
    split: Split = field(default_factory=Split)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.names:
            raise DeltaflowError("a comparison needs at least one data set, got dataset []")
        for dataset in self.names:
            check_data_set(dataset)

    @property
    def names(self) -> list[str]:
        """The data sets, without repetition."""
        given = [self.dataset] if isinstance(self.dataset, str) else self.dataset
        return list(dict.fromkeys(given))


@documents(RowOptions)
@dataclass(frozen=True)
class CompareConfig(RowOptions):
    """A comparison of encoders.

    Attributes
    ----------
    encoders
        Rows of the table: registered encoders, variants, or baselines. hold, the last value, is
        always the first; the others are last_value (hold as a point forecast), training_mean,
        item_mean (the mean of the observed values), item_trend (a straight line through the
        observed values), least_squares (on the last value and the item's mean), boosted_trees
        (LightGBM on summaries of the observations), gaussian_process (one per item, with shared
        hyperparameters), seasonal (a regression on the values a day, a week or a year ago),
        defaults (`GRUFlowEstimator` without any of these options) and resampled_deepar, DeepAR on a
        regular grid. An encoder uses ``model.encoder_kwargs`` if it
        is ``model.encoder``, and its own defaults otherwise.
    variants
        Further rows by name. Each has the options that differ from those of the comparison, in the
        same groups: ``{model: {encoder: ode_rnn, encoder_kwargs: {solver: dopri5}}}``.
    seeds
        Each encoder is trained once per seed.
    average_seeds
        Whether each encoder with several seeds gets a further row, the average of its forecasts
        over the seeds.
    calibrate_averages
        Whether that row is calibrated on the validation data (`ConformalPredictor`): the average is
        more accurate than its members, but no narrower.
    output
        Folder of the results and the trained encoders. Finished runs are not repeated, so that
        several commands with different seeds may fill it in parallel, and a last one with all seeds
        writes the report.
    threads
        The number of torch's threads; small tensors do not benefit from several.
    """

    data: ComparedData = field(default_factory=ComparedData)
    encoders: list[str] = field(default_factory=lambda: [*ENCODERS, RESAMPLED])
    variants: dict[str, dict[str, Any]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    average_seeds: bool = True
    calibrate_averages: bool = False
    output: Path = Path("comparison")
    threads: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in self.encoders:
            check_registered("row", name, [*ENCODERS, *BASELINES, *self.variants])
        for name in self.variants:
            if name in BASELINES:
                raise DeltaflowError(
                    f"the variant {name!r} has the name of a baseline: give it another one"
                )
            self.row_options(name)
        check_whole(1, threads=self.threads)
        if not self.seeds:
            raise DeltaflowError("a comparison needs at least one seed")
        if len(set(self.seeds)) < len(self.seeds) or not all(0 <= s < 2**32 for s in self.seeds):
            raise DeltaflowError(f"seeds are different numbers from 0 to 2³² - 1, not {self.seeds}")

    @property
    def rows(self) -> list[str]:
        """The rows of the table: `hold`, then the encoders, without repetition."""
        return list(dict.fromkeys([HOLD, *self.encoders]))

    def seeds_of(self, row: str) -> list[int | None]:
        """Return the seeds of a row; a final None stands for the average over all of them."""
        averaged = self.average_seeds and len(self.seeds) > 1 and row not in BASELINES
        return [*self.seeds, None] if averaged else [*self.seeds]

    def row_options(self, row: str) -> RowOptions:
        """Return the training options of a row.

        Raises
        ------
        DeltaflowError
            If a variant changes an option that does not exist, or to a value out of range.
        """
        data = options_from(DataOptions, vars(self.data))
        common = options_from(RowOptions, {**vars(self), "data": data})
        if row in BASELINES:
            return common
        changes = self.variants.get(row, {"model": {"encoder": row}})
        options = with_changes(common, changes, f"the variant {row!r}")
        chosen = changes.get("model", {})
        for name in ("encoder", "network"):  # the options of one are not those of another
            kwargs = f"{name}_kwargs"
            if getattr(options.model, name) != getattr(self.model, name) and kwargs not in chosen:
                options = with_changes(options, {"model": {kwargs: {}}})
        return options

    def to_dict(self) -> dict[str, Any]:
        """Return plain, JSON-compatible values."""
        return {**_plain(self), "output": str(self.output)}

    def settings(self, row: str) -> dict[str, Any]:
        """Return everything that a run of this row depends on, except its data set and seed."""
        plain = self.to_dict()
        task = {name: plain["data"][name] for name in ("dataset_kwargs", "columns", "split")}
        return {**_plain(self.row_options(row)), "task": task, "threads": self.threads}


def _plain(options: RowOptions) -> dict[str, Any]:
    plain = asdict(options)
    plain["model"]["distr_output"] = describe_output(options.model.distr_output)
    return plain
