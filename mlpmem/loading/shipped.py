"""The bundles that ship in assets/, by name; found without torch."""

import os
from dataclasses import dataclass
from pathlib import Path

from mlpmem.loading.manifest import MANIFEST


@dataclass(frozen=True)
class Shipped:
    """A bundle's names for people."""

    title: str
    about: str  # its size, and what it is


SHIPPED = {
    "atlas": Shipped("Atlas", "6M, here"),
    "smollm2": Shipped("SmolLM2", "135M, real"),
}


def default_bundle_path() -> Path:
    """Return the folder of the embedded bundle (clone or installed), or of MLPMEM_BUNDLE if set."""
    if named := os.environ.get("MLPMEM_BUNDLE"):
        return Path(named)
    return shipped_path("atlas")


def shipped_path(name: str) -> Path:
    """Return the folder of a bundle in SHIPPED, of the clone or installed."""
    clone = Path(__file__).parents[2] / "assets" / name
    return clone if clone.is_dir() else Path(__file__).parents[1] / name


def present() -> list[str]:
    """Return the names of the shipped bundles that are here."""
    return [name for name in SHIPPED if (shipped_path(name) / MANIFEST).is_file()]
