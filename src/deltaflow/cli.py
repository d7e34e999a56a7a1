"""The command `deltaflow`: each subcommand a function of the remaining arguments."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from importlib import resources
from pathlib import Path

from deltaflow._version import __version__
from deltaflow.errors import DeltaflowError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return its exit status."""
    listed = "\n".join(f"  {name:10} {about}" for name, (about, _) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="deltaflow",
        description="Forecasting of irregularly sampled time series with neural flows.",
        epilog=f"commands:\n{listed}\n\ndeltaflow COMMAND --help lists the options of a command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"deltaflow {__version__}")
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument("options", nargs=argparse.REMAINDER, metavar="...")
    given = parser.parse_args(arguments)
    try:
        return COMMANDS[given.command][1](given.options)
    except (DeltaflowError, OSError) as error:  # of the system: a full disk, a missing file
        print(f"deltaflow {given.command}: {error}", file=sys.stderr)
        return 2


def compare(options: Sequence[str]) -> int:
    """Compare encoders; the status is 1 if any run failed."""
    try:
        from jsonargparse import ArgumentParser
        from matplotlib import figure  # noqa: F401
    except ImportError as error:
        raise DeltaflowError(
            f"{error.name} is needed here: pip install 'deltaflow[cli,plot]'"
        ) from error
    from rich.console import Console

    from deltaflow.compare import CompareConfig
    from deltaflow.compare import compare as run

    parser = ArgumentParser(
        prog="deltaflow compare",
        description="Train encoders on the same data with the same budget, and compare them.",
    )
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    parser.add_class_arguments(CompareConfig)
    parsed = parser.parse_args(_with_shipped_configs(options))
    parsed.pop("config")
    runs = run(CompareConfig(**vars(parser.instantiate(parsed))), Console())
    return int(any(run["status"] == "failed" for run in runs))


def benchmark(options: Sequence[str]) -> int:
    """Measure what every encoder costs, beside a plain GRU."""
    try:
        from deltaflow.benchmark import main as run
    except ModuleNotFoundError as error:
        raise DeltaflowError(
            f"{error.name} is needed here: pip install 'deltaflow[plot]'"
        ) from error
    return run(options)


def _with_shipped_configs(options: Sequence[str]) -> list[str]:
    """Let ``configs/NAME.yaml`` name a file of the package where there is no such file here."""
    shipped = resources.files("deltaflow")
    return [
        str(shipped / option)
        if Path(option).parts[:1] == ("configs",)
        and not Path(option).exists()
        and (shipped / option).is_file()
        else option
        for option in options
    ]


def _lightning(command: str) -> Callable[[Sequence[str]], int]:
    """Return a command of Lightning's command line."""

    def run_command(options: Sequence[str]) -> int:
        try:
            import jsonargparse  # noqa: F401
        except ImportError as error:
            raise DeltaflowError(
                f"{error.name} is needed here: pip install 'deltaflow[cli]'"
            ) from error
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from deltaflow.lightning_cli import run

        try:
            return run(command, _with_shipped_configs(options))
        except MisconfigurationException as error:  # no such device, or metric to monitor
            raise DeltaflowError(str(error)) from error

    return run_command


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "fit": ("train a model with Lightning", _lightning("fit")),
    "validate": ("score a trained model on the validation data", _lightning("validate")),
    "test": ("score a trained model on the test data", _lightning("test")),
    "predict": ("write the forecasts of a trained model", _lightning("predict")),
    "compare": ("train encoders on the same data, and compare them", compare),
    "benchmark": ("measure what every encoder costs, beside a plain GRU", benchmark),
}
"""Every command by its name: what it does, and a function of its arguments."""
