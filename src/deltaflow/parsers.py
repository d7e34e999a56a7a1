"""What the parsers of the commands' options share."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import NoReturn


class OneLineErrors:
    """Lets a parser of jsonargparse say what is wrong in one line, without all of its options."""

    prog: str

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, and exit."""
        parser = getattr(ex, "subcommand_parser", None) or self
        name = parser.prog.replace(" [options]", "")
        print(
            f"{name}: {' '.join(message.split())}; {name} --help lists the options", file=sys.stderr
        )
        raise SystemExit(2)


def with_shipped_configs(options: Sequence[str]) -> list[str]:
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
