"""Plain values of unknown origin: JSON, where every way of being none is one kind of error."""

import json
import sys
from numbers import Real
from typing import Any


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text; ValueError where it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def valid(text: str) -> str:
    """Return text with U+FFFD for every lone surrogate, which JSON can name and UTF-8 not hold."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number; true and false are none, nor what no float holds.

    math.isfinite raises for an integer that is too large.
    """
    plain = isinstance(value, Real) and not isinstance(value, bool)
    return plain and abs(value) <= sys.float_info.max  # nan is not less
