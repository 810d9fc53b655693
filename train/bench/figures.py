"""What a bench of training is told; its figures are those of mlpmem.bench."""

from dataclasses import dataclass
from pathlib import Path

from mlpmem.bench.figures import Figure

__all__ = ["Figure", "Options"]


@dataclass(frozen=True)
class Options:
    """What every bench is told."""

    peer: Path | None = None  # a checkout of the released code, to measure against
    keys: Path | None = None  # a datastore's folder, to search beside made keys
    entries: int = 100_000  # made keys
    device: str = "cpu"  # a torch device
    compile: bool = False  # whether a step is measured with torch.compile and without
