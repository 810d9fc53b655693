"""Decoder, memory and datastore together: log-probs of every source, and their mix.

A model holds no state of a request. The datastore may come later: `attach_datastore` sets one
reference, and a call keeps the datastore it began with. The calls are in mlpmem/api.py.
"""

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mlpmem.engine.distributions import interpolate, knn_log_probs, knn_weights, log_softmax
from mlpmem.engine.router import Router
from mlpmem.engine.settings import Settings, default_settings
from mlpmem.engine.trace import AUTO, PARTS
from mlpmem.errors import MlpMemError
from mlpmem.fast.devices import calibrate, threads_between, threads_for, trim_memory
from mlpmem.fast.llama_layers import Recalled
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore, Store, make_store
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.own.search import TextSearch
from mlpmem.retrieval.retriever import Neighbours, Retriever

LABELS = {"lm": "the decoder", "memory": "the memory", "knn": "the datastore"}


@dataclass(frozen=True)
class Sources:
    """Log-probs of every source at R positions."""

    names: tuple[str, ...]  # "lm" first
    log_probs: Tensor  # (S, R, V) float32, one slice per source
    neighbours: Neighbours | None  # (R, K)
    weights: Tensor | None  # (R, K) shares of the kNN mass
    seconds: Mapping[str, float]  # spent on "memory" and "search", for all R together
    hidden: Tensor | None = None  # (R, K), that all were computed from; a router may read it
    near: Tensor | None = None  # (R, 3), what the gate of own texts reads of its search
    gate: Router | None = None  # that of the store which was searched

    def __getitem__(self, system: str) -> Tensor:
        """Return a system's log-probs (R, V): its source's, or its two sources' in equal shares."""
        parts = [self.log_probs[self.names.index(part)] for part in PARTS[system] or ("lm",)]
        return interpolate(*parts, 0.5) if len(parts) == 2 else parts[0]

    def nearest(self, system: str) -> Tensor | None:
        """Return squared distances (R,) of the nearest neighbours, None without a search."""
        if "knn" not in PARTS[system] or self.neighbours is None:
            return None
        return self.neighbours.distances[:, 0]


