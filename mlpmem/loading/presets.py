"""The authors' published checkpoints by name: repositories, requirements, lambda.

Figures and ids come from the paper, its code and its model cards. Size and licence are shown before
a download. Weights that do not fit are not downloaded.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from mlpmem.errors import MlpMemError
from mlpmem.loading.hub import Tell, fetch, find_cached, look_up

if TYPE_CHECKING:
    from mlpmem.api import Model

# The authors name no commit. The first download pins one, because the cache is used from then on.
# Its progress line names the commit; write it here once it is known.
FIRST_DOWNLOAD = "main"


@dataclass(frozen=True)
class Repository:
    hub_id: str
    revision: str  # a commit, or FIRST_DOWNLOAD
    parameters: int
    licence: str = ""  # "" if no known card states it


@dataclass(frozen=True)
class Preset:
    """A decoder and its memory."""

    about: str
    decoder: Repository
    memory: Repository
    lmbda: float  # of the memory, as the authors measured
    dtype: torch.dtype  # of the weights in memory


PRESETS = {
    "gpt2-large-wikitext103": Preset(
        "GPT-2 large fine-tuned on WikiText-103; perplexity 10.42, with its memory 9.58",
        Repository("Rubin-Wei/gpt2-large-finetuned-wikitext103", FIRST_DOWNLOAD, 774_030_080),
        Repository("Rubin-Wei/MLPMemory-gpt2-large", FIRST_DOWNLOAD, 772_604_160),
        lmbda=0.25,
        dtype=torch.float32,
    ),
    "mistral-7b-wikipedia": Preset(
        "Mistral 7B with a memory of Wikipedia 2021; lambda 0.5 to 0.75 by task in the paper",
        Repository(
            "mistralai/Mistral-7B-v0.3",
            "d8cadc02ac76bd617a919d50b092e59d2d110aff",
            7_248_023_552,
            "apache-2.0",
        ),
        Repository("Rubin-Wei/MLPMemory-Mistral-wikipedia", FIRST_DOWNLOAD, 1_543_540_736),
        lmbda=0.5,
        dtype=torch.bfloat16,
    ),
}


def find_preset(name: str) -> Preset:
    """Return a preset by name; MlpMemError lists the known names."""
    if name not in PRESETS:
        raise MlpMemError(f"preset {name!r} is not known; use one of {', '.join(PRESETS)}")
    return PRESETS[name]


def check_preset(
    name: str, dtype: torch.dtype | None = None, device: str = "cpu", tell: Tell | None = None
) -> None:
    """Report a preset's description, sizes and licences; MlpMemError if it cannot be used here.

    That is if it does not fit into memory, or is neither cached nor reachable. Downloads nothing.
    """
    from mlpmem.loading.capacity import check_room

    preset, tell = find_preset(name), tell or (lambda line, share: None)
    tell(f"{name}: {preset.about}", None)
    parts = {"decoder": preset.decoder, "memory": preset.memory}
    check_room({k: r.parameters for k, r in parts.items()}, dtype or preset.dtype, device)
    for what, repository in parts.items():
        if find_cached(repository.hub_id, what, repository.revision) is not None:
            tell(f"{what}: {repository.hub_id} is already downloaded", None)
        else:
            listing = look_up(repository.hub_id, what, repository.revision, repository.licence)
            tell(f"{what}: {listing}", None)


def open_preset(
    name: str,
    *,
    dtype: torch.dtype | None = None,
    device: str = "cpu",
    tell: Tell | None = None,
    **parts: Any,
) -> "Model":
    """Return a preset's model, downloaded if needed; `parts` are other options of open_folders."""
    from mlpmem.engine.settings import Settings
    from mlpmem.loading.parts import open_folders

    preset = find_preset(name)
    check_preset(name, dtype, device, tell)
    decoder, memory = (
        fetch(repository.hub_id, what, revision=repository.revision, tell=tell)
        for what, repository in (("decoder", preset.decoder), ("memory", preset.memory))
    )
    parts.setdefault("settings", Settings({"memory": preset.lmbda, "knn": 0.25}))
    return open_folders(decoder, memory, dtype=dtype or preset.dtype, device=device, **parts)
