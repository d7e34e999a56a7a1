"""Time encoders against `torch.nn.GRU` on batches and on long series, on a CPU or an accelerator.

Prints the milliseconds of a training step and of a forward pass, as medians, and the ratio to
`nn.GRU`, which is cuDNN's on an accelerator. It needs deltaflow's encoders and torch alone. Run
``python scripts/long_series.py --help``.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from deltaflow.encoders import make_encoder

SIZES = ((64, 100), (64, 1_600), (64, 10_000), (1, 10_000), (1, 100_000))
"""Numbers of series and of observations."""

NUM_CHANNELS, NUM_FEATURES, HIDDEN_SIZE = 7, 1, 32
NUM_INPUTS = 2 * NUM_CHANNELS + NUM_FEATURES + 1


def draw(series: int, observations: int, device: torch.device) -> dict[str, Tensor]:
    """Draw a batch with half of the values observed."""
    random = torch.Generator().manual_seed(0)
    shape = series, observations
    observed = torch.rand(*shape, NUM_CHANNELS, generator=random) < 0.5
    batch = {
        "values": torch.randn(observed.shape, generator=random) * observed,
        "observed": observed,
        "delta_t": torch.empty(shape).exponential_(generator=random),
        "lengths": torch.full((series,), observations),
        "features": torch.randn(*shape, NUM_FEATURES, generator=random),
    }
    return {name: part.to(device) for name, part in batch.items()}


def time_call(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the median time of a call in milliseconds; NaN where cuDNN refuses the size."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    try:
        call()
    except RuntimeError as error:
        if "NOT_SUPPORTED" not in str(error):
            raise
        return math.nan
    times: list[float] = []
    while len(times) < 3 or (sum(times) < seconds and len(times) < 100):
        wait()
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return 1e3 * statistics.median(times)


def main() -> None:
    """Time the encoders, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--encoders", nargs="+", default=["linear_flow"])
    parser.add_argument("--seconds", type=float, default=2.0, help="how long each is timed")
    arguments = parser.parse_args()

    device = torch.device(arguments.device)
    if device.type == "cpu":
        torch.set_num_threads(1)
    else:
        print(torch.cuda.get_device_name(device))
    print(f"torch {torch.__version__}, {NUM_INPUTS} inputs, hidden size {HIDDEN_SIZE}, ms")
    print("| series × observations | encoder | training step | × nn.GRU | forward | × nn.GRU |")
    print("| --- | --- | ---: | ---: | ---: | ---: |")
    for series, observations in SIZES:
        batch = draw(series, observations, device)
        inputs = torch.randn(series, observations, NUM_INPUTS, device=device)
        gru = nn.GRU(NUM_INPUTS, HIDDEN_SIZE, batch_first=True).to(device)
        readers: dict[str, tuple[nn.Module, Callable[[], Tensor]]] = {
            "nn.GRU": (gru, lambda gru=gru, inputs=inputs: gru(inputs)[1])
        }
        for name in arguments.encoders:
            encoder = make_encoder(name, NUM_CHANNELS, NUM_FEATURES, HIDDEN_SIZE).to(device)
            readers[name] = (encoder, lambda e=encoder, batch=batch: e(**batch).hidden)
        floor: dict[str, float] = {}
        for name, (module, read) in readers.items():

            def train(module: nn.Module = module, read: Callable[[], Tensor] = read) -> None:
                module.zero_grad()
                read().sum().backward()

            @torch.no_grad()
            def forward(read: Callable[[], Tensor] = read) -> None:
                read()

            columns = [f"{series} × {observations}", name]
            for label, call in (("train", train), ("forward", forward)):
                taken = time_call(call, device, arguments.seconds)
                ratio = taken / floor.setdefault(label, taken)
                columns += [f"{taken:.2f}", f"{ratio:.3f}"]
            print(f"| {' | '.join(columns)} |", flush=True)
        if device.type == "cuda":
            print(f"peak memory: {torch.cuda.max_memory_allocated(device) / 2**30:.2f} GiB")
            torch.cuda.reset_peak_memory_stats(device)


if __name__ == "__main__":
    main()