class FusedModel:
    """A decoder with its memory and datastore; `systems` lists what can be asked."""

    def __init__(
        self,
        decoder: Decoder,
        memory: Memory | None = None,
        settings: Settings | None = None,
        name: str = "",
        routers: Mapping[str, Router] | None = None,
        questions: bool = False,
    ) -> None:
        """Bind memory and routers to the decoder; MlpMemError if one belongs to another decoder.

        questions: the decoder was trained on "Question: ... Answer:", so a chat takes that form.
        """
        self.decoder = decoder
        decoder.use_fast_pass()
        self.memory = memory.bind(decoder) if memory is not None else None
        self.settings = settings or default_settings(memory)
        self.name, self.questions = name, questions
        self.routers = {system: router.bind(decoder) for system, router in (routers or {}).items()}
        self._store: Store | None = None
        self.documents: Documents | None = None  # of a bundle whose documents have no keys
        self.source = ""  # owner/name@commit of a bundle of the Hub

    def pack(self, bits: int = 0) -> Self:
        """Return self with weights packed for decoding on this CPU; see Decoder.pack."""
        self.decoder.pack(bits)
        if self.memory is not None:
            self.pack_memory(self.memory, bits)
        calibrate(self.decoder, self.memory)
        trim_memory()
        return self

    def pack_memory(self, memory: Memory, bits: int = 0) -> None:
        """Pack a memory of the packed decoder; what a compiled step reads as it is stays plain."""
        from mlpmem.fast.linear import pack

        memory.bind(self.decoder)  # a tied head is packed already
        if bits or memory.recall() is None or not self.decoder.is_plain():
            pack(memory, bits, self.decoder.can_compile)

    @property
    def systems(self) -> list[str]:
        """Return the systems there are now, of "lm", "memory" and "knn".

        With both memory and datastore, "mixed" can be asked too: half memory, half datastore.
        """
        return systems_of(self, self._store)

    @property
    def store(self) -> Store | None:
        """Return the datastore with its retriever."""
        return self._store

    @property
    def datastore(self) -> Datastore | None:
        """Return the datastore, None until one is attached."""
        return self._store.datastore if self._store else None

    @property
    def retriever(self) -> Retriever | None:
        """Return the retriever, None until a datastore is attached."""
        return self._store.retriever if self._store else None

    def attach_datastore(self, datastore: Datastore, retriever: Retriever) -> None:
        """Add the system "knn" for calls that begin from now on."""
        self._store = make_store(self.decoder, datastore, retriever)

    def attach_store(self, store: Store) -> None:
        """Add the system "knn" with own texts, whose gate is its router."""
        self._store = store
        if store.gate is not None:
            self.routers = {**self.routers, "knn": store.gate}

    @torch.inference_mode()
    def sources(
        self,
        hidden: Tensor,
        logits: Tensor,
        store: Store | None,
        parts: Collection[str] = ("memory", "knn"),
        recalled: Recalled | None = None,
        read: Sequence[Sequence[int]] | None = None,
    ) -> Sources:
        """Return the sources at hidden states (R, D) with the decoder's logits (R, V).

        They are "lm" and the named parts this model has. Without neighbours, "knn" repeats "lm",
        which is lmbda 0 in any mix. `recalled` is what a step computed of the memory, if it did;
        `read` the token ids that each row has read, which a store of own texts needs. MlpMemError
        if a source gives nan.
        """
        with threads_between(self.decoder, len(hidden)):
            return self._sources(hidden, logits, store, parts, recalled, read)

    def _sources(
        self,
        hidden: Tensor,
        logits: Tensor,
        store: Store | None,
        parts: Collection[str],
        recalled: Recalled | None,
        read: Sequence[Sequence[int]] | None,
    ) -> Sources:
        """Compute `sources`, most of it with the present number of threads."""
        names, log_probs, seconds = ["lm"], [log_softmax(logits)], {}
        neighbours = weights = near = None
        if self.memory is not None and "memory" in parts:
            begin = time.perf_counter()
            if recalled is not None:
                logits, begin = recalled.logits[:, -1], begin - recalled.seconds
            else:
                logits = self._recall(self.memory, hidden).to(log_probs[0].device)
            log_probs.append(log_softmax(logits, self.settings.memory_temperature))
            names.append("memory")
            seconds["memory"] = time.perf_counter() - begin
        if store is not None and "knn" in parts:
            begin = time.perf_counter()
            neighbours, weights, knn, near = self._look_up(hidden, store, read)
            log_probs.append(torch.where(neighbours.indices[:, :1] < 0, log_probs[0], knn))
            names.append("knn")
            seconds["search"] = time.perf_counter() - begin
        stacked = torch.stack(log_probs)
        _check_numbers(names, stacked)
        gate = store.gate if store is not None and near is not None else None
        found = neighbours, weights, seconds, hidden, near, gate
        return Sources(tuple(names), stacked, *found)

    def _recall(self, memory: Memory, hidden: Tensor) -> Tensor:
        """Return the memory's logits (R, V) at hidden states (R, D)."""
        with threads_for(self.decoder, len(hidden)):
            return memory(hidden.to(memory.device, memory.dtype))

    def _look_up(
        self, hidden: Tensor, store: Store, read: Sequence[Sequence[int]] | None
    ) -> tuple[Neighbours, Tensor, Tensor, Tensor | None]:
        """Return neighbours (R, K), their weights, the kNN log-probs (R, V), and Store.search's."""
        device = store.values.device
        with threads_for(self.decoder, len(store.values)):
            count = min(self.settings.k, len(store.values))
            neighbours, near = store.search(hidden, count, read)
        temperature = self.settings.knn_temperature if near is None else TextSearch.temperature
        indices, distances = (x.to(device) for x in neighbours)
        at = indices.clamp_min(0)
        values = store.values[at].masked_fill(indices < 0, -1)
        arguments = distances, values, store.counts[at], temperature
        weights = knn_weights(*arguments)
        log_probs = knn_log_probs(*arguments, self.decoder.vocab_size)
        return Neighbours(indices, distances), weights, log_probs, near

    def weights(
        self, sources: Sources, system: str, lmbda: float | str, evidence: Tensor | None = None
    ) -> Tensor:
        """Return lambda (R,) per position: one number for all, or for AUTO the router's.

        A router that reads evidence needs that before each position, (R,).
        """
        lm = sources["lm"]
        if lmbda != AUTO:
            return torch.full(lm.shape[:1], float(lmbda), device=lm.device)
        other, nearest = sources[system], sources.nearest(system)
        if system == "knn" and sources.gate is not None:
            return sources.gate.lmbda(lm, other, evidence, nearest, sources.near)
        return self.routers[system].lmbda(lm, other, evidence, nearest, sources.hidden)

    def can_ask(self, system: str, store: Store | None) -> bool:
        """Return whether this model has every part of a system."""
        return system in PARTS and set(PARTS[system] or ("lm",)) <= set(systems_of(self, store))

    def check_system(self, system: str | None, store: Store | None) -> str:
        """Return system, or the best one for None; MlpMemError for a system this model lacks."""
        available = systems_of(self, store)
        if system is None:
            return "memory" if "memory" in available else available[-1]
        if not self.can_ask(system, store):
            hint = {
                "knn": "attach a datastore with text=[...] or load a bundle that has one",
                "memory": "load one with memory=...",
                "mixed": "it needs both memory and datastore",
            }.get(system, "choose one of these")
            names = ", ".join(available)
            raise MlpMemError(f"system {system!r} is not available, only {names}; {hint}")
        return system

    def routed(self, store: Store | None = None) -> Mapping[str, Router]:
        """Return the routers to use in a call with this store.

        A router of a system that searches was fitted to the model's own store, and its lambda means
        nothing for another. A visitor's texts bring a gate of their own.
        """
        if store is None or store is self._store:
            return self.routers
        routers = {s: router for s, router in self.routers.items() if "knn" not in PARTS[s]}
        return routers | ({"knn": store.gate} if store.gate is not None else {})

    def reads_evidence(self, system: str, store: Store | None = None) -> bool:
        """Return whether a system's router reads evidence, so prompts must be scored for it."""
        return self.routed(store)[system].config.evidence

    def lmbdas(
        self,
        systems: Sequence[str],
        lmbda: float | str | Mapping[str, float | str] | None,
        store: Store | None = None,
    ) -> dict[str, float | str]:
        """Return lambda by system, a number or AUTO; see `routed` and Settings.lmbdas."""
        searched = store or self._store
        usual = ["knn"] if searched is not None and searched.gate is not None else []
        return self.settings.lmbdas(systems, lmbda, self.routed(store), usual)


def systems_of(model: FusedModel, store: Store | None) -> list[str]:
    """Return the systems of a model with this store."""
    return ["lm"] + ["memory"] * (model.memory is not None) + ["knn"] * (store is not None)


def _check_numbers(names: Sequence[str], log_probs: Tensor) -> None:
    """Raise MlpMemError for a source with nan among the log-probs (S, R, V).

    None of them is +inf, so their sum is nan only if one of them is. A sum takes a tenth of the
    time of `isnan`, which would be some percent of a step.
    """
    for name, total in zip(names, log_probs.sum((1, 2)).tolist(), strict=True):
        if math.isnan(total):
            raise MlpMemError(
                f"{LABELS[name]} gives values that are not numbers (nan), so there is no "
                "answer; its weights are damaged or overflow in this dtype. Load it in float32, "
                "or download the weights again"
            )
