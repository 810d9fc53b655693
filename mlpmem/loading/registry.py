"""Systems by name: those of a model, and the extra columns.

"lm", "memory", "knn" and "mixed" are systems of the model; "auto", "auto_knn" and "auto_mixed" use
the router's lambda. "rag" puts passages before the decoder's prompt, "rag_memory" also uses the
memory, and "rag_5" reads five passages. The columns of `extra_columns.py` follow.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial

from mlpmem.api import Model
from mlpmem.engine.rag import Rag
from mlpmem.engine.settings import default_settings
from mlpmem.engine.systems import LABELS, ModelSystem, System
from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError
from mlpmem.loading.extra_columns import ExtraColumn
from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import load_adapter
from mlpmem.model.memory import Memory
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.text_search import Passages

KINDS = {
    "decoder": "another decoder", "adapter": "the decoder with LoRA", "memory": "decoder + memory",
}  # fmt: skip


class SystemRegistry:
    """Systems made when they are asked for; decoder, memory and datastore are shared."""

    def __init__(
        self,
        model: Model,
        given: Sequence[ExtraColumn] = (),
        documents: Callable[[], Documents] | None = None,  # what retrieval reads
        *,
        lmbda: float | None = None,  # None: the model's, or the memory's own
        passages: Sequence[int] = (1,),  # before a prompt: of "rag", and of others "rag_N"
        layout: str | None = None,  # see Rag
        seconds: Mapping[str, float] | None = None,  # of the model's own systems
    ) -> None:
        """Remember what there is; nothing is made yet."""
        self.model, self.given, self.lmbda = model, list(given), lmbda
        self._documents, self._counts, self._layout = documents, passages, layout
        self._seconds = dict(seconds or {})

    @property
    def searches(self) -> bool:
        """Return whether there is a datastore, or can be."""
        return self.model.store is not None

    @property
    def makers(self) -> dict[str, Callable[[], System]]:
        """Return {name: function that makes it} of all there are here."""
        with_memory = self.model.memory is not None
        found: dict[str, Callable[[], System]] = {"lm": partial(self._column, "lm")}
        if with_memory:
            found["memory"] = partial(self._column, "memory")
        if self.searches:
            found["knn"] = partial(self._column, "knn")
        if self._documents is not None:
            found["rag"] = partial(self._rag, "lm", "rag", self._counts[0])
            for count in self._counts[1:]:
                found[f"rag_{count}"] = partial(self._rag, "lm", f"rag_{count}", count)
        if with_memory and self.searches:
            found["mixed"] = partial(self._column, "mixed")
        if with_memory and self._documents is not None:
            found["rag_memory"] = partial(self._rag, "memory", "rag_memory", self._counts[0])
        for system in self.model.routers:
            name = AUTO if system == "memory" else f"{AUTO}_{system}"
            found[name] = partial(self._column, system, AUTO, name)
        return found | {given.name: partial(self._beside, given) for given in self.given}

    def system(self, name: str) -> System:
        """Return the system of a name; MlpMemError for one that is not here."""
        return self.systems([name])[0]

    def systems(self, names: Sequence[str]) -> list[System]:
        """Return the systems of these names, all for none; MlpMemError for one that is not here."""
        makers = self.makers
        for name in names:
            if name not in makers:
                raise MlpMemError(
                    f"system {name!r} is not here, there is {', '.join(makers)}; retrieval and kNN "
                    "come with a bundle or a text, tuned decoders and other memories with folders"
                )
        return [makers[name]() for name in names or makers]

    @cached_property
    def passages(self) -> Passages:
        """Return the index of the corpus's passages, made when first asked for."""
        return Passages(self._documents(), self.model.decoder)

    def alone(self, system: str) -> Model:
        """Return the model with nothing beside the system that it does not need."""
        return self.model.only(system)

    def base(self, given: ExtraColumn) -> Decoder:
        """Return the decoder that an adapter was trained on."""
        return self.model.decoder

    def _column(self, system: str, lmbda: float | str | None = None, name: str = "") -> ModelSystem:
        """Return a column of the model."""
        lmbda = self.lmbda if lmbda is None else lmbda
        lmbda = self.model.settings.of(system) if lmbda is None else lmbda  # "auto" is its own name
        label = f"{LABELS[system]}, lambda by token" if lmbda == AUTO else ""
        seconds = self._seconds.get(system, 0.0)
        return ModelSystem(self.alone(system), system, lmbda, name, label, seconds)

    def _rag(self, inner: str, name: str, count: int) -> Rag:
        """Return a column with so many passages before the prompt."""
        return Rag(self._column(inner), self.passages, count, self._layout, name)

    def _beside(self, given: ExtraColumn) -> ModelSystem:
        """Return the column of a folder, its weights read."""
        decoder, label = self.model.decoder, given.label or KINDS[given.kind]
        held = {"device": decoder.device, "dtype": decoder.model.dtype}
        if given.kind == "memory":
            memory = Memory.load(given.folder, **held)
            model = Model(decoder, memory, default_settings(memory), given.name)
            lmbda = given.lmbda if self.lmbda is None else self.lmbda
            return ModelSystem(model, "memory", lmbda, given.name, label, given.seconds)
        if given.kind == "adapter":
            tuned = load_adapter(self.base(given), given.folder)
        else:
            tuned = Decoder.load(given.folder, **held)
        model = Model(tuned, None, None, given.name)
        return ModelSystem(model, "lm", None, given.name, label, given.seconds)
