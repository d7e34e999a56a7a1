"""Live forecasts of more items than one machine holds: a Ray actor for each share of the items.

Items do not depend on each other, so each actor keeps a `LiveForecaster` for some of them, chosen
by a hash of their names. It saves its states now and then. If it is killed, a new actor takes its
place, loads the snapshot and says when each item was seen last. What came later is sent again
before anything is answered. Needs `pip install "deltaflow[ray]"`.

python examples/live_with_ray.py [--quick]
"""

import sys
import tempfile
import uuid
import zlib
from pathlib import Path
from typing import Any

import pandas as pd
import ray

from deltaflow import (
    DeltaflowPredictor,
    GRUFlowEstimator,
    IrregularDataset,
    LiveForecaster,
    predict_df,
)
from deltaflow.tasks import irregular_sine


class RestartedError(Exception):
    """An actor has lost what came after its snapshot."""


LOST = (RestartedError, ray.exceptions.RayActorError)


@ray.remote(max_restarts=-1)
class Shard:
    """Keeps the states of some items. Each of its lives has a name, which a caller must know."""

    def __init__(self, predictor: DeltaflowPredictor, path: str) -> None:
        self.path, self.life = Path(path), uuid.uuid4().hex
        is_new = not self.path.exists()
        self.live = LiveForecaster(predictor) if is_new else LiveForecaster.load(self.path)

    @ray.method(max_task_retries=-1)
    def greet(self, items: list[str]) -> tuple[str, dict[str, pd.Timestamp]]:
        """Return the name of this life, and the time of the last observation of known items."""
        return self.life, {i: self.live.item(i)["last"] for i in items if i in self.live}

    def update(self, life: str, rows: pd.DataFrame) -> None:
        """Read observations."""
        self.check(life)
        self.live.update(rows)

    def forecast(self, life: str, questions: pd.DataFrame) -> pd.DataFrame:
        """Answer questions."""
        self.check(life)
        return self.live.forecast(questions, quantile_levels=[0.1, 0.9])

    def save(self, life: str) -> None:
        """Write the snapshot that a successor would load."""
        self.check(life)
        self.live.save(self.path)

    def check(self, life: str) -> None:
        """Raise if the caller does not know that this actor has lost something."""
        if life != self.life:
            raise RestartedError


class Shards:
    """Sends rows to the actors of their items, and keeps those that no snapshot holds yet."""

    def __init__(self, predictor: DeltaflowPredictor, folder: Path, count: int) -> None:
        self.stored = ray.put(predictor)  # kept for the actors that will be restarted
        self.actors = [Shard.remote(self.stored, str(folder / f"shard{n}")) for n in range(count)]
        self.unsaved: list[list[pd.DataFrame]] = [[] for _ in self.actors]
        self.lives = [ray.get(actor.greet.remote([]))[0] for actor in self.actors]

    def update(self, rows: pd.DataFrame) -> None:
        """Read observations."""
        for number, part in self.split(rows):
            self.unsaved[number].append(part)
            try:
                self.ask(number, "update", part)
            except LOST:
                self.catch_up(number)  # which sends this part, too

    def forecast(self, questions: pd.DataFrame) -> pd.DataFrame:
        """Answer questions, sorted by item and time."""
        answers = [self.insist(number, "forecast", part) for number, part in self.split(questions)]
        return pd.concat(answers).sort_values(["item_id", "timestamp"], ignore_index=True)

    def save(self) -> None:
        """Save all states, and forget the rows that they hold."""
        for number, unsaved in enumerate(self.unsaved):
            self.insist(number, "save")
            unsaved.clear()

    def split(self, rows: pd.DataFrame) -> list[tuple[int, pd.DataFrame]]:
        """Return the rows of each actor that has any. The hash is the same on every machine."""
        number = rows["item_id"].map(lambda item: zlib.crc32(item.encode()) % len(self.actors))
        return [(int(str(own)), part) for own, part in rows.groupby(number)]

    def ask(self, number: int, method: str, *given: Any) -> Any:
        """Call a method of an actor, unless it was restarted."""
        return ray.get(getattr(self.actors[number], method).remote(self.lives[number], *given))

    def insist(self, number: int, method: str, *given: Any) -> Any:
        """Call a method of an actor, which is brought up to date first if it was restarted."""
        while True:
            try:
                return self.ask(number, method, *given)
            except LOST:
                self.catch_up(number)

    def catch_up(self, number: int) -> None:
        """Send a restarted actor the rows that came after its snapshot."""
        unsaved = self.unsaved[number]
        items = sorted({item for part in unsaved for item in part["item_id"]})
        while True:
            self.lives[number], seen = ray.get(self.actors[number].greet.remote(items))
            try:
                for part in unsaved:
                    last = pd.to_datetime(part["item_id"].map(seen))
                    later = part[last.isna() | (part["timestamp"] > last)]
                    if len(later):
                        self.ask(number, "update", later)
            except LOST:
                continue
            return


def main(quick: bool) -> None:
    df = irregular_sine(num_series=10 if quick else 100)
    estimator = GRUFlowEstimator(
        prediction_length=8,
        blend=False,  # networks alone, whose states are small
        trainer_kwargs={"max_epochs": 5, "fast_dev_run": quick},
        seed=0,
    )
    predictor = estimator.train(IrregularDataset.from_long_dataframe(df))
    last = df.groupby("item_id")["timestamp"].max()
    questions = pd.concat([(last + pd.Timedelta(hours=h)).reset_index() for h in (1, 6, 24)])

    ray.init(num_cpus=2, include_dashboard=False)
    with tempfile.TemporaryDirectory() as folder:
        shards = Shards(predictor, Path(folder), count=2)
        stream = df.sort_values("timestamp", kind="stable")
        size = len(stream) // 20
        for step, start in enumerate(range(0, len(stream), size)):
            shards.update(stream.iloc[start : start + size])
            if step % 5 == 4:
                shards.save()
            if step in (7, 13):
                ray.kill(shards.actors[step % 2], no_restart=False)
                print(f"batch {step}: killed an actor")
        forecasts = shards.forecast(questions)
    ray.shutdown()
    print(forecasts.round(2).head(6))

    alone = predict_df(
        predictor.with_unlimited_context(), df, questions, quantile_levels=[0.1, 0.9]
    )
    alone = alone.sort_values(["item_id", "timestamp"], ignore_index=True)
    difference = (forecasts["predictions"] - alone["predictions"]).abs().max()
    print(f"largest difference to predict_df on the whole history: {difference:.1e}")


if __name__ == "__main__":
    main(quick="--quick" in sys.argv)
