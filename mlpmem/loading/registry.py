"""Systems by name: those of a model, and the extra columns.

"lm", "memory", "knn" and "mixed" are systems of the model; "auto", "auto_knn" and "auto_mixed" use
the router's lambda. "rag" puts passages before the decoder's prompt, "rag_memory" also uses the
memory, and "rag_5" reads five passages. The columns of `extra_columns.py` come last.
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
    """Systems built on request; decoder, memory and datastore are shared."""

    def __init__(
        self,
        model: Model,
        columns: Sequence[ExtraColumn] = (),
        documents: Callable[[], Documents] | None = None,  # for RAG
        *,
        lmbda: float | None = None,  # None: the lambda of the model or of the memory
        passages: Sequence[int] = (1,),  # passages before a prompt: first of "rag", then of "rag_N"
        layout: str | None = None,  # see Rag
        seconds: Mapping[str, float] | None = None,  # training time of the model's own systems
    ) -> None:
        """Store the sources; systems are built on request."""
        self.model, self.columns, self.lmbda = model, list(columns), lmbda
        self._documents, self._counts, self._layout = documents, passages, layout
        self._seconds = dict(seconds or {})

    @property
    def searches(self) -> bool:
        """Return whether a datastore exists or can be built."""
        return self.model.store is not None

    @property
    def makers(self) -> dict[str, Callable[[], System]]:
        """Return {name: function that builds the system}."""
        with_memory = self.model.memory is not None
        makers: dict[str, Callable[[], System]] = {"lm": partial(self._column, "lm")}
        if with_memory:
            makers["memory"] = partial(self._column, "memory")
        if self.searches:
            makers["knn"] = partial(self._column, "knn")
        if self._documents is not None:
            makers["rag"] = partial(self._rag, "lm", "rag", self._counts[0])
            for count in self._counts[1:]:
                makers[f"rag_{count}"] = partial(self._rag, "lm", f"rag_{count}", count)
        if with_memory and self.searches:
            makers["mixed"] = partial(self._column, "mixed")
        if with_memory and self._documents is not None:
            makers["rag_memory"] = partial(self._rag, "memory", "rag_memory", self._counts[0])
        for system in self.model.routers:
            name = AUTO if system == "memory" else f"{AUTO}_{system}"
            makers[name] = partial(self._column, system, AUTO, name)
        return makers | {column.name: partial(self._extra, column) for column in self.columns}

    def system(self, name: str) -> System:
        """Return a system by name; MlpMemError if it does not exist."""
        return self.systems([name])[0]

    def systems(self, names: Sequence[str]) -> list[System]:
        """Return systems by name, all if names is empty; MlpMemError if one does not exist."""
        makers = self.makers
        for name in names:
            if name not in makers:
                raise MlpMemError(
                    f"system must be one of {', '.join(makers)}; got {name!r}. Load a bundle or a "
                    "text for retrieval and kNN, folders for tuned decoders and other memories"
                )
        return [makers[name]() for name in names or makers]

    @cached_property
    def passages(self) -> Passages:
        """Return the index of the corpus's passages."""
        return Passages(self._documents(), self.model.decoder)

    def only(self, system: str) -> Model:
        """Return a model that computes only this system."""
        return self.model.only(system)

    def base(self, column: ExtraColumn) -> Decoder:
        """Return the decoder that an adapter was trained on."""
        return self.model.decoder

    def _column(self, system: str, lmbda: float | str | None = None, name: str = "") -> ModelSystem:
        lmbda = self.lmbda if lmbda is None else lmbda
        lmbda = self.model.settings.of(system) if lmbda is None else lmbda  # "auto" keeps its name
        label = f"{LABELS[system]}, lambda by token" if lmbda == AUTO else ""
        seconds = self._seconds.get(system, 0.0)
        return ModelSystem(self.only(system), system, lmbda, name, label, seconds)

    def _rag(self, inner: str, name: str, count: int) -> Rag:
        return Rag(self._column(inner), self.passages, count, self._layout, name)

    def _extra(self, column: ExtraColumn) -> ModelSystem:
        """Load the weights of an extra column and return its system."""
        decoder, label = self.model.decoder, column.label or KINDS[column.kind]
        options = {"device": decoder.device, "dtype": decoder.model.dtype}
        if column.kind == "memory":
            memory = Memory.load(column.folder, **options)
            model = Model(decoder, memory, default_settings(memory), column.name)
            lmbda = column.lmbda if self.lmbda is None else self.lmbda
            return ModelSystem(model, "memory", lmbda, column.name, label, column.seconds)
        if column.kind == "adapter":
            tuned = load_adapter(self.base(column), column.folder)
        else:
            tuned = Decoder.load(column.folder, **options)
        model = Model(tuned, None, None, column.name)
        return ModelSystem(model, "lm", None, column.name, label, column.seconds)
