"""Marks that several tests use."""

import pytest


def slow(*cases: object) -> list:
    """Return cases of a parametrised test, values or tuples of them, that run with --all only."""
    rows = [case if isinstance(case, tuple) else (case,) for case in cases]
    return [pytest.param(*row, marks=pytest.mark.slow) for row in rows]
