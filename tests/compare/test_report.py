import re

import numpy as np
import pandas as pd
import pytest
import yaml

from deltaflow.cli import main
from deltaflow.compare import CompareConfig, compare, report, table
from deltaflow.compare.table import COLUMNS


def test_results_are_long_and_named_as_promised(finished):
    results = pd.read_csv(finished / "results.csv")
    assert list(results) == COLUMNS == ["dataset", "encoder", "seed", "metric", "value"]
    assert set(results["dataset"]) == {"sine", "sine_beyond"}
    assert set(results["encoder"]) == {"hold", "gru", "gru (averaged)"}
    assert set(results["seed"].dropna()) == {0, 1}
    assert results["seed"].isna().equals(results["encoder"] == "gru (averaged)")
    assert not results.duplicated(COLUMNS[:4]).any()
    wanted = {"mean_weighted_quantile_loss", "mse", "mae", "nll", "coverage_80", "parameters"}
    wanted |= {"coverage_50", "coverage_95"}
    assert wanted <= set(results["metric"])


def test_a_comparison_of_several_sets_has_one_table_over_them(tiny):
    config = tiny(encoders=["last_value"], data={"dataset": ["sine", "sink"]})
    compare(config)
    text = (config.output / "table.md").read_text()
    assert text.startswith("## Quantile loss as a share of the last value's\n\n|  | ")
    assert "| mean of the sets | " in text.split("##")[1]
    assert " 1.000 |" in text.split("##")[1]
    assert "****" not in text  # hold's ratio to itself, which is not shown, is no best cell
    assert (config.output / "figures" / "coverage_against_size.png").exists()
    page = (config.output / "index.html").read_text()
    assert page.count("coverage against size") == 1
    assert ">Quantile loss as a share of the last value&#x27;s</h2>" in page


def test_page_holds_everything_itself(finished):
    page = (finished / "index.html").read_text()
    pictures = list((finished / "figures").glob("*.png"))
    assert pictures
    sources = re.findall(r'src="([^"]*)"', page)
    assert len(sources) == len(pictures)
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    assert all(link.startswith("#") for link in re.findall(r'href="([^"]*)"', page))
    assert all(f'id="{link}"' in page for link in re.findall(r'href="#([^"]*)"', page))
    assert "<link" not in page
    assert "<script" not in page
    for text in ("Failed runs", "depth", "dataset: sine", "torchdiffeq"):
        assert text in page


def test_full_disk_leaves_the_previous_page(tiny, little_room, capsys):
    pytest.importorskip("jsonargparse")
    config = tiny(trainer={"max_epochs": 1})
    compare(config)
    page, again = config.output / "index.html", str(config.output / "config.yaml")
    size = page.stat().st_size
    page.write_text("old")
    with little_room(size - 1):
        assert main(["compare", "--config", again]) == 2
    assert capsys.readouterr().err.endswith(f"File too large: '{page}'\n")
    assert page.read_text() == "old"
    assert not [path for path in config.output.rglob("*") if "unfinished" in path.name]


def test_configuration_and_versions_stand_beside_the_results(finished):
    config = yaml.safe_load((finished / "config.yaml").read_text())
    assert config["seeds"] == [0, 1]
    assert set(config) == set(CompareConfig.__dataclass_fields__)
    assert '"torch"' in (finished / "environment.json").read_text()


def test_markdown_has_a_row_per_encoder(finished):
    lines = (finished / "table.md").read_text().splitlines()
    assert "## sine" in lines
    assert sum(line.startswith("| gru |") for line in lines) == 2
    assert not list(finished.rglob("*unfinished*"))


