"""The command line of commands that need no torch, which takes seconds to import."""

import sys
from typing import Any

from jsonargparse import ArgumentParser

from rbft.commands import find_command
from rbft.runtime.console import REPORT
from rbft.runtime.experiment_file import explain
from rbft.runtime.files import os_error_text


class LightParser(ArgumentParser):
    """A parser whose errors are those of `rbft.cli`."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        """Ends with the message, without the usage."""
        self.exit(2, f"error: {explain(message, self)}\n")


def run_light(name: str, args: list[str]) -> None:
    """Runs a command.

    Args:
        name: One of `rbft.commands.LIGHT`.
        args: Its options.
    """
    function = find_command(name)
    summary = (function.__doc__ or "").splitlines()[0]
    parser = LightParser(prog=f"python -m rbft {name}", description=summary, allow_abbrev=False)
    parser.add_function_arguments(function)
    options = vars(parser.parse_args(args))
    try:
        function(**options)
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(2)
    except Exception as error:
        text = os_error_text(error) if isinstance(error, OSError) else None
        if text is not None:
            sys.stderr.write(f"error: {text}\n")
            sys.exit(2)
        error.add_note(f"{REPORT} the command line.")
        raise
