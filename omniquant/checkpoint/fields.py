"""Typed, checked access to the fields of a configuration nobody vouches for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from omniquant.checkpoint.text import shown
from omniquant.errors import CheckpointError

# Sizes reach the C core as int32.
_MAX_INTEGER = 2**31 - 1


class Fields:
    """A mapping whose values are checked as they are read (config.json, GGUF metadata).

    Parameters
    ----------
    values
        The raw mapping.
    where
        The file it came from, for messages.
    """

    def __init__(self, values: Mapping[str, object], where: str) -> None:
        self.values = values
        self.where = where

    def has(self, field: str) -> bool:
        """Tell whether a field is there and not null."""
        return self.values.get(field) is not None

    def fail(self, field: str, expected: str) -> CheckpointError:
        """Return the error for a field that is absent or is not what was expected."""
        if not self.has(field):
            return CheckpointError(f"{self.where}: {field} is missing")
        return CheckpointError(f"{self.where}: {field} is {shown(self.values[field])}, expected {expected}")

    def integer(self, field: str, default: int | None = None, *, minimum: int = 1) -> int:
        """Return an integer in [minimum, 2^31 - 1]; absent or null gives the default if there is one."""
        if default is not None and not self.has(field):
            return default
        value = self.values.get(field)
        # bool is an int in Python, but `true` is no size.
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= _MAX_INTEGER:
            raise self.fail(field, f"an integer from {minimum} to {_MAX_INTEGER}")
        return value

    def positive(self, field: str, default: float | None = None) -> float:
        """Return a finite number above zero."""
        if default is not None and not self.has(field):
            return default
        value = self.values.get(field)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.fail(field, "a number above zero")
        # Compared before conversion: float() of a huge int raises OverflowError.
        if not (0 < value < 1e300 and math.isfinite(value)):
            raise self.fail(field, "a finite number above zero")
        return float(value)

    def boolean(self, field: str, default: bool) -> bool:
        """Return true or false."""
        value = self.values.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(field, "true or false")
        return value

    def text(self, field: str, default: str | None = None) -> str:
        """Return a string."""
        if default is not None and not self.has(field):
            return default
        value = self.values.get(field)
        if not isinstance(value, str):
            raise self.fail(field, "a string")
        return value

    def section(self, field: str) -> Fields | None:
        """Return a nested object, or None if it is absent or null."""
        value = self.values.get(field)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.fail(field, "an object")
        return Fields(value, f"{self.where}: {field}")
