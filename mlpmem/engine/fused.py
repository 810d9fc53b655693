"""Decoder, memory and datastore together: log-probs of every source, and their mix.

Nothing of a request is kept on the model. The datastore may come later: `attach_datastore` sets
one reference, and a call that has begun goes on with what was there when it began.

What answers beside the decoder, and what every source says at some positions.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mlpmem.api import Calls
from mlpmem.engine.distributions import interpolate, knn_log_probs, knn_weights, log_softmax
from mlpmem.engine.router import Router
from mlpmem.engine.settings import Settings, default_settings
from mlpmem.engine.trace import AUTO, PARTS
from mlpmem.errors import MlpMemError
from mlpmem.fast import attention
from mlpmem.fast.devices import calibrate, threads_for
from mlpmem.fast.gpt2_pass import Straight
from mlpmem.fast.llama_pass import LlamaPass, compiles
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore, Store
from mlpmem.retrieval.retriever import Neighbours, Retriever

PROBE = "The capital of Peru is Lima, and most people there live near the sea. In 1535 it was"


class Sources(NamedTuple):
    """What every source says at R positions."""

    names: tuple[str, ...]  # "lm" first
    log_probs: Tensor  # (S, R, V) float32, one slice a source
    neighbours: Neighbours | None  # (R, K)
    weights: Tensor | None  # (R, K) share of the kNN mass
    seconds: Mapping[str, float]  # spent on "memory" and "search", of all R

    def __getitem__(self, system: str) -> Tensor:
        """Return a source's log-probs (R, V), or those of a system's sources in equal shares."""
        parts = [self.log_probs[self.names.index(part)] for part in PARTS[system] or ("lm",)]
        return interpolate(*parts, 0.5) if len(parts) == 2 else parts[0]

    def nearest(self, system: str) -> Tensor | None:
        """Return squared distances (R,) of the nearest neighbours, None if none are searched."""
        searched = "knn" in PARTS[system]
        return self.neighbours.distances[:, 0] if searched else None


class FusedModel(Calls):
    """A decoder with what answers beside it; `systems` says what can be asked."""

    def __init__(
        self,
        decoder: Decoder,
        memory: Memory | None = None,
        settings: Settings | None = None,
        name: str = "",
        routers: Mapping[str, Router] | None = None,
    ) -> None:
        """Bind memory and routers to the decoder; MlpMemError if one belongs to another."""
        self.decoder = decoder
        decoder.straight = decoder.straight or LlamaPass.of(decoder)
        self.memory = memory.bind(decoder) if memory is not None else None
        self.settings = settings or default_settings(memory)
        self.name = name
        self.routers = {system: router.bind(decoder) for system, router in (routers or {}).items()}
        self._store: Store | None = None

    def only(self, system: str) -> "FusedModel":
        """Return a model of one system, which computes no other; all parts are shared."""
        parts = PARTS[system]
        memory = self.memory if "memory" in parts else None
        alone = FusedModel(self.decoder, memory, self.settings, self.name, self.routers)
        alone._store = self._store if "knn" in parts else None
        return alone

    def pack(self, bits: int = 0) -> "FusedModel":
        """Return self with weights laid out for decoding on this CPU; see linear.pack.

        Plain float32 is what a compiled step reads. What 4 bits change is kept as decoder.kl.
        """
        from mlpmem.fast.devices import give_back
        from mlpmem.fast.linear import pack

        before = self._probed() if bits == 4 else None
        shaped = LlamaPass.of(self.decoder) is not None and compiles()
        if bits or not shaped or self.decoder.model.dtype != torch.float32:
            self.decoder.straight = None  # it holds the layers that are replaced
            pack(self.decoder.model, bits)
        attention.use(self.decoder.model)
        self.decoder.straight = Straight.of(self.decoder) or LlamaPass.of(self.decoder)
        if self.memory is not None:
            pack(self.memory, bits)
        if before is not None:
            self.decoder.kl = float((before.exp() * (before - self._probed())).sum(-1).mean())
        calibrate(self.decoder)
        give_back()
        return self

    def _probed(self) -> Tensor:
        """Return the decoder's log-probs (T, V) over a few words."""
        ids = torch.tensor([self.decoder.encode(PROBE)])
        return self.decoder.forward(ids).logits[0].float().log_softmax(-1)

    @property
    def systems(self) -> list[str]:
        """Return the sources there are now, of "lm", "memory" and "knn": the usual columns.

        Where both are there, "mixed" can be asked too: half memory, half datastore.
        """
        return systems_of(self, self._store)

    @property
    def store(self) -> Store | None:
        """Return datastore and retriever together, as one value."""
        return self._store

    @property
    def datastore(self) -> Datastore | None:
        """Return the datastore, once it is attached."""
        return self._store.datastore if self._store else None

    @property
    def retriever(self) -> Retriever | None:
        """Return the retriever, once a datastore is attached."""
        return self._store.retriever if self._store else None

    def attach_datastore(self, datastore: Datastore, retriever: Retriever) -> None:
        """Add the system "knn"; calls under way do not see it."""
        self._store = self.make_store(datastore, retriever)

    def with_memory(self, memory: Memory) -> "FusedModel":
        """Return a model with this decoder and store and that memory, used as its config says.

        The store is used as before. This model stays as it is, for the calls under way.
        """
        settings = default_settings(memory)
        lmbda = {**settings.lmbda, "knn": self.settings.of("knn")}
        made = FusedModel(self.decoder, memory, replace(settings, lmbda=lmbda), self.name)
        made._store = self._store
        return made

    def make_store(self, datastore: Datastore, retriever: Retriever) -> Store:
        """Return what a call takes as `store`; MlpMemError for keys of another decoder."""
        if datastore.keys.shape[1] != self.decoder.hidden_size:
            raise MlpMemError(
                f"datastore: keys of size {datastore.keys.shape[1]} do not fit this decoder's "
                f"hidden size {self.decoder.hidden_size}; build the keys with this decoder"
            )
        device = self.decoder.device
        values = torch.from_numpy(datastore.values.astype("int64")).to(device)
        counts = torch.from_numpy(datastore.counts.astype("int32")).to(device)
        return Store(datastore, retriever, values, counts)

    @torch.inference_mode()
    def sources(self, hidden: Tensor, logits: Tensor, store: Store | None) -> Sources:
        """Return what every source says at hidden states (R, D) with the decoder's logits (R, V).

        Where no neighbour is found at all, "knn" has nothing to say and repeats "lm": that is
        lmbda 0 in any mix.
        """
        names, found, seconds = ["lm"], [log_softmax(logits)], {}
        if self.memory is not None:
            begin = time.perf_counter()
            weight = self.memory.lm_head.weight
            with threads_for(self.decoder, len(hidden)):
                logits = self.memory(hidden.to(weight.device, weight.dtype)).to(found[0].device)
            found.append(log_softmax(logits, self.settings.memory_temperature))
            names.append("memory")
            seconds["memory"] = time.perf_counter() - begin
        neighbours = weights = None
        if store is not None:
            begin = time.perf_counter()
            neighbours, weights, log_probs = self._look_up(hidden, store)
            found.append(torch.where(neighbours.indices[:, :1] < 0, found[0], log_probs))
            names.append("knn")
            seconds["search"] = time.perf_counter() - begin
        return Sources(tuple(names), torch.stack(found), neighbours, weights, seconds)

    def _look_up(self, hidden: Tensor, store: Store) -> tuple[Neighbours, Tensor, Tensor]:
        """Return neighbours (R, K), their weights, and the kNN log-probs (R, V)."""
        temperature, device = self.settings.knn_temperature, store.values.device
        found = store.retriever.search(hidden, min(self.settings.k, len(store.values)))
        indices, distances = (x.to(device) for x in found)
        at = indices.clamp_min(0)
        values = store.values[at].masked_fill(indices < 0, -1)
        arguments = distances, values, store.counts[at], temperature
        weights = knn_weights(*arguments)
        log_probs = knn_log_probs(*arguments, self.decoder.vocab_size)
        return Neighbours(indices, distances), weights, log_probs

    def weights(
        self, sources: Sources, system: str, lmbda: float | str, evidence: Tensor | None = None
    ) -> Tensor:
        """Return lambda (R,) at every position: one number, or for AUTO the router's.

        The router needs the evidence (R,) of what was read before.
        """
        lm = sources["lm"]
        if lmbda != AUTO:
            return torch.full(lm.shape[:1], lmbda, device=lm.device)
        other, nearest = sources[system], sources.nearest(system)
        return self.routers[system].lmbda(lm, other, evidence, nearest)

    def can_ask(self, system: str, store: Store | None) -> bool:
        """Return whether all that a system is made of is here."""
        return system in PARTS and set(PARTS[system] or ("lm",)) <= set(systems_of(self, store))

    def check_system(self, system: str | None, store: Store | None) -> str:
        """Return system, or the best there is for None; MlpMemError for one that is not there."""
        there = systems_of(self, store)
        if system is None:
            return "memory" if "memory" in there else there[-1]
        if not self.can_ask(system, store):
            hint = {
                "knn": "a datastore can be attached with text=[...] or comes with a bundle",
                "memory": "load one with memory=...",
                "mixed": "it needs memory and datastore",
            }.get(system, "choose one of these")
            raise MlpMemError(f"system {system!r} is not here, there is {', '.join(there)}; {hint}")
        return system

    def routed(self, store: Store | None = None) -> Mapping[str, Router]:
        """Return the routers that choose where a store stands for the model's own.

        Those of systems that search were fitted to the model's own store; another's neighbours,
        such as a visitor's few sentences, they would judge by what these never claimed to know.
        """
        if store is None or store is self._store:
            return self.routers
        return {s: router for s, router in self.routers.items() if "knn" not in PARTS[s]}

    def lmbdas(
        self,
        systems: Sequence[str],
        lmbda: float | str | Mapping[str, float | str] | None,
        store: Store | None = None,
    ) -> dict[str, float | str]:
        """Return every system's lambda, a number or AUTO; see `routed` and Settings.lmbdas."""
        return self.settings.lmbdas(systems, lmbda, self.routed(store))


def systems_of(model: FusedModel, store: Store | None) -> list[str]:
    """Return the systems of a model with this store."""
    return ["lm"] + ["memory"] * (model.memory is not None) + ["knn"] * (store is not None)
