"""The command line: `speechclip-plus COMMAND ...`.

A command is a module with `add_arguments(parser)` and `run(args) -> int` (the exit code); it is imported only when it
is asked for, so that `--help` answers at once. Exit codes: 0 success, 1 an error (one line on standard error), 2 wrong
usage, 130 interrupted.
"""

import argparse
import difflib
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module, metadata
from types import ModuleType
from typing import Any, NoReturn

COMMANDS = {
    "quickstart": "make data, train a small model, evaluate it and write a report to look at and listen to",
    "train": "train a preset's model on a data set, with one GPU or many",
    "convert": "turn a checkpoint of the original research code into a folder to load",
    "import-clip": "turn an open_clip model into a folder that serves as a backbone",
    "data": "check a data set of recordings and images, and write a copy of it",
    "push": "send a model, a data set or a Space to a repository on the Hub",
    "evaluate": "measure a model on a split; write results and a report",
    "demo": "search with a model in the browser, or write a Space of it for the Hub",
    "index": "embed images or recordings into an index, and search it",
}
"""Line in `--help` of each command; its module is called like it."""

# What our own checks and those of the libraries below us raise for wrong input: the message alone says what to do.
# Anything else is shown with its type, and the way to see where it came from.
MAX_MESSAGE = 1000
_EXPECTED_ERRORS = (ValueError, TypeError, OSError, ImportError)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # An unknown command: argparse lists all of them, and the nearest one helps more.
        if "invalid choice" in message and (given := re.search(r"invalid choice: '([^']*)'", message)):
            nearest = difflib.get_close_matches(given[1], COMMANDS, n=1)
            message = f"there is no command {given[1]!r}" + (f"; did you mean {nearest[0]!r}?" if nearest else "")
        self.exit(2, f"error: {message} (see `{self.prog} --help`)\n")


def command_module(name: str) -> ModuleType:
    """Import the module of a command."""
    return import_module(f".{name.replace('-', '_')}", __package__)


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of the whole command line; of `command` alone the module is imported, for its arguments."""
    parser = _Parser(prog="speechclip-plus", description="Visually grounded speech: SpeechCLIP+ models.")
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("--traceback", action="store_true", help="show the full traceback of an error")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    for name, text in COMMANDS.items():
        subparser = subparsers.add_parser(name, help=text, description=text)
        if name == command:
            command_module(name).add_arguments(subparser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line, `argv` or this process's own; return the exit code."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    # The options before the command take no value, so the first word without a dash is the command.
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    show_traceback = "--traceback" in arguments[: arguments.index(command)] if command else False
    try:
        parser = build_parser(command)
        args = parser.parse_args(arguments)
        if args.version:
            print(f"speechclip-plus {metadata.version('speechclip-plus')}")
            return 0
        if args.command is None:
            parser.error(f"a command is needed: {', '.join(COMMANDS)}")
        if "torch" not in sys.modules:  # takes seconds: nobody should wonder meanwhile
            print("Loading PyTorch and transformers ...", file=sys.stderr, flush=True)
        with _unwinding_when_killed():
            return command_module(args.command).run(args)
    except SystemExit as stop:  # argparse: --help (0) and wrong usage (2)
        return stop.code if isinstance(stop.code, int) else 1
    except KeyboardInterrupt:
        return _report("interrupted", 130)
    except BrokenPipeError:  # the reader of our output went away: nobody is left to tell
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        if show_traceback:
            raise
        return _report(_describe(error), 1)


@contextmanager
def _unwinding_when_killed() -> Iterator[None]:
    """Let `kill` unwind like Ctrl-C, so that temporary folders go."""
    try:
        previous = signal.signal(signal.SIGTERM, _interrupt)
    except ValueError:  # not in the main thread: whoever runs us there decides about signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def _die_by_default() -> None:
    """Let a forked worker end when told to: our handler would come too late for one that waits for a lock."""
    if signal.getsignal(signal.SIGTERM) is _interrupt:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_die_by_default)


def _describe(error: Exception) -> str:
    message = printable(str(error))
    if isinstance(error, _EXPECTED_ERRORS) and message:
        return message
    return f"{type(error).__name__}: {message} (`speechclip-plus --traceback COMMAND ...` shows where)"


def printable(text: str, limit: int = MAX_MESSAGE) -> str:
    """Return a text as one line of at most `limit` characters, with control characters escaped."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(text.split()))
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def _report(message: str, exit_code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return exit_code
