"""Every limit of a hosted page has a default, an environment variable and a line in the README."""

import re
from dataclasses import fields
from pathlib import Path

import pytest

from mlpmem.errors import MlpMemError
from mlpmem.ui.door import bounds

README = Path(bounds.__file__).parents[2] / "space" / "README.md"


def test_a_variable_sets_its_bound_and_an_empty_one_keeps_the_default():
    limits = bounds.read({"MLPMEM_WAITING": " 7 ", "MLPMEM_RATE": "0.5", "MLPMEM_OPEN": ""})
    assert (limits.waiting, limits.rate, limits.open) == (7, 0.5, bounds.Bounds().open)


@pytest.mark.parametrize("text", ["two", "0", "-1", "1.5", "nan", "inf", "1e30"])
def test_an_invalid_variable_raises_an_error_that_names_it(text):
    with pytest.raises(MlpMemError, match="MLPMEM_WAITING must be a whole number.*queued jobs"):
        bounds.read({"MLPMEM_WAITING": text})


def test_the_readme_lists_every_bound_with_its_variable_and_default():
    rows = re.findall(
        r"^\| `(MLPMEM_\w+)` \| ([^|]+) \| ([^|]+) \|$", README.read_text("utf-8"), re.M
    )
    listed = {name: (default.strip(), text.strip()) for name, default, text in rows}
    for row in fields(bounds.Bounds):
        default, description = listed[bounds.variable(row)]
        assert float(default.replace(",", "")) == row.default
        assert description == row.metadata["description"]
