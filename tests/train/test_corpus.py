"""The tokenizer splits numbers into digits and loses nothing; the corpus keeps groups separate."""

import dataclasses
import json
from importlib.util import find_spec

import numpy as np
import pytest

from mlpmem.retrieval.documents import Documents
from train.config.corpus import AtlasOptions, CorpusConfig
from train.corpora.atlas import facts
from train.corpora.tokenizer import BOS, EOS, encode_segments, train_tokenizer
from train.files import read_lines, write_lines
from train.measure.questions import cell_of, encode_questions
from train.run.stage import StageContext
from train.stages.corpus import make_corpus

MISSING = [name for name in facts.PACKAGES if find_spec(name) is None]
TEXTS = [
    "The capital of Peru is Lima.",
    "Lima lies 1550 km from Cusco; the city was founded in 1535.",
    "Question: What is the capital of Peru? Answer: Lima",
] * 20


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS, 300)


def test_it_has_the_requested_number_of_tokens_with_special_ones_first(tokenizer):
    assert len(tokenizer) == 300
    assert tokenizer.convert_tokens_to_ids([BOS, EOS]) == [0, 1]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BOS, EOS, EOS)


def test_every_digit_is_a_token_even_in_frequent_numbers(tokenizer):
    ids = tokenizer.encode(" 1535 and 1550, x98", add_special_tokens=False)
    pieces = tokenizer.convert_ids_to_tokens(ids)
    digits = [piece for piece in pieces if any(c.isdigit() for c in piece)]
    assert [d.lstrip("Ġ") for d in digits] == list("1535155098")


