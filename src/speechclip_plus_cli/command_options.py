"""Options that several commands take."""

import argparse
import json
from collections.abc import Sequence
from typing import Any


def positive(text: str) -> int:
    """Read a whole number from 1, for `argparse`."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is not at least 1")
    return number


def data_options(given: Sequence[str]) -> dict[str, Any]:
    """Read KEY=VALUE; numbers, true, false and null are meant as such, anything else is text."""
    options: dict[str, Any] = {}
    for entry in given:
        key, equals, value = entry.partition("=")
        if not equals or not key.isidentifier():
            raise ValueError(f"--option {entry} is not KEY=VALUE, such as num_scenes=100.")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    return options
