"""The corpus kind "text": your own documents, measured by the perplexity of held-out text.

`train/corpora/text.py` reads and cuts them.
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
from mlpmem.model.tokenizer import encode_text
from mlpmem.retrieval.datastore import Datastore
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.texts import PLAIN_KINDS, decoded, opened
from train.config.corpus import CorpusConfig
from train.config.load import HUB
from train.config.tables import ExportConfig, Recipe, RouterFitConfig
from train.corpora.readers import files_of
from train.corpora.text import make_tokenizer, write_corpus
from train.measure.atlas import MeasuredModel
from train.measure.by_token import measure as measure_modes
from train.measure.findings import perplexity
from train.measure.text import (
    TEXT_LAMBDAS,
    best_lambda,
    choose_mix,
    curve,
    measure_golds,
    measure_text,
    slide,
    units_of,
)
from train.run.kinds import BundleExamples, Kind, Measurement, RouterData, Trial
from train.run.sizes import UnknownSizeError
from train.run.stage import StageContext

BYTES_PER_TOKEN = 4.0  # of ordinary text
SAMPLE = 3  # pieces of a text (64 KiB each) to tokenize, if the tokenizer is local
PROMPT, CONTINUED = 32, 24  # tokens of a prompt and of its recorded continuation
GROUP = "longer"  # the page's group of examples without a right answer


class TextKind(Kind):
    """Documents without questions, in three splits: the memory's, validation and test."""

    name, has_questions = "text", False
    distinct, hard = 1.0, 0.7  # ordinary text repeats few prefixes

    def tokens(self, recipe: Recipe) -> tuple[int, int, int]:
        """Return tokens of all splits, of the decoder's training, of the training split."""
        config = recipe.corpus
        files = {name: _files(getattr(config, name)) for name in ("train", "valid", "test")}
        rate = _bytes_per_token(config, files["train"])
        tokens = {
            name: round(sum(file.stat().st_size for file in paths) / rate)
            for name, paths in files.items()
        }
        drawn = sum(share for share, n in zip(config.shares, ("valid", "test"), strict=True)
                    if not tokens[n])  # fmt: skip
        keyed = round(tokens["train"] * (1 - drawn))
        return sum(tokens.values()), recipe.decoder.epochs * keyed, keyed

    def router_tokens(self, recipe: Recipe) -> int:
        """Return tokens of the validation windows, which overlap by half."""
        return 2 * recipe.router.tokens

    def scored_tokens(self, recipe: Recipe, keyed: int) -> int:
        """Return tokens of validation and test windows."""
        config = recipe.evaluate
        return 2 * config.tokens * config.window // config.stride

    def make(self, context: StageContext) -> dict:
        """Return counts; writes tokenizer/, memory/ (the training split), valid/ and test/."""
        return write_corpus(context.folder, context.config, context.seed)

    def heldout(self, split: str) -> str:
        """Return the split's own folder."""
        return split

    def router_data(
        self, corpus: Path, decoder: Decoder, config: RouterFitConfig, seed: int
    ) -> RouterData:
        """Return tokens of the validation split, in sliding windows as in evaluate."""
        valid = Documents.load(corpus / "valid")
        window = min(config.window, decoder.max_positions)
        documents, positions = slide(valid, window, max(1, window // 2), config.tokens, seed)
        return RouterData(documents, positions, torch.full((len(positions),), 1 / len(positions)))

    def measure(
        self, context: StageContext, decoder: Decoder, memory: Memory, store: Datastore
    ) -> dict:
        """Return perplexities at the k, temperature and lambdas best on the validation split."""
        return measure_text(context, decoder, memory, store)

    def bundle_examples(
        self, model: Model, corpus: Path, config: ExportConfig, seed: int
    ) -> BundleExamples:
        """Return prompts that begin documents, and recorded comparisons of their continuations."""
        documents = Documents.load(corpus / "test")
        examples = prefixes(model, documents, config.examples, seed)
        recorded, answered = [], []
        for example in examples[: max(1, config.traces)]:
            traces = model.compare(example["prompt"], max_new_tokens=CONTINUED)
            answered.append(traces)
            row = {"v": 1, **{key: example[key] for key in ("name", "prompt", "answer")}}
            recorded.append(row | {"traces": {name: t.to_dict() for name, t in traces.items()}})
        return BundleExamples(examples, [], recorded[: config.traces], answered)

    def measurements(self, trial: Trial, systems: Sequence[str]) -> Iterator[Measurement]:
        """Yield the test's perplexity, at settings best on the validation split."""
        recipe, decoder, memory = trial.recipe, trial.decoder, trial.memory
        sizes, most = recipe.evaluate, recipe.studies.positions
        texts = [
            slide(Documents.load(trial.corpus / s), sizes.window, sizes.stride, most, recipe.seed)
            for s in ("valid", "test")
        ]
        units = units_of(*texts[1])
        if trial.store is None:
            valid, test = (MeasuredModel(decoder, memory).grid(*text) for text in texts)
            gold = valid.gold_nll
            lmbda = {"memory": best_lambda(curve(gold["lm"], gold["memory"], TEXT_LAMBDAS))}
            nll = {s: test.nll(s, lmbda.get(s, 0.0)) for s in systems}
        else:
            valid, test = (
                measure_golds(decoder, memory, trial.store, t, max(sizes.ks)) for t in texts
            )
            temperatures = tuple(t * trial.scale for t in sizes.temperatures)
            mix = choose_mix(valid, replace(sizes, temperatures=temperatures))
            lmbda, nll = mix.lmbda, {s: mix.nll(test, s) for s in systems}
        for system in systems:
            ppl = perplexity(nll[system], units)
            yield Measurement(system, "test", "perplexity", ppl, lmbda.get(system, 0.0))

    def measurements_by_mode(
        self, model: Model, corpus: Path, most: int, seed: int
    ) -> Iterator[Measurement]:
        """Yield the perplexity of a sample of the test split."""
        window = min(256, model.decoder.max_positions)
        text, positions = slide(Documents.load(corpus / "test"), window, window // 2, most, seed)
        measured, units = measure_modes(model, text, positions), units_of(text, positions)
        for (system, mode), (_, nll) in measured.items():
            yield Measurement(system, "text/test", "perplexity", perplexity(nll, units), mode)


def prefixes(model: Model, documents: Documents, count: int, seed: int) -> list[dict]:
    """Return examples: beginnings of documents, cut at a space, without a right answer."""
    order = random.Random(seed).sample(range(len(documents)), len(documents))
    examples = []
    for p in order:
        ids = documents.passage(p)[:PROMPT].tolist()
        prompt = model.decoder.decode(ids).strip().rpartition(" ")[0]
        if prompt and len(examples) < count:
            title = documents.titles[int(documents.document_of[p])]
            example = {"name": title, "title": title, "prompt": prompt, "answer": ""}
            examples.append(example | {"group": GROUP, "part": "", "invented": False})
    return examples


def _files(sources: tuple[str, ...]) -> list[Path]:
    """Return the files of a split; UnknownSizeError if one is not local."""
    files = []
    for source in sources:
        try:
            if source.startswith(HUB):
                raise MlpMemError(f"{source} is not on this machine")
            files += files_of(source)
        except MlpMemError as error:
            raise UnknownSizeError(
                f"plan: {error}, so its size is unknown; run `python -m train corpus` first, or "
                "give [stated] tokens = ... in a recipe that is only planned"
            ) from error
    return files


def _bytes_per_token(config: CorpusConfig, files: list[Path]) -> float:
    """Return bytes of text per token, counted on a sample if the tokenizer is a local folder."""
    plain = [path for path in files if path.suffix.lower() in PLAIN_KINDS]
    if not plain or not Path(config.tokenizer or HUB).is_dir():
        return BYTES_PER_TOKEN
    with suppress(MlpMemError):  # the stage corpus will report it
        with opened(plain[0]) as file:
            text = "".join(islice(decoded(file, plain[0]), SAMPLE))
        ids = encode_text(make_tokenizer(config, 0), text)
        return len(text.encode()) / len(ids) if ids else BYTES_PER_TOKEN
    return BYTES_PER_TOKEN
