import numpy as np
import pandas as pd
import pytest

from deltaflow.tasks import (
    WAVES,
    irregular_sine,
    irregular_wave,
    regular_seasonal,
    sparse_multivariate,
)
from deltaflow.tasks.synthetic import DAY, RELAXATION, START

TABLES = {"wave": irregular_wave, "sine": irregular_sine, "sparse": sparse_multivariate}


def hours_since_start(frame: pd.DataFrame) -> pd.Series:
    return (frame["timestamp"] - START) / pd.Timedelta(hours=1)


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
class TestIrregularTables:
    def test_seed_decides_everything(self, make):
        pd.testing.assert_frame_equal(make(seed=3), make(seed=3))
        assert not make(seed=3).equals(make(seed=4))

    def test_global_generator_is_neither_seeded_nor_used(self, make):
        np.random.seed(7)  # noqa: NPY002
        expected = np.random.uniform(size=2)  # noqa: NPY002
        np.random.seed(7)  # noqa: NPY002
        first = np.random.uniform()  # noqa: NPY002
        make()
        assert [first, np.random.uniform()] == expected.tolist()  # noqa: NPY002

    def test_rows_are_ordered_by_series_and_time(self, make):
        frame = make(num_series=12, length=7)
        assert len(frame) == 12 * 7
        assert frame["item_id"].unique().tolist() == [f"series_{i}" for i in range(12)]
        for _, series in frame.groupby("item_id"):
            assert len(series) == 7
            assert series["timestamp"].is_monotonic_increasing
            assert series["timestamp"].is_unique

    def test_timestamps_are_whole_microseconds(self, make):
        timestamps = make()["timestamp"]
        pd.testing.assert_series_equal(timestamps, timestamps.dt.floor("us"))

    def test_gaps_are_exponential(self, make):
        # 20,000 gaps: mean, standard deviation and tail lie within 5 % by far.
        frame = make(num_series=200, length=101, mean_gap=3.0)
        gaps = hours_since_start(frame).groupby(frame["item_id"]).diff().dropna()
        assert gaps.mean() == pytest.approx(3.0, rel=0.05)
        assert gaps.std() == pytest.approx(3.0, rel=0.05)
        assert (gaps > 3.0).mean() == pytest.approx(np.exp(-1), rel=0.05)


@pytest.mark.parametrize("wave", WAVES)
def test_waves_repeat_and_fill_their_range(wave):
    cycles = np.arange(0, 1, 1 / 64)
    values = WAVES[wave](cycles)
    np.testing.assert_allclose(WAVES[wave](cycles + 3), values, atol=1e-12)
    assert values.min() == pytest.approx(-1)
    assert values.max() == pytest.approx(1, abs=0.05)  # the sawtooth only comes near


@pytest.mark.parametrize(
    ("wave", "values"),
    [
        ("sine", [0, 0.5**0.5, 1, -1]),
        ("sawtooth", [-1, -0.75, -0.5, 0.5]),
        ("square", [1, 1, 1, -1]),
        ("triangle", [0, 0.5, 1, -1]),
    ],
)
def test_waves_at_known_points(wave, values):
    np.testing.assert_allclose(WAVES[wave](np.array([0, 1 / 8, 1 / 4, 3 / 4])), values)


def test_series_share_a_period_but_not_a_phase():
    frame = irregular_sine(num_series=30, noise=0.0)
    angle = 2 * np.pi * hours_since_start(frame) / DAY
    phases = []
    for _, rows in frame.groupby("item_id").indices.items():
        basis = np.stack([np.sin(angle.iloc[rows]), np.cos(angle.iloc[rows])], axis=1)
        target = frame["target"].iloc[rows]
        weights = np.linalg.lstsq(basis, target, rcond=None)[0]
        np.testing.assert_allclose(basis @ weights, target, atol=1e-8)
        assert np.hypot(*weights) == pytest.approx(1)
        phases.append(np.arctan2(weights[1], weights[0]))
    assert np.std(phases) > 1


def test_noise_has_the_given_standard_deviation():
    clean, noisy = (irregular_sine(noise=noise)["target"] for noise in (0.0, 0.3))
    assert (noisy - clean).std() == pytest.approx(0.3, rel=0.05)


def test_channels_are_missing_at_random_but_never_all_at_once():
    frame = sparse_multivariate(num_series=200, num_channels=4, observed=0.2)
    present = frame.filter(like="target").notna()
    assert present.shape == (200 * 50, 4)
    assert present.to_numpy().any(axis=1).all()
    # One of the four is sure, the others have one chance in five: 1/4 + 3/4 · 1/5 = 0.4.
    np.testing.assert_allclose(present.mean(), 0.4, atol=0.02)


def test_channels_have_the_given_correlation():
    frame = sparse_multivariate(num_series=2000, length=5, observed=1.0, correlation=0.6, noise=0.0)
    channels = frame.filter(like="target")
    np.testing.assert_allclose(channels.std(), 1.0, atol=0.05)
    np.testing.assert_allclose(channels.corr(), 0.6 + 0.4 * np.eye(3), atol=0.05)


def test_channels_forget_at_the_stated_rate():
    frame = sparse_multivariate(num_series=5000, length=2, observed=1.0, noise=0.0)
    first, last = frame.iloc[::2], frame.iloc[1::2]
    gaps = hours_since_start(last).to_numpy() - hours_since_start(first).to_numpy()
    expected = np.exp(-gaps / RELAXATION) * first["target_0"].to_numpy()
    surprise = (last["target_0"].to_numpy() - expected) / np.sqrt(
        1 - np.exp(-2 * gaps / RELAXATION)
    )
    assert surprise.mean() == pytest.approx(0, abs=0.05)
    assert surprise.std() == pytest.approx(1, abs=0.05)
    assert np.corrcoef(surprise, first["target_0"])[0, 1] == pytest.approx(0, abs=0.05)


def test_regular_entries_are_hourly_and_deterministic():
    entries, again = (
        regular_seasonal(num_series=3, length=50),
        regular_seasonal(num_series=3, length=50),
    )
    assert [entry["item_id"] for entry in entries] == ["series_0", "series_1", "series_2"]
    for entry, other in zip(entries, again, strict=True):
        assert entry["start"] == pd.Period("2024-01-01 00:00", freq="h")
        assert entry["target"].shape == (50,)
        assert entry["target"].dtype == np.float32
        np.testing.assert_array_equal(entry["target"], other["target"])


def test_regular_series_are_level_trend_and_daily_season():
    hours = np.arange(14 * 24)
    angle = 2 * np.pi * hours / DAY
    basis = np.stack([np.ones_like(angle), hours / (7 * DAY), np.sin(angle), np.cos(angle)], axis=1)
    targets = np.stack([entry["target"] for entry in regular_seasonal(num_series=50)])
    weights, *_ = np.linalg.lstsq(basis, targets.T, rcond=None)
    assert (targets.T - basis @ weights).std() == pytest.approx(0.3, rel=0.05)
    assert weights[0].std() > 1
    amplitude = np.hypot(weights[2], weights[3])
    assert 0.9 < amplitude.min() < amplitude.max() < 3.1
