"""The names of models, `atlas:memory`, and the systems behind them.

A name is that of the bundle or decoder, then the system: one of the model's own, or an extra column
of the page. The bare name is the default system, the memory where there is one.
"""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlpmem.engine.trace import PARTS
from mlpmem.errors import MlpMemError
from mlpmem.ui.openai.answers import ApiError
from mlpmem.ui.request import columns
from mlpmem.ui.service.service import Service

Context = Callable[[Sequence[int], int], list[int]]  # (ids, room) -> what the decoder reads


@dataclass(frozen=True)
class Answerer:
    """What answers a request: a system of a model at one lambda."""

    column: str  # as the name says it
    model: Any
    system: str  # in PARTS
    lmbda: float | str
    context: Context | None = None  # of retrieval before the prompt


def listed(services: Sequence[Service]) -> dict[str, str]:
    """Return {name: column} of everything that can answer; ApiError(503) while nothing can."""
    names: dict[str, str] = {}
    for service in services:
        with suppress(MlpMemError):
            names |= _listed(service)
    if not names:
        raise ApiError(503, services[0].status.line, code="not_ready")
    return names


def _listed(service: Service) -> dict[str, str]:
    """Return {name: column} of one model; MlpMemError while it cannot answer."""
    model = service.model
    name = service.name or model.name
    offered = [
        column
        for column, offer in service.extras.offers.items()
        if offer.kind != "mixed" or model.can_ask(column, model.store)
    ]
    default = model.check_system(None, model.store)
    known = dict.fromkeys([*model.systems, *offered])
    return {name: default, **{f"{name}:{column}": column for column in known}}


def check(services: Sequence[Service], name: str) -> tuple[Service, str]:
    """Return (model, column) of a name; ApiError(404) for an unknown one, (503) for a later one."""
    names = listed(services)
    for service in services:
        with suppress(MlpMemError):
            if name in (own := _listed(service)):
                return service, own[name]
    base, _, column = name.rpartition(":")
    for service in services:
        waits = name == service.name or base in (service.name, *names) and column in PARTS
        if waits and not service.status.settled:
            raise ApiError(503, f"{name} is not ready yet: {service.status.line}. Try again later",
                           "model", "not_ready")  # fmt: skip
    raise ApiError(404, f"There is no model {name[:80]!r}. Use one of {', '.join(names)}",
                   "model", "model_not_found")  # fmt: skip


def find(service: Service, name: str, lmbda: float | str | None) -> Answerer:
    """Return what answers for a name, at the asked lambda or its own; an extra column is loaded."""
    (_, column), model = check([service], name), service.model
    if column in PARTS:
        own = columns.lambdas(model, [column], lmbda)[column]
        return Answerer(column, model, column, own)
    from mlpmem.engine.rag import Rag  # they need torch, which the page is served before
    from mlpmem.engine.systems import ModelSystem

    found = service.extras.system(column, model)
    inner = found.inner if isinstance(found, Rag) else found
    if not isinstance(inner, ModelSystem):
        raise ApiError(404, f"{name} answers on the page only", "model", "model_not_found")
    chosen = inner.lmbda if lmbda is None else lmbda
    own = inner.model.lmbdas([inner.system], chosen)[inner.system]
    context = found.context if isinstance(found, Rag) else None
    return Answerer(column, inner.model, inner.system, own, context)
