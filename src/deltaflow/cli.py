"""The command `deltaflow`: each subcommand a function of the remaining arguments."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial

from deltaflow._version import __version__
from deltaflow.errors import DeltaflowError, needing
from deltaflow.parsers import OneLineErrors, expanded, underscored


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
        return COMMANDS[given.command][1](underscored(given.options))
    except Exception as error:
        if not _is_about_input(error):
            raise
        print(f"deltaflow {given.command}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2


def _is_about_input(error: Exception) -> bool:
    """Return whether an error is due to options, files or the machine instead of the code."""
    # Of the system: a full disk, a missing file; a configuration in another encoding.
    if isinstance(error, (DeltaflowError, OSError, UnicodeDecodeError)):
        return True
    # Lightning raises errors of all kinds for a wrong option; code that it calls is not about them.
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    raised_in, kind = frame.f_globals.get("__name__", ""), type(error)
    refuses = kind in (ValueError, TypeError, RuntimeError) or kind.__module__.startswith(
        "lightning"
    )
    return refuses and raised_in.startswith("lightning.")


def compare(options: Sequence[str]) -> int:
    """Compare encoders; the status is 1 if any run failed."""
    with needing("cli,plot"):
        import jsonargparse
        from matplotlib import figure  # noqa: F401
    from rich.console import Console

    from deltaflow.compare import CompareConfig
    from deltaflow.compare import compare as run

    class Parser(OneLineErrors, jsonargparse.ArgumentParser):
        pass

    parser = Parser(
        prog="deltaflow compare",
        description="Train encoders on the same data with the same budget, and compare them.",
    )
    parser.add_argument("--config", action="config", help="YAML file of the options below")
    parser.add_class_arguments(CompareConfig)
    parsed = parser.parse_args(expanded(options))
    parsed.pop("config")
    runs = run(CompareConfig(**vars(parser.instantiate(parsed))), Console())
    return int(any(run["status"] == "failed" for run in runs))


def benchmark(options: Sequence[str]) -> int:
    """Measure the cost of every encoder, relative to a plain GRU."""
    with needing("plot"):
        from deltaflow.benchmark import main as run
    return run(options)


def auto(options: Sequence[str]) -> int:
    """Search for the options that suit a file."""
    with needing("auto"):
        import optuna  # noqa: F401
    from deltaflow.auto_command import main as run

    return run(options)


def serve(options: Sequence[str]) -> int:
    """Serve a trained predictor over HTTP."""
    with needing("serve"):
        from deltaflow.serve.command import main as run
    return run(options)


def lightning(command: str, options: Sequence[str]) -> int:
    """Run a command of Lightning's command line."""
    with needing("cli"):
        import jsonargparse  # noqa: F401
    from deltaflow.lightning_cli import run

    return run(command, expanded(options))


COMMANDS: dict[str, tuple[str, Callable[[Sequence[str]], int]]] = {
    "fit": ("train a model with Lightning", partial(lightning, "fit")),
    "validate": ("score a trained model on the validation data", partial(lightning, "validate")),
    "test": ("score a trained model on the test data", partial(lightning, "test")),
    "predict": ("write the forecasts of a trained model", partial(lightning, "predict")),
    "compare": ("train encoders on the same data, and compare them", compare),
    "auto": ("search for the options that suit the series of a file, within a time limit", auto),
    "benchmark": ("measure the cost of every encoder, relative to a plain GRU", benchmark),
    "serve": ("serve a trained predictor over HTTP", serve),
}
"""Every command by its name: a description, and a function of its arguments."""