def test_tables_show_means_and_deviations_over_seeds():
    values = {("gru", 0): 1.0, ("gru", 1): 2.0, ("hold", 0): 3.0}
    rows = [
        ("d", encoder, seed, metric, value)
        for (encoder, seed), value in values.items()
        for metric in ("mse[HR]", "mse[Temp]", "balanced_mse")
    ]
    scores = pd.DataFrame(rows, columns=COLUMNS)
    assert table.summary(scores, "d")["balanced MSE"].to_dict() == {
        "gru": "1.500 ± 0.707",
        "hold": "3.000",
    }
    by_channel = table.by_channel(scores, "d", "mse")
    assert by_channel.to_dict() == {
        "gru": {"HR": "1.500", "Temp": "1.500"},
        "hold": {"HR": "3.000", "Temp": "3.000"},
    }
    assert table.by_channel(scores, "d", "mae").empty


def fake_run(encoder: str, errors: np.ndarray, count: np.ndarray, seed: int = 0) -> dict:
    mean = errors.sum(axis=0) / count.sum(axis=0)
    scores = {"balanced_mse": mean.mean(), "mse[HR]": mean[0], "mse[Temp]": mean[1]}
    stored = {"count": count.tolist(), "sum": errors.tolist()}
    run = {"dataset": "d", "encoder": encoder, "seed": seed}
    return {**run, "scores": {"d": scores}, "squared_errors": {"d": stored}}


def test_ratio_to_hold_has_the_interval_that_theory_gives():
    rng = np.random.default_rng(0)
    count = np.ones((400, 2), int)
    hold, worse, better = (scale * rng.chisquare(1, size=(400, 2)) for scale in (1, 1, 0.5))
    runs = [
        fake_run("hold", hold, count),
        fake_run("half", 0.5 * hold, count),
        fake_run("mixed", worse, count, seed=0),
        fake_run("mixed", better, count, seed=1),
    ]
    ratios = table.ratios_to_hold(runs, "d")
    # The same forecasts at half the error: their ratio is known, whoever is drawn.
    np.testing.assert_allclose(ratios.loc["half"], [0.5] * 3)
    mixed = (worse + better) / 2
    expected = mixed.mean() / hold.mean()
    assert ratios.loc["mixed", "ratio"] == pytest.approx(expected)
    # The delta method: the deviation of a ratio of two means over independent items.
    residual = mixed.mean(axis=1) - expected * hold.mean(axis=1)
    deviation = residual.std() / np.sqrt(400) / hold.mean()
    half_width = (ratios.loc["mixed", "high"] - ratios.loc["mixed", "low"]) / 2
    assert half_width == pytest.approx(1.96 * deviation, rel=0.15)
    shown = table.overview(runs, "d")[table.RATIO]
    assert shown["mixed"].startswith(f"{expected:.3f} (")
    assert shown["hold"] == ""
    assert table.ratios_to_hold(runs[1:], "d").empty
    assert table.RATIO not in table.overview(runs[1:], "d")


def test_ratio_of_forecasts_that_are_no_numbers_is_no_number():
    count = np.array([[2, 1], [2, 0], [1, 3]])
    hold = np.array([[0.4, 0.3], [0.1, 0.0], [0.2, 0.9]])
    diverged = np.where(count > 0, [[np.nan, 0.1]], 0.0)
    ratios = table.ratios_to_hold(
        [fake_run("hold", hold, count), fake_run("gru", diverged, count)], "d"
    )
    assert ratios.loc["gru"].isna().all()
    assert (ratios.loc["hold"] == 1).all()


def test_channels_are_sorted_by_their_share_of_the_error_of_hold():
    count = np.array([[2, 1], [2, 0]])
    hold, own = np.array([[0.4, 0.3], [0.0, 0.0]]), np.array([[0.1, 0.6], [0.1, 0.0]])
    shown = table.channels([fake_run("hold", hold, count), fake_run("gru", own, count)], "d")
    assert shown.to_dict("index") == {
        "Temp": {"labels": "1", "share": "75.0%", "hold": "0.3000", "gru": "2.000"},
        "HR": {"labels": "4", "share": "25.0%", "hold": "0.1000", "gru": "0.500"},
    }


