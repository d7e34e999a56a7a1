"""The benchmark writes what it promises; how long things take is no matter for a test."""

import pandas as pd
import pytest
import torch

from deltaflow import benchmark
from deltaflow.cli import main
from deltaflow.encoders import ENCODERS, RecurrentEncoder, make_encoder

TINY = benchmark.Workload(series=2, observations=3, hidden_size=4)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The directory of a complete run at tiny sizes."""
    output = tmp_path_factory.mktemp("benchmark") / "new"
    growth = {axis: sizes[:2] for axis, sizes in benchmark.GROWTH.items()}
    growth |= {"hidden_size": (4, 8), "observations": (2, 3), "long": (2, 30)}
    benchmark.benchmark(output, workload=TINY, growth=growth, seconds=0.0)
    return output


def test_the_table_holds_both_passes_of_every_encoder_and_of_the_floor(written):
    table = pd.read_csv(written / "benchmark.csv")
    assert list(table.columns) == ["encoder", "pass", "ms", "ratio"]
    expected = {(name, label) for name in ["nn.GRU", *ENCODERS] for label in ("train", "forward")}
    assert set(table[["encoder", "pass"]].itertuples(index=False, name=None)) == expected
    assert (table[["ms", "ratio"]] > 0).all(axis=None)
    assert (table.loc[table["encoder"] == "nn.GRU", "ratio"] == 1).all()


def test_growth_holds_every_axis(written):
    grown = pd.read_csv(written / "benchmark_growth.csv")
    assert list(grown.columns) == ["encoder", "pass", "ms", "ratio", "axis", "size"]
    assert set(grown["axis"]) == set(benchmark.GROWTH)
    assert (grown.groupby("axis")["size"].nunique() == 2).all()
    assert set(grown.loc[grown["axis"] == "queries", "pass"]) == {"forward"}


def test_an_epoch_is_split_into_its_parts(written):
    epoch = pd.read_csv(written / "benchmark_epoch.csv")
    assert list(epoch["part"]) == ["data", "forward", "backward", "optimiser"]
    assert epoch["share"].sum() == pytest.approx(1)
    assert (written / "benchmark.png").stat().st_size > 10_000


def test_the_markdown_has_every_table(written):
    text = (written / "benchmark.md").read_text(encoding="utf-8")
    assert [line.split(",")[0] for line in text.splitlines() if line.startswith("## ")] == [
        "## 2 series × 3 observations × 16 inputs",
        *(f"## ms by {axis}" for axis in benchmark.GROWTH),
        "## training of gru_flow on the clinical sample",
    ]
    assert text.count("| gru_flow |") == len(benchmark.GROWTH)
    assert text.count("| linear_flow |") == 1 + len(benchmark.GROWTH)


def test_the_longest_series_are_read_alone_and_by_those_that_can(written):
    grown = pd.read_csv(written / "benchmark_growth.csv")
    readers = set(grown.loc[grown["axis"] == "long", "encoder"])
    assert readers == {"nn.GRU", *benchmark.LONG_READERS}
    assert benchmark.Workload().grown("long", 100_000).series == 1
    assert benchmark.GROWTH["long"] == (1_600, 10_000, 100_000)


def test_quick_stops_after_the_first_table(tmp_path, monkeypatch, capsys):
    def tiny(workload, device, seconds, tell, measure=benchmark.time_reading):
        return measure(TINY, device, 0.0, tell)

    monkeypatch.setattr(benchmark, "time_reading", tiny)
    threads = torch.get_num_threads()
    assert main(["benchmark", "--quick", "--output", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"benchmark.csv", "benchmark.md"}
    assert "gru_flow" in capsys.readouterr().out
    assert torch.get_num_threads() == threads


def test_a_full_disk_leaves_the_previous_table(tmp_path, little_room):
    (tmp_path / "benchmark.csv").write_text("old")
    with little_room(10), pytest.raises(OSError, match=r"benchmark\.csv"):
        benchmark.benchmark(tmp_path, workload=TINY, quick=True, seconds=0.0)
    assert [path.name for path in tmp_path.iterdir()] == ["benchmark.csv"]
    assert (tmp_path / "benchmark.csv").read_text() == "old"


def test_the_floor_reads_as_many_inputs_as_the_cells_of_the_encoders():
    encoder = make_encoder("gru", TINY.num_channels, TINY.num_features, TINY.hidden_size)
    assert isinstance(encoder, RecurrentEncoder)
    inputs = TINY.inputs(torch.device("cpu"))
    assert inputs.shape[-1] == encoder.input_projection.in_features == 16


def test_a_size_that_cudnn_does_not_support_has_no_times():
    def refused():
        raise RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED")

    calls = {benchmark.FLOOR: refused, "gru": lambda: None}
    table = benchmark._timed("train", calls, 0.0, lambda _: None).set_index("encoder")
    assert table.loc[benchmark.FLOOR, ["ms", "ratio"]].isna().all()
    assert table.loc["gru", "ms"] > 0
    assert table["ratio"].isna().all()
    with pytest.raises(RuntimeError, match="out of memory"):
        benchmark._timed("train", {"gru": out_of_memory}, 0.0, lambda _: None)


def out_of_memory():
    raise RuntimeError("CUDA out of memory")
