"""A text corpus becomes passages that lose no token, in splits that share no document."""

import json

import numpy as np
import pytest
import tiny

from mlpmem.errors import MlpMemError
from mlpmem.model.tokenizer import load_tokenizer
from mlpmem.retrieval.documents import Documents
from train.config.load import load_recipe
from train.config.tables import CorpusConfig
from train.corpora import readers as limits
from train.corpora.text import _drawn, make_tokenizer, write_corpus
from train.corpora.writer import DocumentWriter
from train.run.stage import StageContext
from train.stages.corpus import make_corpus

WORDS = "the cat in Lima and the hat then sang to the river again".split()


def story(i, words=40):
    """Return a document's text."""
    luck = np.random.default_rng(i)
    return f"Story {i}. " + " ".join(luck.choice(WORDS, words)) + "\n"


def stories(path, count, separator="<|e|>\n"):
    """Write a file of documents; return its path."""
    path.write_text(separator.join(map(story, range(count))), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    """Return the folder of a tokenizer."""
    folder = tmp_path_factory.mktemp("words")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def text_of(documents, words):
    """Return {title: text} of documents, marks checked and left out."""
    tokenizer, found = load_tokenizer(words), {}
    for p in range(len(documents)):
        ids = documents.passage(p).tolist()
        assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
        title = documents.titles[documents.document_of[p]]
        found[title] = found.get(title, "") + tokenizer.decode(ids, skip_special_tokens=True)
    ends = np.flatnonzero(np.diff(documents.document_of, append=-1))
    last = documents.tokens[documents.offsets[ends + 1] - 1]
    assert (last == tokenizer.eos_token_id).all() and len(last) == len(documents.titles)
    assert (documents.tokens == tokenizer.eos_token_id).sum() == len(last)
    return found


@pytest.mark.parametrize("block", [50, 2**18])
def test_every_document_is_in_one_split_whole_and_cut_where_it_is_remembered(
    tmp_path, words, monkeypatch, block
):
    monkeypatch.setattr(limits, "BLOCK", block)
    source = stories(tmp_path / "s.txt", 200)
    config = CorpusConfig(
        kind="text", train=(source,), separator="<|e|>", tokenizer=words, passage=30,
        shares=(0.1, 0.2),
    )  # fmt: skip
    counts = make_corpus(StageContext(tmp_path / "out", {}, config, 3))
    parts = {name: Documents.load(tmp_path / "out" / name) for name in ("memory", "valid", "test")}
    texts = {name: text_of(part, words) for name, part in parts.items()}
    assert sorted(t for part in texts.values() for t in part.values()) == sorted(
        map(story, range(200))
    )
    assert 8 <= len(texts["valid"]) <= 34 and 22 <= len(texts["test"]) <= 60
    assert np.diff(parts["memory"].offsets).max() == 30
    for name in ("valid", "test"):
        assert len(parts[name]) == len(parts[name].titles)
    assert counts["train"] == {
        "tokens": len(parts["memory"].tokens), "documents": len(parts["memory"].titles),
    }  # fmt: skip
    assert parts["memory"].tokens.dtype == np.uint16 and set(parts["memory"].groups) == {"text"}


def test_a_passage_that_is_just_full_is_closed_without_an_empty_one(tmp_path, words):
    for length in range(27, 33):
        (tmp_path / "a.txt").write_text("x" * length)
        (tmp_path / "b.txt").write_text("yy")
        config = CorpusConfig(
            kind="text", train=(str(tmp_path),), valid=(str(tmp_path),), test=(str(tmp_path),),
            tokenizer=words, passage=10,
        )  # fmt: skip
        out = tmp_path.with_name(f"{tmp_path.name}-{length}")
        write_corpus(out, config, 0)
        documents = Documents.load(out / "memory")
        expected = [10] * ((length + 1) // 9) + [(length + 1) % 9 + 1] * ((length + 1) % 9 > 0)
        assert np.diff(documents.offsets).tolist() == [*expected, 4]


def test_the_split_is_of_seed_and_text_alone_and_near_its_share():
    shares = [("valid", 0.1), ("test", 0.3)]
    splits = [_drawn(f"text {i}", 1, shares) for i in range(4000)]
    assert splits == [_drawn(f"text {i}", 1, shares) for i in range(4000)]
    assert splits != [_drawn(f"text {i}", 2, shares) for i in range(4000)]
    assert splits.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.3, abs=0.03)


def test_a_tokenizer_is_trained_on_the_training_split_alone(tmp_path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("hatter hatter hatter " * 50)
    test.write_text("zebras zebras zebras " * 50)
    config = CorpusConfig(
        kind="text", train=(str(train),), valid=(str(test),), test=(str(test),), vocab_size=280
    )
    vocabulary = make_tokenizer(config, 0).get_vocab()
    assert any("hatt" in piece for piece in vocabulary)
    assert not any("zebr" in piece for piece in vocabulary)


def test_gpt2s_two_files_are_a_tokenizer(tmp_path):
    pieces = ["<|endoftext|>", "l", "o", "Ġ", "lo"]
    (tmp_path / "encoder.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nl o\n")
    made = make_tokenizer(CorpusConfig(kind="text", train=("x",), tokenizer=str(tmp_path)), 0)
    assert made("lo lo", add_special_tokens=False)["input_ids"] == [4, 3, 4]
    assert made.eos_token_id == made.bos_token_id == 0


def test_a_folder_without_a_tokenizer_says_what_is_needed(tmp_path):
    with pytest.raises(MlpMemError, match="no tokenizer that can be read; give .*tokenizer.json"):
        make_tokenizer(CorpusConfig(kind="text", train=("x",), tokenizer=str(tmp_path)), 0)


def test_a_folder_of_a_tokenizer_that_is_not_there_is_said_so(tmp_path):
    with pytest.raises(MlpMemError, match="there is no folder .*stories260K, whose tokenizer"):
        make_tokenizer(
            CorpusConfig(kind="text", train=("x",), tokenizer=str(tmp_path / "stories260K")), 0
        )


@pytest.mark.parametrize(
    ("files", "config", "message"),
    [
        ({"a.txt": "", "b.txt": ""}, {}, "train split has no text .left out: 2 empty files"),
        ({"a.txt": "text"}, {}, "no document fell into the valid split .*raise shares"),
    ],
)
def test_a_corpus_that_holds_too_little_says_so(tmp_path, words, files, config, message):
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text)
    with pytest.raises(MlpMemError, match=message):
        made = CorpusConfig(kind="text", train=(str(tmp_path / "in"),), tokenizer=words, **config)
        write_corpus(tmp_path / "out", made, 0)


def test_a_text_recipe_without_sources_says_how_to_give_them(tmp_path):
    with pytest.raises(MlpMemError, match="give train = .*relative to the recipe"):
        write_corpus(tmp_path, CorpusConfig(kind="text"), 0)


def test_documents_written_one_by_one_are_those_saved_at_once(tmp_path):
    documents = tiny.documents()
    with DocumentWriter(tmp_path / "one", 300) as writer:
        done = -1
        for p in range(len(documents)):
            document = int(documents.document_of[p])
            while done < document:
                done += 1
                writer.begin(documents.titles[done], documents.groups[done])
            half = len(documents.passage(p)) // 2
            writer.extend(documents.passage(p)[:half])
            writer.extend(documents.passage(p)[half:].tolist())
            writer.end_passage()
    documents.save(tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes(), path.name


def test_no_documents_are_an_empty_folder_that_loads(tmp_path):
    with DocumentWriter(tmp_path, 70000) as writer:
        assert writer.tokens.dtype == np.int32
    assert len(np.load(tmp_path / "tokens.npy")) == 0
    assert len(Documents.load(tmp_path)) == 0


def test_paths_are_relative_to_the_recipe_and_a_decoder_brings_its_tokenizer(tmp_path):
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes/mine.toml"
    path.write_text(
        '[corpus]\nkind = "text"\ntrain = ["../a.txt", "hub:x/y"]\n[decoder]\nsource = "../model"\n'
    )
    made = load_recipe(str(path))
    assert made.corpus.train == (str(tmp_path.resolve() / "a.txt"), "hub:x/y")
    assert made.corpus.tokenizer == made.decoder.source == str(tmp_path.resolve() / "model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "texts"}, "kind is 'texts', it must be one of atlas, text"),
        ({"passage": 1}, "passage is 1 and must be 2"),
        ({"shares": (0.5, 0.5)}, "shares is .0.5, 0.5. and must be"),
        ({"heading": "("}, "is no regular expression"),
    ],
)
def test_a_corpus_that_cannot_be_is_refused(values, message):
    with pytest.raises(MlpMemError, match=message):
        CorpusConfig(**values)
