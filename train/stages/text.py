"""The kind of corpus "text": documents of one's own, measured by the perplexity of held-out text.

Open `train/corpora/text.py` for how it is read and cut.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.texts import TEXT_KINDS, decoded, opened
from train.config.load import HUB
from train.config.tables import CorpusConfig, ExportConfig, Recipe, RouterFitConfig
from train.corpora.readers import files_of
from train.corpora.text import make_tokenizer, write_corpus
from train.measure.atlas import MeasuredModel
from train.measure.by_token import measure as measure_modes
from train.measure.findings import perplexity
from train.measure.text import (
    TEXT_LAMBDAS,
    best_lambda,
    choose,
    curve,
    look,
    measure_text,
    slide,
    units_of,
)
from train.run.kinds import Kind, Measurement, Seen, Shown, Trial
from train.run.sizes import UnknownSizeError
from train.run.stage import StageContext

BYTES_A_TOKEN = 4.0  # of text, before it was tokenised
SAMPLE = 3  # pieces of a text (64 KiB each) that are tokenised where the tokenizer is here
PROMPT, CONTINUED = 32, 24  # tokens of a prefix, and that are recorded after it
GROUP = "longer"  # the page's group of examples that have no right answer


class TextKind(Kind):
    """Documents without questions, in three splits: what is remembered, validation and test."""

    name, asks = "text", False
    distinct, hard = 1.0, 0.7  # ordinary text repeats few prefixes

    def tokens(self, recipe: Recipe) -> tuple[int, int, int]:
        """Return tokens of all splits, those the decoder learns, those of the training split."""
        config = recipe.corpus
        files = {name: _files(getattr(config, name)) for name in ("train", "valid", "test")}
        rate = _bytes_a_token(config, files["train"])
        size = {
            name: round(sum(file.stat().st_size for file in some) / rate)
            for name, some in files.items()
        }
        drawn = sum(share for share, n in zip(config.shares, ("valid", "test"), strict=True)
                    if not size[n])  # fmt: skip
        keyed = round(size["train"] * (1 - drawn))
        return sum(size.values()), recipe.decoder.epochs * keyed, keyed

    def seen_tokens(self, recipe: Recipe) -> int:
        """Return tokens of the validation split, in windows that overlap by half."""
        return 2 * recipe.router.tokens

    def scored_tokens(self, recipe: Recipe, keyed: int) -> int:
        """Return tokens of both splits that measure, in their windows."""
        config = recipe.evaluate
        return 2 * config.tokens * config.window // config.stride

    def make(self, context: StageContext) -> dict:
        """Return counts; writes tokenizer/, memory/ (the training split), valid/ and test/."""
        return write_corpus(context.folder, context.config, context.seed)

    def heldout(self, split: str) -> str:
        """Return the split's own folder."""
        return split

    def see(self, corpus: Path, decoder: Decoder, config: RouterFitConfig, seed: int) -> Seen:
        """Return tokens of the validation split, which windows slide over as in evaluate."""
        valid = Documents.load(corpus / "valid")
        window = min(config.window, decoder.max_positions)
        documents, positions = slide(valid, window, max(1, window // 2), config.tokens, seed)
        return Seen(documents, positions, torch.full((len(positions),), 1 / len(positions)))

    def measure(
        self, context: StageContext, decoder: Decoder, memory: Memory, store: Datastore
    ) -> dict:
        """Return perplexities; k, temperature and lambdas are best on the validation split."""
        return measure_text(context, decoder, memory, store)

    def show(self, model: Model, corpus: Path, config: ExportConfig, seed: int) -> Shown:
        """Return how documents begin, and recorded comparisons of what follows."""
        documents = Documents.load(corpus / "test")
        examples = prefixes(model, documents, config.examples, seed)
        recorded, traces = [], []
        for example in examples[: max(1, config.traces)]:
            made = model.compare(example["prompt"], max_new_tokens=CONTINUED)
            traces.append(made)
            kept = {"v": 1, **{key: example[key] for key in ("name", "prompt", "answer")}}
            recorded.append(kept | {"traces": {name: t.to_dict() for name, t in made.items()}})
        return Shown(examples, [], recorded[: config.traces], traces)

    def measurements(self, trial: Trial, systems: Sequence[str]) -> Iterator[Measurement]:
        """Yield the test's perplexity; what is chosen is best on the validation split."""
        recipe, decoder, memory = trial.recipe, trial.decoder, trial.memory
        sizes, most = recipe.evaluate, recipe.studies.positions
        texts = [
            slide(Documents.load(trial.corpus / s), sizes.window, sizes.stride, most, recipe.seed)
            for s in ("valid", "test")
        ]
        of = units_of(*texts[1])
        if trial.store is None:
            valid, test = (MeasuredModel(decoder, memory).grid(*text) for text in texts)
            own = valid.gold_nll
            lmbda = {"memory": best_lambda(curve(own["lm"], own["memory"], TEXT_LAMBDAS))}
            nll = {s: test.nll(s, lmbda.get(s, 0.0)) for s in systems}
        else:
            valid, test = (look(decoder, memory, trial.store, t, max(sizes.ks)) for t in texts)
            tried = tuple(t * trial.scale for t in sizes.temperatures)
            use = choose(valid, replace(sizes, temperatures=tried))
            lmbda, nll = use.lmbda, {s: use.nll(test, s) for s in systems}
        for system in systems:
            found = perplexity(nll[system], of)
            yield Measurement(system, "test", "perplexity", found, lmbda.get(system, 0.0))

    def measurements_by_mode(
        self, model: Model, corpus: Path, most: int, seed: int
    ) -> Iterator[Measurement]:
        """Yield the perplexity of a sample of the test split."""
        window = min(256, model.decoder.max_positions)
        text, positions = slide(Documents.load(corpus / "test"), window, window // 2, most, seed)
        measured, of = measure_modes(model, text, positions), units_of(text, positions)
        for (system, mode), (_, nll) in measured.items():
            yield Measurement(system, "text/test", "perplexity", perplexity(nll, of), mode)


def prefixes(model: Model, documents: Documents, count: int, seed: int) -> list[dict]:
    """Return examples: how documents begin, up to a space. A continuation has no right answer."""
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    found = []
    for p in order:
        ids = documents.passage(p)[:PROMPT].tolist()
        prompt = model.decoder.decode(ids).strip().rpartition(" ")[0]
        if prompt and len(found) < count:
            title = documents.titles[int(documents.document_of[p])]
            known = {"name": title, "title": title, "prompt": prompt, "answer": ""}
            found.append(known | {"group": GROUP, "part": "", "invented": False})
    return found


def _files(sources: tuple[str, ...]) -> list[Path]:
    """Return the files that hold a split; UnknownSizeError for text that is not here."""
    found = []
    for source in sources:
        try:
            if source.startswith(HUB):
                raise MlpMemError(f"{source} is not here")
            found += files_of(source)
        except MlpMemError as error:
            raise UnknownSizeError(
                f"plan: {error}, so its size is not known; run `python -m train corpus` first, or "
                "give [stated] tokens = ... in a recipe made for the ledger alone"
            ) from error
    return found


def _bytes_a_token(config: CorpusConfig, files: list[Path]) -> float:
    """Return bytes of text a token: counted on a sample where the tokenizer is in a folder here."""
    plain = [path for path in files if path.suffix.lower() in TEXT_KINDS]  # bytes that are text
    if not plain or not Path(config.tokenizer or HUB).is_dir():
        return BYTES_A_TOKEN
    with suppress(MlpMemError):  # the corpus says so when its turn comes
        with opened(plain[0]) as file:
            text = "".join(islice(decoded(file, plain[0]), SAMPLE))
        ids = make_tokenizer(config, 0)(text, add_special_tokens=False, verbose=False)["input_ids"]
        return len(text.encode()) / len(ids) if ids else BYTES_A_TOKEN
    return BYTES_A_TOKEN