def test_the_best_rows_come_first_and_the_best_of_each_column_is_marked():
    values = {
        "hold": {"balanced_mse": 3.0, "coverage_80": 0.95, "parameters": 0},
        "wide": {"balanced_mse": 1.0, "coverage_80": 0.88, "parameters": 9},
        "gru": {"balanced_mse": 2.0, "coverage_80": 0.74, "parameters": 8},
    }
    runs = [
        {"encoder": encoder, "seed": 0, "scores": {"d": scores}, "squared_errors": {}}
        for encoder, scores in values.items()
    ]
    assert list(table.overview(runs, "d").index) == ["wide", "gru", "hold"]
    assert [run["encoder"] for run in table.best_first(runs, "d")] == ["wide", "gru", "hold"]
    marked = table.best(runs, "d")
    assert marked["balanced MSE"].to_dict() == {"wide": True, "gru": False, "hold": False}
    assert marked["80 % interval covers"].to_dict() == {"wide": False, "gru": True, "hold": False}
    assert not marked["parameters"].any()


def runs_on_sets(losses: dict[str, list[float]]) -> list[dict]:
    """A run per encoder and set, whose coverage is a tenth of its quantile loss."""
    return [
        {
            "encoder": encoder,
            "seed": 0,
            "scores": {
                f"set {number}": {"mean_weighted_quantile_loss": loss, "coverage_80": loss / 10}
            },
            "squared_errors": {f"set {number}": {"count": [[2], [1]], "sum": [[1.0], [1.0]]}},
        }
        for encoder, own in losses.items()
        for number, loss in enumerate(own)
    ]


def test_losses_on_several_sets_are_shares_of_those_of_the_last_value():
    losses = {"hold": [4.0, 9.0], "last_value": [5.0, 10.0], "gru": [4.5, 6.0], "broken": [1.0]}
    runs = runs_on_sets(losses)
    ratio = table.loss_by_set(runs)
    assert list(ratio) == ["gru", "hold", "last_value", "broken"]  # no mean of a part of the sets
    assert ratio["gru"].to_dict() == {"set 0": 0.9, "set 1": 0.6, "mean of the sets": 0.75}
    assert ratio["broken"].isna().tolist() == [False, True, True]
    coverage = table.coverage_by_set(runs)
    assert list(coverage) == ["hold", "gru", "broken"]
    assert coverage.loc["mean of the sets", "hold"] == pytest.approx(0.65)
    assert table.size_of_sets(runs).to_dict("list") == {"items": [2, 2], "values": [3, 3]}
    assert table.loss_by_set(runs[:1]).empty  # one set
    assert table.loss_by_set([run for run in runs if run["encoder"] != "last_value"]).empty


def test_the_best_of_each_set_is_marked():
    runs = runs_on_sets({"last_value": [5.0, 10.0], "gru": [8.5, 6.0], "wide": [9.5, 12.0]})
    loss, coverage = report.over_sets(runs)
    assert loss.shown.loc["set 1"].to_dict() == {
        "last_value": "1.000",
        "gru": "0.600",
        "wide": "1.200",
    }
    assert loss.best.loc["set 1"].to_dict() == {"last_value": False, "gru": True, "wide": False}
    assert coverage.shown.loc["set 0"].to_dict() == {"gru": "85%", "wide": "95%"}
    assert coverage.best.loc["set 0"].to_dict() == {"gru": True, "wide": False}
    assert report.over_sets(runs[::2]) == []


def test_losses_that_are_not_finite_are_shown_as_such():
    scores = pd.DataFrame([("d", "gru", 0, "balanced_mse", np.inf)], columns=COLUMNS)
    assert table.summary(scores, "d").iloc[0, 0] == "inf"


def test_everything_may_fail(tiny, monkeypatch):
    def fail(*args):
        raise ValueError("no luck")

    monkeypatch.setattr("deltaflow.compare.run.train_row", fail)
    config = tiny()
    runs = compare(config)
    assert {run["status"] for run in runs} == {"failed"}
    assert pd.read_csv(config.output / "results.csv").empty
    assert "no luck" in (config.output / "index.html").read_text()