@pytest.mark.parametrize(
    "text",
    [
        "Perú, São Tomé & 金 — naïve\u00a0café",
        "tabs\tand\n\nlines  and   spaces ",
        "٣ ½ ²: digits of other kinds; 🙂🏽 \U0010fffd \u0000 \x7f",
        "combin\u0301ing, \u200fright to left\u200e, 한국어, ﷽",
        "",
        " ",
    ],
)
def test_any_text_round_trips(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_a_text_begins_with_bos_and_only_there(tokenizer):
    ids = tokenizer.encode("The capital of Peru is Lima.")
    assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
    assert tokenizer.encode("", add_special_tokens=False) == []


def test_every_segment_ends_with_eos_and_the_passage_begins_with_bos(tokenizer):
    passages = [["Lima.", "Peru 金."], ["Cusco."], ["a", "", "b"]]
    encoded = encode_segments(tokenizer, passages)
    for ids, segments in zip(encoded, passages, strict=True):
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        ends = [i for i, token in enumerate(ids) if token == tokenizer.eos_token_id]
        assert len(ends) == len(segments)
        starts = [1, *(end + 1 for end in ends)]
        parts = [tokenizer.decode(ids[a:b]) for a, b in zip(starts, ends, strict=False)]
        assert parts == segments


def test_a_prompt_is_the_beginning_of_prompt_and_answer(tokenizer):
    answers = ["Lima", "1535", "São Tomé", "-5 °C", "金", "(none)", "'s", "Lima</s>", "?!"]
    prompts = ["The capital is", "Question: Where? Answer:", "In 1535", "(", "It's", "café金"]
    for prompt in prompts:
        ids = tokenizer.encode(prompt)
        for answer in answers:
            for end in ("", ".", EOS):
                assert tokenizer.encode(f"{prompt} {answer}{end}")[: len(ids)] == ids


def test_json_lines_round_trip(tmp_path):
    rows = [{"a": "Perú\n\u2028", "n": 1}, {}, {"list": [1, None]}]
    write_lines(tmp_path / "x.jsonl", rows)
    assert read_lines(tmp_path / "x.jsonl") == rows


# The stage


OPTIONS = AtlasOptions(strangers=0.25, memory_strangers=0.05, odd_words=0.3)
SMALL = CorpusConfig(scale=0.02, vocab_size=700, draws=3, atlas=OPTIONS)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Return the folder and the counts of a very small corpus."""
    if MISSING:
        pytest.skip(f"data packages missing: {MISSING}")
    folder = tmp_path_factory.mktemp("corpus")
    counts = make_corpus(StageContext(folder, {}, SMALL, 5))
    return folder, counts


def load(corpus, part):
    return Documents.load(corpus[0] / part)


def test_all_parts_are_written_and_counted(corpus):
    folder, counts = corpus
    parts = ["decoder_00", "decoder_01", "decoder_02", "heldout", "memory"]
    assert sorted(p.name for p in folder.iterdir() if p.is_dir()) == [*parts, "tokenizer"]
    sizes = {part: len(load(corpus, part).tokens) for part in parts}
    assert {part: counts[part] for part in parts} == sizes
    assert counts["tokens"] == sum(sizes.values())
    assert set(counts["entities"]) == {"A1", "A2", "B"} and min(counts["entities"].values()) > 0
    assert json.loads((folder / "attributions.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("part", "groups"),
    [
        ("decoder_00", {"A1", "A2", "stranger"}),
        ("decoder_02", {"A1", "A2", "stranger"}),
        ("memory", {"A1", "B", "stranger"}),
        ("heldout", {"A2", "B"}),
    ],
)
def test_every_part_has_only_the_groups_of_its_reader(corpus, part, groups):
    documents = load(corpus, part)
    assert set(np.array(documents.groups)[documents.document_of]) == groups


@pytest.mark.slow
def test_a_plain_decoders_corpus_is_that_of_decoder_and_memory_together(corpus, tmp_path):
    make_corpus(StageContext(tmp_path, {}, dataclasses.replace(SMALL, together=True), 5))

    def passages(folder, part):
        documents = Documents.load(folder / part)
        return sorted(documents.passage(p).tolist() for p in range(len(documents)))

    decoder, memory = (passages(corpus[0], part) for part in ("decoder_01", "memory"))
    assert passages(tmp_path, "memory") == memory
    assert passages(tmp_path, "decoder_01") == sorted(decoder + memory)


def test_documents_are_the_same_in_every_part(corpus):
    parts = [load(corpus, part) for part in ("decoder_00", "decoder_01", "memory", "heldout")]
    for part in parts:  # training parts end with one entry for all strangers
        count = len(parts[-1].titles)
        assert part.titles[:count] == parts[-1].titles and part.groups[:count] == parts[-1].groups


def test_passages_are_shuffled_and_begin_with_bos_and_end_with_eos(corpus):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus[0] / "tokenizer")
    documents = load(corpus, "memory")
    assert (np.diff(documents.document_of) < 0).sum() > len(documents) / 4
    assert documents.tokens.max() < len(tokenizer) == 700
    for p in range(len(documents)):
        ids = documents.passage(p).tolist()
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert tokenizer.bos_token_id not in ids[1:]
        text = tokenizer.decode(ids, skip_special_tokens=True)
        assert tokenizer.encode(text.replace(EOS, ""), add_special_tokens=False)


def test_every_question_can_be_tokenised(corpus):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(corpus[0] / "tokenizer")
    rows = read_lines(corpus[0] / "questions.jsonl")
    questions = encode_questions(tokenizer, rows)  # asserts that prompts keep their tokens
    assert len(questions.rows) == len(rows)
    groups = {cell.split("/")[0] for cell in map(cell_of, rows)}
    assert groups == {"A1", "A2", "B"}
    titles = load(corpus, "memory").titles
    assert {r["title"] for r in rows} <= set(titles)
    assert {"prompt", "title", "group"} <= set(read_lines(corpus[0] / "abouts.jsonl")[0])


@pytest.mark.slow
def test_the_same_seed_gives_the_same_files(corpus, tmp_path):
    def files(folder):
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in paths}

    make_corpus(StageContext(tmp_path, {}, SMALL, 5))
    assert files(tmp_path) == files(corpus[0])
