"""A live forecaster over HTTP: what goes in, what comes out, and what is refused."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import urllib.request

import numpy as np
import pandas as pd
import pytest

pytest.importorskip("fastapi")
pytest.importorskip("httpx")
pytest.importorskip("prometheus_client")
pytest.importorskip("uvicorn")

import httpx
from fastapi.testclient import TestClient

from deltaflow import (
    HoldPredictor,
    IrregularDataModule,
    IrregularDataset,
    IrregularPredictor,
    LiveForecaster,
)
from deltaflow.cli import main
from deltaflow.errors import DeltaflowError
from deltaflow.serve.app import Snapshots, make_app
from deltaflow.serve.command import start
from deltaflow.serve.together import FEW_ROWS, Together


def predictor_of(data, seed=0):
    import torch

    reader = IrregularDataModule(data, prediction_length=4, context_length=12).reader
    predictor = IrregularPredictor(
        reader=reader.to_dict(),
        prediction_length=4,
        network={"encoder": "gru_flow", "network": "joint", "hidden_size": 8},
    )
    with torch.no_grad():
        predictor.network.encoder.input_projection.bias += 0.01 * seed
    return predictor


@pytest.fixture(scope="module")
def predictor(multivariate):
    return predictor_of(multivariate)


@pytest.fixture
def live(predictor):
    return LiveForecaster(predictor)


@pytest.fixture
def client(live):
    with TestClient(make_app(live, max_rows=20, max_bytes=20_000)) as client:
        yield client


def observation(item="a", minute=0, **values):
    return {
        "item_id": item,
        "timestamp": f"2024-03-01T08:{minute:02}:00",
        "dose": 1.0,
        "age": 50,
        "ward": "icu",
        **({"HR": 80.0} | values),
    }


def question(item="a", time="2024-03-01T10:00:00"):
    return {"item_id": item, "timestamp": time, "dose": 0.5}


CSV, JSON = {"Content-Type": "text/csv"}, {"Content-Type": "application/json"}


def test_observations_go_in_and_forecasts_come_out(client, predictor):
    rows = [observation(minute=0), observation(minute=7, MAP=60.5, HR=None), observation("b")]
    told = client.post("/update", json={"rows": rows})
    assert (told.status_code, told.json()) == (200, {"rows": 3, "items": 2})
    asked = [question("b", "2024-03-01T10:00:00.000000001"), question("a"), question("b")]
    told = client.post("/forecast?quantile_levels=0.25", json={"rows": asked}).json()["rows"]
    assert [row["target_name"] for row in told] == ["HR", "MAP"] * 3
    assert list(told[0]) == ["item_id", "timestamp", "target_name", "predictions", "mean", "0.25"]
    # Items and times go back as they came.
    assert [row["timestamp"] for row in told[::2]] == [row["timestamp"] for row in asked]
    alone = LiveForecaster(predictor)
    frame = pd.DataFrame(rows).assign(lab=np.nan, timestamp=lambda f: pd.to_datetime(f.timestamp))
    alone.update(frame.astype({"HR": float}))
    future = pd.DataFrame(asked)
    future["timestamp"] = pd.to_datetime(future["timestamp"], format="ISO8601")
    once = alone.forecast(future, quantile_levels=[0.25])
    for name in ("mean", "0.25"):
        assert [row[name] for row in told] == pytest.approx(once[name].tolist())


def test_csv_goes_in_and_out(client):
    text = "item_id,timestamp,dose,HR,MAP,age,ward\n007,2024-03-01T08:00:00,1,80,,50,icu\n"
    told = client.post("/update", content=text, headers=CSV)
    assert told.json() == {"rows": 1, "items": 1}
    asked = "dose,item_id,timestamp\n1,007,2024-03-01T09:00\n"
    told = client.post("/forecast", content=asked, headers=CSV)
    assert told.headers["content-type"].startswith("text/csv")
    lines = told.text.splitlines()
    assert lines[0] == "item_id,timestamp,target_name,predictions,mean,0.1,0.5,0.9"
    assert lines[1].startswith("007,2024-03-01T09:00,HR,")
    same = client.post(
        "/forecast", json={"rows": [question("007", "2024-03-01T09:00") | {"dose": 1}]}
    )
    assert float(lines[1].split(",")[3]) == pytest.approx(same.json()["rows"][0]["predictions"])


def test_items_may_be_numbers(client):
    assert client.post("/update", json={"rows": [observation(7)]}).status_code == 200
    told = client.post("/forecast", json={"rows": [question(7), question("7")]}).json()
    assert [row["item_id"] for row in told["rows"]] == [7, 7, "7", "7"]


def test_items_and_levels_read_the_same_as_in_frames(client, predictor):
    update = client.post("/update", json={"rows": [observation(7.0), observation(7, 1)]})
    assert update.json() == {"rows": 2, "items": 1}
    told = client.post("/forecast", json={"rows": [question(7.0), question("7")]}).json()
    assert [row["item_id"] for row in told["rows"]] == [7.0, 7.0, "7", "7"]
    assert told["rows"][0]["predictions"] == told["rows"][2]["predictions"]
    for wrong in (2**63, 1e30, True, ""):
        refused = client.post("/update", json={"rows": [observation(wrong)]})
        assert refused.status_code == 422
        assert refused.json()["field"] == "item_id"
        assert refused.json()["item"] == wrong
    nan = client.post("/update", content='{"rows": [{"item_id": NaN}]}', headers=JSON)
    assert nan.json()["item"] == "NaN"
    for level in (1, 1.0, True):  # all of them unknown here
        row = observation("b", ward=level)
        client.post("/update", json={"rows": [row]})
        alone = LiveForecaster(predictor)
        frame = pd.DataFrame([row]).assign(MAP=np.nan, lab=np.nan)
        alone.update(frame.assign(timestamp=pd.to_datetime(frame["timestamp"])))
        once = alone.forecast(
            pd.DataFrame([question("b")]).assign(timestamp=pd.Timestamp("2024-03-01T10:00"))
        )
        told = client.post("/forecast", json={"rows": [question("b")]}).json()["rows"]
        assert [one["0.9"] for one in told] == pytest.approx(once["0.9"].tolist())
        client.delete("/items/b")


def test_an_item_tells_when_it_was_seen_and_may_be_forgotten(client):
    client.post("/update", json={"rows": [observation("a/b", 0), observation("a/b", 5, HR=None)]})
    told = client.get("/items/a/b").json()
    assert told["num_observations"] == 2
    assert told["last"] == "2024-03-01T08:05:00"
    assert told["observed"] == {"HR": "2024-03-01T08:00:00", "MAP": None, "lab": None}
    assert client.get("/items/c").status_code == 404
    assert client.delete("/items/a/b").json() == {"items": 0}
    assert client.delete("/items/a/b").status_code == 404


# A bad second row, and what is said of it.
BAD_ROWS = {
    "early": (observation("b", 0), "b", "timestamp", "is that of the last observation"),
    "text": (observation("a", 9, HR="high"), "a", "HR", "valid number"),
    "infinite": (observation("a", 9, HR=1e999), "a", "HR", "finite number"),
    "huge": (observation("a", 9, HR=1e101), "a", "HR", "larger than 1e"),
    "misspelt": (observation("a", 9, hr=80), "a", "hr", "not permitted"),
    "no dose": (observation("a", 9) | {"dose": None}, "a", "dose", "valid number"),
    "no time": (observation("a", 9) | {"timestamp": "soon"}, "a", "timestamp", "ISO 8601"),
    "zone": (observation("a", 9) | {"timestamp": "2024-03-01T08:00Z"}, "a", "timestamp", "offset"),
    "static": (observation("b", 9, age=51), "b", "age", "not what it was"),
    "no item": (observation(None, 9), None, "item_id", "valid"),
    "list": (observation(["a"], 9), None, "item_id", "valid"),
    "long number": (observation(10**30, 9), 10**30, "item_id", "valid"),
}


@pytest.mark.parametrize("kind", BAD_ROWS)
def test_a_bad_row_is_named_and_nothing_is_read(kind, client):
    client.post("/update", json={"rows": [observation("b", 0)]})
    before = client.post("/forecast", json={"rows": [question("b")]}).json()
    row, item, field, message = BAD_ROWS[kind]
    good = observation("c", 1)
    content = json.dumps({"rows": [good, row]}).replace("Infinity", "1e999")
    told = client.post("/update", content=content, headers={"Content-Type": "application/json"})
    assert told.status_code == 422
    about = told.json()
    assert (about.get("item"), about["field"], about["row"]) == (item, field, 1)
    assert message in about["error"]
    assert client.get("/health").json()["items"] == 1
    assert client.post("/forecast", json={"rows": [question("b")]}).json() == before


@pytest.mark.parametrize(
    ("text", "field", "message"),
    [
        ("item_id,timestamp,dose,hr\na,2024-03-01T08:00,1,80\n", "hr", "no such column"),
        ("item_id,timestamp,HR\na,2024-03-01T08:00,80\n", "dose", "missing"),
        ("item_id,timestamp,dose,HR\na,2024-03-01T08:00,1,high\n", "HR", "not a number"),
        ("item_id,timestamp,dose,HR\na,2024-03-01T08:00,1,80,5\n", None, "5 cells for 4"),
        ("item_id,timestamp,dose,HR\na,2024-03-01T08:00,1,1_0\n", "HR", "not a number"),
        ("item_id,timestamp,dose,HR\n", None, "no rows"),
        ("", None, "not CSV"),
        (b"\xff\xfe\x00", None, "not CSV"),
        ("item_id,item_id,timestamp,dose\na,b,2024-03-01T08:00,1\n", "item_id", "two"),
        ("item_id,timestamp,dose,HR\n,2024-03-01T08:00,1,80\n", "item_id", "empty"),
    ],
)
def test_bad_csv_is_refused(text, field, message, client):
    told = client.post("/update", content=text, headers=CSV)
    assert told.status_code == 422, told.text
    assert told.json().get("field") == field
    assert message in told.json()["error"]
    assert client.get("/health").json()["items"] == 0


def test_an_empty_cell_of_an_elapsed_time_is_refused():
    frame = pd.DataFrame({"item_id": "a", "timestamp": [0.0, 1.0, 2.0], "target": [1.0, 2.0, 4.0]})
    live = LiveForecaster(HoldPredictor.fit(IrregularDataset.from_long_dataframe(frame), 2))
    with TestClient(make_app(live)) as client:
        text = "item_id,timestamp,target\na,0,1\na,,2\n"
        told = client.post("/update", content=text, headers=CSV)
        assert (told.status_code, len(live)) == (422, 0)
        about = told.json()
        assert (about["item"], about["field"], about["row"]) == ("a", "timestamp", 1)
        assert "the time is missing" in about["error"]
        live.update(frame)
        told = client.post("/forecast", content="item_id,timestamp\na,\n", headers=CSV)
        assert (told.status_code, told.json()["field"]) == (422, "timestamp")


def test_a_channel_may_have_the_name_of_the_list_of_rows():
    frame = pd.DataFrame({"item_id": "a", "timestamp": [0.0, 1.0, 2.0], "rows": [1.0, 2.0, 4.0]})
    data = IrregularDataset.from_long_dataframe(frame, target="rows")
    with TestClient(make_app(LiveForecaster(HoldPredictor.fit(data, 2)))) as client:
        row = {"item_id": "a", "timestamp": 0, "rows": "high"}
        told = client.post("/update", json={"rows": [row]})
        assert (told.status_code, told.json()["field"]) == (422, "rows")


def test_limits_and_kinds_are_kept(client):
    many = {"rows": [observation("a", minute) for minute in range(21)]}
    assert client.post("/update", json=many).status_code == 422
    assert client.post("/update", content=b"x" * 20_001, headers=CSV).status_code == 413
    assert client.post("/update", content="x", headers={"Content-Type": "a/b"}).status_code == 415
    assert client.post("/update", content="{", headers={"Content-Type": "application/json"}).json()
    for levels in ("0", "1", "nan", "x"):
        told = client.post(f"/forecast?quantile_levels={levels}", json={"rows": [question()]})
        assert (told.status_code, told.json()["field"]) == (422, "quantile_levels")
    assert client.post("/forecast", json={"rows": [question("x")]}).json()["item"] == "x"
    assert client.post("/update", json={"rows": [observation("")]}).json()["field"] == "item_id"
    assert client.get("/nothing").status_code == 404
    assert client.get("/health").json()["items"] == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/update?dry_run=1", "no such parameter; leave it out"),
        ("/forecast?quantiles=0.3", r"no such parameter; there are ['quantile_levels', 'seed']"),
    ],
)
def test_an_unknown_parameter_is_refused(path, message, client):
    told = client.post(path, json={"rows": [observation()]})
    field = path.partition("?")[2].partition("=")[0]
    assert (told.status_code, told.json()["field"]) == (422, field)
    assert message in told.json()["error"]
    assert client.get("/health").json()["items"] == 0


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("POST", "/items/a", "DELETE, GET"), ("GET", "/update", "POST"), ("PUT", "/health", "GET")],
)
def test_a_refused_method_names_all_that_its_path_allows(method, path, allowed, client):
    told = client.request(method, path)
    assert (told.status_code, told.headers["allow"]) == (405, allowed)


def test_a_category_is_the_same_in_csv_and_in_a_frame(make_frame):
    frame = make_frame(("HR",))
    frame["ward"] = frame["ward"].map({"icu": "1", "er": "01"})
    data = IrregularDataset.from_long_dataframe(frame, target="HR", feat_static_cat=["ward"])
    live = LiveForecaster(predictor_of(data))
    text = "item_id,timestamp,HR,ward\n" + "".join(
        f"{item},2024-03-01T08:00,80,{ward}\n"
        for item, ward in {"a": "1", "b": "01", "c": "1.0"}.items()
    )
    with TestClient(make_app(live)) as client:
        assert client.post("/update", content=text, headers=CSV).status_code == 200
    asked = pd.DataFrame({"item_id": list("abc"), "timestamp": pd.Timestamp("2024-03-01 09:00")})
    one, zero_one, as_float = live.forecast(asked)["predictions"]
    assert as_float == pytest.approx(one, abs=1e-6)
    assert abs(zero_one - one) > 1e-3


def at_once(live, *requests):
    """Send requests (path, rows) at the same time, and return the answers."""

    async def send():
        transport = httpx.ASGITransport(make_app(live))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            sent = [client.post(path, json={"rows": rows}) for path, rows in requests]
            return await asyncio.gather(*sent)

    return asyncio.run(send())


def test_requests_at_the_same_time_get_the_answers_of_requests_alone(live, client):
    client.post("/update", json={"rows": [observation(), observation("b", HR=60.0)]})
    asked = [
        [question("a"), question("b", "2024-03-01T11:00:00")],
        [question("b"), question("nobody")],
        [question("b")],
        [question("a", "soon")],
        [question("a", "2024-03-01T12:00:00.5"), question("a")],
        [question("a", "2024-01-01T00:00:00")],
    ]
    alone = [client.post("/forecast", json={"rows": rows}) for rows in asked]
    together = at_once(live, *(("/forecast", rows) for rows in asked))
    assert [told.status_code for told in together] == [200, 422, 200, 422, 200, 422]
    for mine, once in zip(together, alone, strict=True):
        assert mine.status_code == once.status_code
        if mine.status_code == 422:
            assert mine.json() == once.json()
            continue
        for row, other in zip(mine.json()["rows"], once.json()["rows"], strict=True):
            assert row == {**other, **{k: pytest.approx(other[k], rel=1e-6) for k in NUMBERS}}


NUMBERS = ["predictions", "mean", "0.1", "0.5", "0.9"]


def test_updates_at_the_same_time_are_each_read_as_a_whole(live):
    told = at_once(
        live,
        ("/update", [observation("a", 1), observation("b", 1)]),
        ("/update", [observation("c", 1), observation("d", 1, HR=1e101)]),
        ("/update", [observation("a", 2), observation("e", 1)]),
        ("/update", [observation("a", 0), observation("f", 1)]),
        ("/forecast", [question("a")]),
    )
    assert [one.status_code for one in told] == [200, 422, 200, 422, 200]
    assert (told[1].json()["item"], told[1].json()["row"]) == ("d", 1)
    assert (told[3].json()["item"], told[3].json()["row"]) == ("a", 0)
    assert len(live) == 3
    assert live.item("a")["num_observations"] == 2


def test_requests_that_wait_are_answered_by_one_call():
    calls = []

    def answer(requests):
        calls.append(requests)
        if "bad" in requests:
            raise ValueError(len(requests))
        return [request.upper() for request in requests]

    async def ask():
        together = Together()
        asked = [together("kind", answer, one, 1) for one in ("a", "b", "bad", "c")]
        asked += [together("other", answer, "d", 1), together("kind", answer, "e", FEW_ROWS)]
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, error, *others = asyncio.run(ask())
    assert [first, second, *others] == ["A", "B", "C", "D", "E"]
    assert error.args == (1,)  # its own error, when it was alone
    whole = ["a", "b", "bad", "c"]
    assert calls == [whole, *([one] for one in whole), ["d"], ["e"]]


def test_a_request_whose_bytes_have_arrived_joins_the_group():
    calls = []

    def answer(requests):
        calls.append(requests)
        return requests

    async def ask_later(together):
        for _ in range(4):  # turns of the event loop: two for its head, two for its body
            await asyncio.sleep(0)
        return await together("kind", answer, "b", 1)

    async def ask():
        together = Together()
        return await asyncio.gather(together("kind", answer, "a", 1), ask_later(together))

    assert asyncio.run(ask()) == ["a", "b"]
    assert calls == [["a", "b"]]


def test_a_token_guards_all_but_health_and_documentation(live):
    client = TestClient(make_app(live, token="secret"))
    for token in (None, "wrong", "ſecret"):
        headers = {} if token is None else {"Authorization": f"Bearer {token}".encode()}
        told = client.post("/update", json={"rows": [observation()]}, headers=headers)
        assert (told.status_code, told.headers["www-authenticate"]) == (401, "Bearer")
        assert client.get("/metrics", headers=headers).status_code == 401
        assert client.get("/items/a", headers=headers).status_code == 401
    good = {"Authorization": "Bearer secret"}
    assert client.post("/update", json={"rows": [observation()]}, headers=good).status_code == 200
    assert client.get("/health").status_code == 200
    assert client.get("/docs").status_code == 200


def test_the_documentation_names_the_fields(client):
    page = client.get("/openapi.json").json()
    body = page["paths"]["/update"]["post"]["requestBody"]["content"]["application/json"]
    row = body["schema"]["properties"]["rows"]["items"]
    assert set(row["required"]) == {"item_id", "timestamp", "dose"}
    assert set(row["properties"]) >= {"HR", "MAP", "lab", "age", "ward"}


def test_the_documentation_names_every_refusal(client):
    page = client.get("/openapi.json").json()
    refused = {
        ("post", "/update"): {"413", "415", "422"},
        ("post", "/forecast"): {"413", "415", "422"},
        ("get", "/items/{item_id}"): {"404", "422"},
        ("delete", "/items/{item_id}"): {"404", "422"},
    }
    for (method, path), statuses in refused.items():
        documented = page["paths"][path][method]["responses"]
        assert set(documented) - {"200"} == statuses
        for status in statuses:
            schema = documented[status]["content"]["application/json"]["schema"]
            assert schema["$ref"].endswith("/Refusal")
    assert "text/plain" in page["paths"]["/metrics"]["get"]["responses"]["200"]["content"]


def test_prometheus_reads_what_was_done(client):
    client.post("/update", json={"rows": [observation(), observation("b")]})
    client.post("/update", json={"rows": [observation()]})
    text = client.get("/metrics").text
    assert 'deltaflow_rows_total{route="update"} 2.0' in text
    assert 'deltaflow_refused_requests_total{status="422"} 1.0' in text
    assert "deltaflow_items 2.0" in text
    assert 'deltaflow_request_seconds_count{route="update"} 2.0' in text


def test_times_may_be_numbers_or_have_a_zone(make_frame):
    frame = make_frame()
    numbers = frame.assign(timestamp=frame.index % 20 + 0.5)
    with TestClient(make_app(live_of(numbers))) as client:
        row = {"item_id": "a", "timestamp": 1.5, "HR": 80}
        assert client.post("/update", json={"rows": [row]}).status_code == 200
        asked = {"rows": [{"item_id": "a", "timestamp": 2}]}
        assert client.post("/forecast", json=asked).json()["rows"][0]["timestamp"] == 2.0
        assert client.get("/items/a").json()["last"] == 1.5
    zoned = frame.assign(timestamp=frame["timestamp"].dt.tz_localize("Europe/Berlin"))
    with TestClient(make_app(live_of(zoned))) as client:
        row = {"item_id": "a", "timestamp": "2024-03-01T08:00:00", "HR": 80}
        assert "no offset" in client.post("/update", json={"rows": [row]}).json()["error"]
        row["timestamp"] += "+02:00"
        assert client.post("/update", json={"rows": [row]}).status_code == 200
        assert client.get("/items/a").json()["last"] == "2024-03-01T07:00:00+01:00"


def live_of(frame):
    return LiveForecaster(predictor_of(IrregularDataset.from_long_dataframe(frame, target="HR")))


def test_a_restart_goes_on_from_the_snapshot(predictor, tmp_path):
    predictor.serialize(tmp_path / "model")
    path = tmp_path / "state"

    left = tmp_path / ".unfinished-by-a-killed-process"
    left.mkdir()
    (left / "state").touch()

    def served():
        live = start(tmp_path / "model", path, "item_id", "timestamp")
        return TestClient(make_app(live, snapshots=Snapshots(live, path, every=3600)))

    with served() as client:
        client.post("/update", json={"rows": [observation()]})
        before = client.post("/forecast", json={"rows": [question()]}).json()
    with served() as client:
        assert client.post("/forecast", json={"rows": [question()]}).json() == before
        assert client.post("/update", json={"rows": [observation(minute=1)]}).status_code == 200
    with served() as client:
        assert client.get("/items/a").json()["num_observations"] == 2
    assert not left.exists()


def test_the_snapshot_of_another_predictor_is_refused(multivariate, predictor, tmp_path):
    predictor_of(multivariate, seed=1).serialize(tmp_path / "other")
    predictor.serialize(tmp_path / "model")
    LiveForecaster(predictor).save(tmp_path / "state")
    start(tmp_path / "model", tmp_path / "state", "item_id", "timestamp")
    with pytest.raises(DeltaflowError, match="state is of another predictor"):
        start(tmp_path / "other", tmp_path / "state", "item_id", "timestamp")
    with pytest.raises(DeltaflowError, match="other names"):
        start(tmp_path / "model", tmp_path / "state", "patient", "timestamp")


def test_snapshots_are_made_every_so_often_and_failures_are_told(live, tmp_path):
    path = tmp_path / "state"
    snapshots = Snapshots(live, path, every=0.02)

    async def keep():
        async with snapshots.kept():
            await asyncio.sleep(0.2)
            return path.exists()

    assert asyncio.run(keep())
    first = path.stat().st_mtime_ns
    snapshots.save()
    assert path.stat().st_mtime_ns == first  # nothing has changed
    snapshots.path = tmp_path / "state" / "below"
    with TestClient(make_app(live, snapshots=snapshots)) as client:
        assert client.get("/health").json()["snapshot"]["behind"] == 0
        client.post("/update", json={"rows": [observation()]})
        snapshots.save()
        about = client.get("/health").json()
    assert (about["status"], about["snapshot"]["behind"]) == ("no snapshot", 1)
    assert "state" in about["snapshot"]["problem"]


def test_what_is_wrong_with_the_command_is_said_in_a_line(tmp_path, capsys, monkeypatch):
    assert main(["serve", str(tmp_path / "none")]) == 2
    assert "holds no predictor" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--every", "0"]) == 2
    assert "--every" in capsys.readouterr().err
    assert main(["serve", str(tmp_path), "--port", "65536"]) == 2
    assert "port must lie between 0 and 65535, got 65536" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "deltaflow.serve.command")
    assert main(["serve", str(tmp_path)]) == 2
    assert "pip install 'deltaflow[serve]'" in capsys.readouterr().err


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_stop(predictor, tmp_path):
    predictor.serialize(tmp_path / "model")
    command = [sys.executable, "-m", "deltaflow", "serve", str(tmp_path / "model"),
               "--snapshot", str(tmp_path / "state"), "--port", "0"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ, text=True) as process:
        line = next(line for line in process.stderr if "running on" in line)
        address = line.split("running on ")[1].split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(f"{address}/health") as told:
            assert told.status == 200
        process.send_signal(signal.SIGTERM)
        process.stderr.read()
    assert process.returncode in (0, -signal.SIGTERM)
    assert len(LiveForecaster.load(tmp_path / "state")) == 0
