import numpy as np
import pytest

from deltaflow import GRUFlowEstimator, IrregularDataModule
from deltaflow.errors import DataError, DeltaflowError
from deltaflow.tasks import regular_seasonal


def windows(data, thinning: float, **options):
    module = IrregularDataModule(data, prediction_length=4, thinning=thinning, seed=3, **options)
    return module.training_windows


def read(window) -> np.ndarray:
    """The values before the forecast origin, with their times in the first column."""
    series, context, _ = window
    return np.column_stack([series.times[context], series.values[context]])


def asked(window) -> np.ndarray:
    series, _, queries = window
    return np.column_stack([series.times[queries], series.values[queries]])


def test_values_are_left_out_of_the_context_alone(multivariate):
    whole, thin = windows(multivariate, 0.0), windows(multivariate, 0.8)
    shares = []
    for number in range(400):
        before, after = read(whole[number]), read(thin[number])
        np.testing.assert_array_equal(asked(whole[number]), asked(thin[number]))
        same = before[np.isin(before[:, 0], after[:, 0])]
        kept = np.isfinite(after)
        np.testing.assert_array_equal(after[kept], same[kept])  # nothing is moved or made up
        assert np.isfinite(after[:, 1:]).any(axis=1).all() or len(after) == len(before)
        shares.append(
            1 - np.isfinite(after[:, 1:]).sum() / max(1, np.isfinite(before[:, 1:]).sum())
        )
    # A share between 0 and 0.8 is drawn for each window.
    assert np.mean(shares) == pytest.approx(0.4, abs=0.05)
    assert np.quantile(shares, 0.9) > 0.6


def test_a_window_is_thinned_in_the_same_way_whoever_draws_it(multivariate):
    first, second = (windows(multivariate, 0.5) for _ in range(2))
    for number in (7, 3, 7, 60):
        np.testing.assert_array_equal(read(first[number]), read(second[number]))


def test_rows_of_regular_data_stay():
    whole, thin = (windows(regular_seasonal(), share) for share in (0.0, 0.9))
    for number in range(20):
        np.testing.assert_array_equal(read(whole[number])[:, 0], read(thin[number])[:, 0])
    assert any(np.isnan(read(thin[number])).any() for number in range(20))


def test_something_is_always_left(univariate):
    thin = windows(univariate, 1.0)
    origins = [
        window.context.stop - window.context.start for window in map(thin.__getitem__, range(300))
    ]
    whole = windows(univariate, 0.0)
    blind = [len(read(whole[number])) == 0 for number in range(300)]
    assert all(length > 0 or is_blind for length, is_blind in zip(origins, blind, strict=True))


def test_shares_are_checked_and_sliding_windows_are_not_thinned(univariate):
    with pytest.raises(DeltaflowError, match=r"between 0 and 1, got 1\.5"):
        GRUFlowEstimator(prediction_length=4, thinning=1.5)
    with pytest.raises(DataError, match="'thinning': sliding windows are read as they are"):
        windows(univariate, 0.5, origins="sliding")
