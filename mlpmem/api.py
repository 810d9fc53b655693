"""What a model can be asked: text by every source, a text's score, what is behind a token.

What is more than a few lines is a module of its own, imported when it is first asked for; the
parts that answer are in `fused.py`.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from mlpmem.engine.distributions import interpolate
from mlpmem.engine.router import reached, read_prompt
from mlpmem.engine.trace import AUTO
from mlpmem.errors import MlpMemError
from mlpmem.retrieval.datastore import Store, store_texts


class Calls:
    """The calls of a FusedModel. `store` stands for the model's own datastore, in that call."""

    def compare(self, prompt: str | Sequence[int], systems: Sequence[str] | None = None, **options):
        """Return {system: Trace} of one batch over one prefill; see generation.compare.

        store=... answers "knn" from another datastore than the model's, for this call alone.
        """
        from mlpmem.engine.generation import compare

        return compare(self, prompt, systems, **options)

    def scrub(self, prompt: str | Sequence[int], system: str | None = None, **options):
        """Return {lmbda: Trace} of one system (default the memory); see generation.scrub."""
        from mlpmem.engine.generation import scrub

        return scrub(self, prompt, system, **options)

    def generate(self, prompt: str | Sequence[int], system: str | None = None, **options):
        """Return the Trace of one system (default the memory); stream=True gives Events."""
        system = self.check_system(system, options.get("store") or self._store)
        made = self.compare(prompt, [system], **options)
        return made if isinstance(made, Iterator) else made[system]

    def chat(self, turns: Sequence[tuple[str, str]], system: str | None = None, **options):
        """Return the Trace of the answer to the last of (question, answer) turns."""
        from mlpmem.model.prompts import chat_ids

        room = self.decoder.max_positions - options.get("max_new_tokens", 32)
        return self.generate(chat_ids(self.decoder, turns, room), system, **options)

    def score(self, text: str, store: Store | None = None):
        """Return the Score of a text: nll of every token by every source; see scoring.score."""
        from mlpmem.engine.scoring import score

        return score(self, text, store)

    def inspect(self, text: str, system: str | None = None, **options):
        """Return Events, at last the Trace of a text as it stands; see inspection.inspect."""
        from mlpmem.engine.scoring import inspect

        return inspect(self, text, system, **options)

    def probe(self, ids: Sequence[int], text: str, store: Store | None = None):
        """Return what every source gives a named token after ids; see inspection.probe."""
        from mlpmem.engine.scoring import probe

        return probe(self, ids, text, store)

    def store_texts(self, titled: Sequence[tuple[str, str]], **options) -> Store:
        """Return a store of (title, text) pairs, for calls that take one; see store_texts."""
        return store_texts(self.decoder, titled, **options)

    def corpus(self, store: Store | None = None):
        """Return the texts behind a store, to be searched and read; MlpMemError without one."""
        from mlpmem.model.tokenizer import PARTED, text_of
        from mlpmem.retrieval.text_search import Corpus

        store = store or self._store
        if store is None:
            raise MlpMemError("there is no datastore yet whose texts could be read; wait for it")

        def decode(ids: list[int]) -> str:
            return text_of(self.decoder, ids).strip(PARTED)

        return Corpus(store.datastore.documents, decode)

    @torch.inference_mode()
    def distributions(
        self,
        prompt: str | Sequence[int],
        lmbda: float | str | None = None,
        system: str | None = None,
        store: Store | None = None,
    ) -> dict[str, Tensor]:
        """Return log-probs (V,) of the next token by every source, and "fused" by system's mix."""
        from mlpmem.model.prompts import check_prompt

        store = store or self._store
        system = self.check_system(system, store)
        lmbda = self.lmbdas([system], lmbda, store)[system]
        ids = check_prompt(self.decoder, prompt, 1)
        output = self.decoder.forward(torch.tensor([ids]), last=1 + reached(ids, lmbda == AUTO))
        routed = {system: system} if lmbda == AUTO else {}
        evidence = read_prompt(self, output, ids, routed, store).now([system])
        sources = self.sources(output.hidden[:, -1], output.logits[:, -1], store)
        weights = self.weights(sources, system, lmbda, evidence)
        fused = interpolate(sources["lm"], sources[system], weights)
        return {name: sources[name][0] for name in sources.names} | {"fused": fused[0]}
