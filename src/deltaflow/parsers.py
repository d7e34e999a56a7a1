"""The common parts of the parsers of commands."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentError
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, NoReturn

_ASIDE = re.compile(
    r"^[ -]*(Does not validate|Subtypes:|Errors:|Expected a <class 'NoneType'>|Given value type:"
    r"|Given value: NestedArg).*",
    re.MULTILINE,
)
"""The lines of jsonargparse besides the reasons why a value is of none of several types."""


_CONTENT = re.compile(r"^\s*[^#\s]", re.MULTILINE)
"""A line of a configuration that is neither empty nor a comment."""


class OneLineErrors:
    """Makes a jsonargparse parser report errors in one line, without listing its options.

    It also reports what jsonargparse ignores in a configuration, or fails on later: a value in
    place of a group of options, and options that are derived from others.
    """

    prog: str
    exit_on_error: bool
    groups: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.sources: dict[str, str] = {}
        super().__init__(*args, **kwargs)

    def link_arguments(self, source: str, target: str, *args: Any, **kwargs: Any) -> None:
        """Derive an option from another one."""
        super().link_arguments(source, target, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        self.sources[target] = source

    def parse_string(self, content: str, *args: Any, **kwargs: Any) -> Any:
        """Parse a configuration, which may be empty."""
        content = content if _CONTENT.search(content) else "{}"
        parsed = super().parse_string(content, *args, **kwargs)  # pyright: ignore[reportAttributeAccessIssue]
        for name in self.groups:
            if name in parsed and not hasattr(parsed[name], "keys"):
                self.error(f"{name} is a group of options: list them below it, or leave it out")
        for target, source in self.sources.items():
            if target in parsed:
                self.error(f"{target} is not an option of its own: give {source} instead")
        return parsed

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the message, and exit."""
        if not self.exit_on_error:  # of a nested group, which the outer parser names
            raise ArgumentError(None, message) from ex
        parser = getattr(ex, "subcommand_parser", None) or self
        name = parser.prog.replace(" [options]", "")
        words = " ".join(_ASIDE.sub("", message).split())
        print(f"{name}: {words}; {name} --help lists the options", file=sys.stderr)
        raise SystemExit(2)


SHORT_FORMS = ("dataset", "dataset_kwargs", "columns", "split")
"""Options of the group ``data`` that may be given without the prefix."""


def underscored(options: Iterable[str]) -> list[str]:
    """Convert options with hyphens, such as ``--time-limit``, to those with underscores."""
    return [
        re.sub(r"^--[a-z][a-z-]*", lambda name: "--" + name[0][2:].replace("-", "_"), option)
        for option in options
    ]


def expanded(options: Sequence[str]) -> list[str]:
    """Return the options of a command with short forms and names of shipped files written out.

    ``--dataset`` stands for ``--data.dataset``. ``configs/NAME.yaml`` stands for the package's own
    file of this name, unless the current folder has one.
    """
    shipped, written = resources.files("deltaflow"), []
    for option in options:
        name = re.split(r"[.=]", option.removeprefix("--"), maxsplit=1)[0]
        path = Path(option)
        if option.startswith("--") and name in SHORT_FORMS:
            option = f"--data.{option[2:]}"
        elif path.parts[:1] == ("configs",) and not path.exists() and (shipped / option).is_file():
            option = str(shipped / option)
        written.append(option)
    return written
