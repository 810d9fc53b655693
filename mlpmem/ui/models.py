"""The models of a page, each with a path of its own.

A session is on one path, so it is on one model: its runs, its chat and its own text are that
model's. Each model is loaded once, when its path is first opened; one service holds it for all.
"""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlpmem.errors import MlpMemError
from mlpmem.loading.shipped import SHIPPED
from mlpmem.ui.recordings import recorded
from mlpmem.ui.recordings.recorded import Recorded
from mlpmem.ui.service import loads, offers
from mlpmem.ui.service.service import Service


@dataclass(frozen=True)
class PageModel:
    """A model, its recordings, and its names."""

    service: Service
    recorded: Recorded
    name: str = ""  # its path; "" for the only model of a page
    title: str = ""  # in the picker
    about: str = ""  # its size, and what it is

    @classmethod
    def named(cls, name: str, service: Service, recorded: Recorded) -> "PageModel":
        """Return the model of a shipped bundle, or of any other by the name ""."""
        known = SHIPPED.get(name)
        titles = (known.title, known.about) if known else ("", "")
        return cls(service, recorded, name, *titles)


def of_bundle(name: str, folder: Path, datastore: bool = True) -> PageModel:
    """Return the model of a bundle's folder, which is not loaded yet."""
    extras, needed = offers.of_bundle(folder, (), datastore), loads.needed_by(folder)
    service = Service(loads.open_bundle(folder, datastore), "", extras, name, needed)
    return PageModel.named(name, service, recorded.read(folder))


def find(models: Sequence[PageModel], name: object) -> PageModel:
    """Return a model by name, the first one for ""; MlpMemError for an unknown one.

    A model that nobody has asked for yet begins to load.
    """
    names = [model.name for model in models]
    if name and name not in names:
        raise MlpMemError(f"There is no model {name!r:.80}. Use one of {', '.join(names)}.")
    model = models[names.index(name)] if name else models[0]
    if model is not models[0]:
        model.service.start()
    return model


def picker(models: Sequence[PageModel], here: PageModel) -> str:
    """Return the links between the models' paths, "" for a single model; the first one is at /."""
    if len(models) < 2:
        return ""
    links = []
    for model in models:
        path = "./" if model is models[0] else model.name
        current = ' aria-current="page"' if model is here else ""
        title, about = html.escape(model.title or model.name), html.escape(model.about)
        links.append(f'<a href="{path}"{current}>{title} <small>{about}</small></a>')
    return f'<nav class="models" aria-label="Model">{"".join(links)}</nav>'
