"""What a recipe's values are held against: a choice among some, a number within a range."""

import math

from mlpmem.errors import MlpMemError


def check_choice(stage: str, name: str, value: str, allowed: tuple[str, ...]) -> None:
    """Raise MlpMemError for a value that is not among those allowed."""
    if value not in allowed:
        raise MlpMemError(f"{stage}: {name} is {value!r}, it must be one of {', '.join(allowed)}")


def check_range(
    stage: str, name: str, value: float, least: float, most: float = math.inf, above: bool = False
) -> None:
    """Raise MlpMemError for a number outside its range; `above` excludes the least itself."""
    if least <= value <= most and not (above and value == least):
        return
    limit = f"above {least}" if above else f"{least} or more"
    limit = limit if most == math.inf else f"{limit} and at most {most}"
    raise MlpMemError(f"{stage}: {name} is {value}, it must be {limit}")
