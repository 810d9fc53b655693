"""A text corpus becomes passages without losing a token, in splits that share no document."""

import json

import numpy as np
import pytest
import tiny

from mlpmem.errors import MlpMemError
from mlpmem.model.tokenizer import load_tokenizer
from mlpmem.retrieval.documents import Documents
from train.config.corpus import CorpusConfig
from train.config.load import load_recipe
from train.corpora import readers as limits
from train.corpora.text import _draw_split, make_tokenizer, write_corpus
from train.corpora.writer import DocumentWriter
from train.run.stage import StageContext
from train.stages.corpus import make_corpus

WORDS = "the cat in Lima and the hat then sang to the river again".split()


def story(i, words=40):
    """Return a document's text."""
    rng = np.random.default_rng(i)
    return f"Story {i}. " + " ".join(rng.choice(WORDS, words)) + "\n"


def stories(path, count, separator="<|e|>\n"):
    """Write a file of documents; return its path."""
    path.write_text(separator.join(map(story, range(count))), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    """Return the folder of a tokenizer."""
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.tokenizer().save_pretrained(folder)
    return str(folder)


def text_of(documents, tokenizer_folder):
    """Check BOS and EOS of documents; return {title: text} without them."""
    tokenizer, texts = load_tokenizer(tokenizer_folder), {}
    for p in range(len(documents)):
        ids = documents.passage(p).tolist()
        assert ids[0] == tokenizer.bos_token_id and tokenizer.bos_token_id not in ids[1:]
        title = documents.titles[documents.document_of[p]]
        texts[title] = texts.get(title, "") + tokenizer.decode(ids, skip_special_tokens=True)
    ends = np.flatnonzero(np.diff(documents.document_of, append=-1))
    last = documents.tokens[documents.offsets[ends + 1] - 1]
    assert (last == tokenizer.eos_token_id).all() and len(last) == len(documents.titles)
    assert (documents.tokens == tokenizer.eos_token_id).sum() == len(last)
    return texts


@pytest.mark.parametrize("block", [50, 2**18])
def test_every_document_is_in_one_split_and_training_documents_are_cut(
    tmp_path, tokenizer_folder, monkeypatch, block
):
    monkeypatch.setattr(limits, "BLOCK", block)
    source = stories(tmp_path / "s.txt", 200)
    config = CorpusConfig(
        kind="text", train=(source,), separator="<|e|>", tokenizer=tokenizer_folder, passage=30,
        shares=(0.1, 0.2),
    )  # fmt: skip
    counts = make_corpus(StageContext(tmp_path / "out", {}, config, 3))
    parts = {name: Documents.load(tmp_path / "out" / name) for name in ("memory", "valid", "test")}
    texts = {name: text_of(part, tokenizer_folder) for name, part in parts.items()}
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


def test_an_exactly_full_passage_is_followed_by_no_empty_one(tmp_path, tokenizer_folder):
    for length in range(27, 33):
        (tmp_path / "a.txt").write_text("x" * length)
        (tmp_path / "b.txt").write_text("yy")
        config = CorpusConfig(
            kind="text", train=(str(tmp_path),), valid=(str(tmp_path),), test=(str(tmp_path),),
            tokenizer=tokenizer_folder, passage=10,
        )  # fmt: skip
        out = tmp_path.with_name(f"{tmp_path.name}-{length}")
        write_corpus(out, config, 0)
        documents = Documents.load(out / "memory")
        expected = [10] * ((length + 1) // 9) + [(length + 1) % 9 + 1] * ((length + 1) % 9 > 0)
        assert np.diff(documents.offsets).tolist() == [*expected, 4]


def test_the_split_depends_only_on_seed_and_text_and_approximates_its_share():
    shares = [("valid", 0.1), ("test", 0.3)]
    splits = [_draw_split(f"text {i}", 1, shares) for i in range(4000)]
    assert splits == [_draw_split(f"text {i}", 1, shares) for i in range(4000)]
    assert splits != [_draw_split(f"text {i}", 2, shares) for i in range(4000)]
    assert splits.count("valid") / 4000 == pytest.approx(0.1, abs=0.02)
    assert splits.count("test") / 4000 == pytest.approx(0.3, abs=0.03)


def test_a_tokenizer_is_trained_only_on_the_training_split(tmp_path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_text("hatter hatter hatter " * 50)
    test.write_text("zebras zebras zebras " * 50)
    config = CorpusConfig(
        kind="text", train=(str(train),), valid=(str(test),), test=(str(test),), vocab_size=280
    )
    vocabulary = make_tokenizer(config, 0).get_vocab()
    assert any("hatt" in piece for piece in vocabulary)
    assert not any("zebr" in piece for piece in vocabulary)


def test_gpt2s_two_files_give_a_tokenizer(tmp_path):
    pieces = ["<|endoftext|>", "l", "o", "Ġ", "lo"]
    (tmp_path / "encoder.json").write_text(json.dumps({p: i for i, p in enumerate(pieces)}))
    (tmp_path / "vocab.bpe").write_text("#version: 0.2\nl o\n")
    tokenizer = make_tokenizer(CorpusConfig(kind="text", train=("x",), tokenizer=str(tmp_path)), 0)
    assert tokenizer("lo lo", add_special_tokens=False)["input_ids"] == [4, 3, 4]
    assert tokenizer.eos_token_id == tokenizer.bos_token_id == 0


def test_the_error_for_a_folder_without_a_tokenizer_names_the_files(tmp_path):
    with pytest.raises(MlpMemError, match="no readable tokenizer; give .*tokenizer.json"):
        make_tokenizer(CorpusConfig(kind="text", train=("x",), tokenizer=str(tmp_path)), 0)


def test_a_missing_tokenizer_folder_is_named(tmp_path):
    with pytest.raises(
        MlpMemError, match="there is no folder .*stories260K, the recipe's tokenizer"
    ):
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
def test_a_corpus_with_too_little_text_is_refused(
    tmp_path, tokenizer_folder, files, config, message
):
    (tmp_path / "in").mkdir()
    for name, text in files.items():
        (tmp_path / "in" / name).write_text(text)
    with pytest.raises(MlpMemError, match=message):
        config = CorpusConfig(
            kind="text", train=(str(tmp_path / "in"),), tokenizer=tokenizer_folder, **config
        )
        write_corpus(tmp_path / "out", config, 0)


def test_the_error_for_a_text_recipe_without_sources_shows_how_to_name_them(tmp_path):
    with pytest.raises(MlpMemError, match="Give train = .*relative to the recipe"):
        write_corpus(tmp_path, CorpusConfig(kind="text"), 0)


def test_streamed_documents_equal_those_saved_at_once(tmp_path):
    documents = tiny.documents()
    with DocumentWriter(tmp_path / "one", 300) as writer:
        begun = -1
        for p in range(len(documents)):
            document = int(documents.document_of[p])
            while begun < document:
                begun += 1
                writer.begin(documents.titles[begun], documents.groups[begun])
            half = len(documents.passage(p)) // 2
            writer.extend(documents.passage(p)[:half])
            writer.extend(documents.passage(p)[half:].tolist())
            writer.end_passage()
    documents.save(tmp_path / "whole")
    for path in (tmp_path / "whole").iterdir():
        assert path.read_bytes() == (tmp_path / "one" / path.name).read_bytes(), path.name


def test_a_folder_of_no_documents_loads(tmp_path):
    with DocumentWriter(tmp_path, 70000) as writer:
        assert writer.tokens.dtype == np.int32
    assert len(np.load(tmp_path / "tokens.npy")) == 0
    assert len(Documents.load(tmp_path)) == 0


def test_paths_are_relative_to_the_recipe_and_the_tokenizer_is_the_decoders(tmp_path):
    (tmp_path / "recipes").mkdir()
    path = tmp_path / "recipes/mine.toml"
    path.write_text(
        '[corpus]\nkind = "text"\ntrain = ["../a.txt", "hub:x/y"]\n[decoder]\nsource = "../model"\n'
    )
    recipe = load_recipe(str(path))
    assert recipe.corpus.train == (str(tmp_path.resolve() / "a.txt"), "hub:x/y")
    assert recipe.corpus.tokenizer == recipe.decoder.source == str(tmp_path.resolve() / "model")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "texts"}, "kind must be one of atlas, chat, text; got 'texts'"),
        ({"passage": 1}, "passage must be 2 or more; got 1"),
        ({"shares": (0.5, 0.5)}, "shares must be two .*; got .0.5, 0.5."),
        ({"heading": "("}, "heading must be a regular expression; got"),
    ],
)
def test_impossible_settings_of_a_corpus_are_refused(values, message):
    with pytest.raises(MlpMemError, match=message):
        CorpusConfig(**values)
