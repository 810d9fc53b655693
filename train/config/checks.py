"""Checks of a recipe's values: one of several choices, or a number within a range."""

import math

from mlpmem.errors import MlpMemError


def check_choice(stage: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise MlpMemError for a value that is not allowed."""
    if value not in allowed:
        raise MlpMemError(f"{stage}: {name} must be one of {', '.join(allowed)}; got {value!r}")


def check_range(
    stage: str, name: str, value: float, least: float, most: float = math.inf, above: bool = False
) -> None:
    """Raise MlpMemError for a number outside its range; `above` excludes `least` itself."""
    if least <= value <= most and not (above and value == least):
        return
    limit = f"above {least}" if above else f"{least} or more"
    limit = limit if most == math.inf else f"{limit} and at most {most}"
    raise MlpMemError(f"{stage}: {name} must be {limit}; got {value}")
