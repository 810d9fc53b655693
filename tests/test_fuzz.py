"""Damaged and hostile input everywhere something is read: MlpMemError comes out, or what is right.

MLPMEM_FUZZ sets how many examples every test draws, for a longer look than the default.
"""

import gzip
import hashlib
import json
import os
import random
import shutil
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import numpy as np
import pytest
import tiny
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mlpmem.api import Model
from mlpmem.engine.router import FEATURES, Router, RouterConfig, load_routers
from mlpmem.engine.settings import Settings
from mlpmem.engine.trace import SOURCES, Trace
from mlpmem.errors import MlpMemError
from mlpmem.formats import parse_json, valid
from mlpmem.loading import extra_columns as given_columns
from mlpmem.loading.bundle import load_bundle
from mlpmem.model.decoder import Decoder
from mlpmem.model.lora import CONFIG, add_adapter, load_adapter, save_adapter
from mlpmem.model.memory import Memory
from mlpmem.model.prompts import as_messages, chat_ids
from mlpmem.model.tokenizer import PARTIAL, TextEnd, TextStream
from mlpmem.retrieval import key_cache
from mlpmem.retrieval.documents import Documents
from mlpmem.retrieval.texts import PLAIN_KINDS
from mlpmem.ui import endpoints
from mlpmem.ui.context import Shared
from mlpmem.ui.models import PageModel
from mlpmem.ui.panels import compare, results
from mlpmem.ui.panels import results as studies
from mlpmem.ui.recordings import recorded, saved
from mlpmem.ui.request import inputs
from mlpmem.ui.service import offers, own_text

ROOT = Path(__file__).parents[1]
EXAMPLES = int(os.environ.get("MLPMEM_FUZZ", "10"))
CHECKS = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
PHASES = [Phase.generate]  # a failure is shown as it was found: making it smaller takes minutes
fuzz = settings(max_examples=EXAMPLES, suppress_health_check=CHECKS, phases=PHASES)

SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=40)
    | st.sampled_from(["lm", "memory", "knn", "../x", "a\x00b", "${1}", 0, 1, -1, 0.5, 10**400])
)  # fmt: skip
SHARES = st.floats(0, 1)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def refused(call, *args, **kwargs):
    """Return call's value, None where it refused in a sentence; anything else is a failure."""
    try:
        return call(*args, **kwargs)
    except (MlpMemError, gr.Error) as error:
        said = str(error)
        assert said and "Traceback" not in said and str(ROOT) not in said
        return None


def places(value, at=()):
    """Yield the path of everything within a JSON value."""
    yield at
    rows = (
        value
        if isinstance(value, dict)
        else dict(enumerate(value if isinstance(value, list) else ()))
    )
    for key, inner in rows.items():
        yield from places(inner, (*at, key))


@st.composite
def damaged_json(draw, value) -> str:
    """Return the text of a JSON value with one thing in it replaced, left out, or cut off."""
    copy = json.loads(json.dumps(value))
    *path, last = draw(st.sampled_from([at for at in places(copy) if at]))
    inner = copy
    for key in path:
        inner = inner[key]
    how = draw(st.sampled_from(["replace", "replace", "delete", "cut", "deep"]))
    if how == "delete":
        del inner[last]
    elif how != "cut":
        inner[last] = draw(VALUES) if how == "replace" else "DEEP"
    text = json.dumps(copy).replace('"DEEP"', "[" * 99_999)
    return text[: int(draw(SHARES) * len(text))] if how == "cut" else text


@st.composite
def damaged_bytes(draw, content: bytes) -> bytes:
    """Return content with some bytes overwritten, or cut off."""
    at = int(draw(SHARES) * len(content)) if draw(st.booleans()) else draw(st.integers(0, 200))
    if draw(st.booleans()):
        return content[:at]
    some = draw(st.binary(min_size=1, max_size=8))
    return content[:at] + some + content[at + len(some) :]


@fuzz
@given(VALUES, st.lists(VALUES, min_size=6, max_size=6))
def test_what_a_visitor_sends_is_taken_within_bounds_or_refused(value, six):
    refused(inputs.check_text, value)
    refused(inputs.check_systems, value, ["lm", "memory"])
    refused(inputs.check_probe, value if isinstance(value, dict) else {"ids": value, "text": "a"})
    lmbda = refused(inputs.check_lmbda, value)
    assert lmbda in (None, "auto") or 0 <= lmbda <= 1
    chosen = refused(inputs.check_options, *six)
    assert chosen is None or 1 <= chosen.max_new_tokens <= inputs.MAX_NEW_TOKENS


@fuzz
@given(st.dictionaries(st.sampled_from(["q", "lambda", "tokens", "seed", "systems", "x"]), SCALARS))
def test_a_link_is_always_brought_within_bounds(query):
    link = inputs.read_link(query)
    if link is not None:
        numbers = [getattr(link.options, field) for field in inputs.BOUNDS]
        assert inputs.check_options(link.options.lmbda, *numbers) == link.options
        assert set(link.systems) <= set(SOURCES) and len(link.prompt) <= inputs.MAX_CHARACTERS


@pytest.fixture(scope="module")
def shared(tiny_model):
    offered = offers.Extras(mixed=True, documents=lambda model: model.datastore.documents)
    service = SimpleNamespace(model=tiny_model, extras=offered)
    return Shared(service, recorded.Recorded(), *[None] * 4, own_text.Shelf())


PROMPTS = VALUES | st.text(min_size=1, max_size=60)


@fuzz
@given(prompt=PROMPTS, systems=VALUES | st.just(None), numbers=st.lists(SCALARS, max_size=8))
def test_the_endpoints_answer_or_refuse(shared, prompt, systems, numbers):
    ask = endpoints.Endpoints([PageModel(shared.service, shared.recorded)])
    names = [*inputs.BOUNDS, "stop"]
    given_ = {"max_new_tokens": 2} | dict(zip(names, numbers, strict=False))
    given_["lmbda"] = numbers[-1] if numbers else None
    for call, arguments in (
        (ask.generate, {"prompt": prompt, "systems": systems, **given_}),
        (ask.score, {"text": prompt, "lmbda": given_["lmbda"]}),
        (ask.distributions, {"prompt": prompt, "system": systems}),
        (ask.neighbours, {"prompt": prompt}),
    ):
        run = ask.generate_stream if call == ask.generate else None
        asked = endpoints.as_generator(call, run)(**arguments)
        answers = refused(list, asked)
        assert answers is None or json.dumps(answers, allow_nan=False)


ASKED = {
    "kind": "branch", "run": "r", "prompt": "Peru", "system": "memory", "lmbda": 0.5,
    "settings": {"max_new_tokens": 2, "seed": 3}, "forced": [4],
}  # fmt: skip


@fuzz
@given(text=damaged_json(ASKED))
def test_a_request_of_a_column_is_answered_or_refused(shared, text):
    try:
        data = parse_json(text)
    except ValueError:
        data = text
    stop = SimpleNamespace(is_set=lambda: False)
    refused(lambda: list(compare.answer(shared, data, stop)))


@pytest.fixture(scope="module")
def run(tiny_model):
    traces = tiny_model.compare("Peru", max_new_tokens=2)
    return saved.record("Peru", {"answer": "Lima"}, 0.5, traces)


@fuzz
@given(data=st.data())
def test_a_saved_run_or_a_trace_is_read_or_refused(run, data):
    text = data.draw(damaged_json(run))
    refused(saved.read, text)
    read = refused(Trace.from_json, data.draw(damaged_json(run["traces"]["knn"])))
    assert read is None or read.to_json()


MEASURED = json.loads((ROOT / "tests/browser/results.json").read_text())


@fuzz
@given(text=damaged_json(MEASURED))
def test_results_of_any_kind_leave_a_page_that_opens(tmp_path, text):
    (tmp_path / "results.json").write_text(text)
    shown = recorded.read(tmp_path).results
    if shown is not None:
        assert "<" in results._tables(shown) and len(results.draw(shown)) == 5
        studies.questions(shown)


@fuzz
@given(content=st.binary(max_size=60) | st.text(max_size=60).map(str.encode), name=SCALARS)
def test_an_upload_is_read_or_refused(tmp_path, content, name):
    for kind in (*PLAIN_KINDS, ".gz", ".jsonl.gz"):
        path = tmp_path / f"a{kind}"
        path.write_bytes(gzip.compress(content) if kind == ".jsonl.gz" else content)
        read = refused(own_text.read_upload, path)
        pairs = refused(own_text.titled, *read) if read else None
        assert pairs is None or all(text.strip() for _, text in pairs)
    line = json.dumps({"text": name, "title": name})
    refused(own_text.titled, "a.jsonl", f"{line}\n{'[' * 99_999}")


@pytest.fixture(scope="module")
def memory(tmp_path_factory):
    """Return the files of a memory's folder by name."""
    folder = tmp_path_factory.mktemp("memory")
    tiny.memory(tiny.decoder()).save(folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


INDEX = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00001.safetensors"}}
PUBLISHED = {
    "model_type": "gpt2", "n_layer": 2, "n_embd": 32, "n_inner": None, "vocab_size": 263,
    "layer_norm_epsilon": 1e-5,
}  # fmt: skip


@fuzz
@given(data=st.data())
def test_a_memory_is_loaded_or_refused(memory, tmp_path, data):
    folder = tmp_path / "m"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = dict(memory)
    config = data.draw(st.sampled_from([json.loads(files["config.json"]), PUBLISHED]))
    what = data.draw(st.sampled_from(["config", "config", "weights", "index", "bin"]))
    if what == "config":
        files["config.json"] = data.draw(damaged_json(config)).encode()
    elif what == "weights":
        files["model.safetensors"] = data.draw(damaged_bytes(files["model.safetensors"]))
    else:
        del files["model.safetensors"]
        name = {"index": "model.safetensors.index.json", "bin": "pytorch_model.bin"}[what]
        files[name] = data.draw(st.binary(max_size=30) | damaged_json(INDEX).map(str.encode))
    for name, content in files.items():
        (folder / name).write_bytes(content)
    refused(Memory.load, folder)


CHAT = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def decoder_folder(tmp_path_factory):
    """Return a decoder's folder, a chat template in it; tests copy it."""
    folder = tmp_path_factory.mktemp("decoder")
    made = tiny.decoder()
    made.tokenizer.chat_template = CHAT
    made.model.save_pretrained(folder)
    made.tokenizer.save_pretrained(folder)
    return folder


ODD = [
    None, True, -1, 0, 10**6, 10**12, 2**70, 1e400, float("nan"), "", "x" * 99, "../x", [], {},
    [[]] * 99, {"a": None}, "{% for i in range(99999) %}{{ i }}{% endfor %}",
]  # fmt: skip


def damaged_file(content: bytes, chance: random.Random) -> bytes:
    """Return content with a value of its JSON replaced, some bytes overwritten, or cut off."""
    with suppress(ValueError):
        value = json.loads(content)
        paths = [at for at in places(value) if at]
        if paths and chance.random() < 0.7:
            *path, last = chance.choice(paths)
            inner = value
            for key in path:
                inner = inner[key]
            inner[last] = chance.choice(ODD)
            return json.dumps(value).encode()
    at = chance.randrange(len(content) + 1)
    if chance.random() < 0.5:
        return content[:at]
    return content[:at] + chance.randbytes(4) + content[at + 4 :]


@fuzz
@given(seed=st.integers(0, 2**32 - 1))
def test_a_decoder_is_loaded_and_answers_or_is_refused(decoder_folder, tmp_path, seed):
    chance, folder = random.Random(seed), tmp_path / "d"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    files = {path.name: path.read_bytes() for path in decoder_folder.iterdir()}
    index = "model.safetensors.index.json"
    name = chance.choice([index, *sorted(files)])
    files[name] = damaged_file(files.get(name, json.dumps(INDEX).encode()), chance)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    read = refused(Decoder.load, folder)
    if read is not None:
        model = Model(read)
        refused(model.generate, "Peru", "lm", max_new_tokens=2)
        refused(model.chat, "Hi", system="lm", max_new_tokens=2)


@pytest.fixture(scope="module")
def routers():
    """Return a router with and one without a hidden layer, of the tiny decoder."""
    bound = tiny.decoder()
    sizes = {"memory": 0, "knn": 3}
    return {
        system: Router(RouterConfig(system, bound.vocab_size, bound.tokenizer_hash, units))
        for system, units in sizes.items()
    }


@fuzz
@given(data=st.data())
def test_a_router_is_loaded_and_gives_a_lambda_or_refused(routers, tiny_model, tmp_path, data):
    router = routers[data.draw(st.sampled_from(sorted(routers)))]
    router.save(tmp_path / "a")
    path = tmp_path / "a" / data.draw(st.sampled_from(["config.json", "model.safetensors"]))
    if path.suffix == ".json" and data.draw(st.booleans()):
        text = data.draw(damaged_json(json.loads(path.read_text())))
        path.write_text(text, "utf-8", "replace")
    else:
        path.write_bytes(data.draw(damaged_bytes(path.read_bytes())))
    found = refused(load_routers, tmp_path)
    for loaded in (found or {}).values():
        refused(loaded.bind, tiny_model.decoder)
        for feature in (-80.0, 0.0, 80.0):
            lmbda = torch.sigmoid(loaded(torch.full((1, len(FEATURES)), feature)))
            assert 0 <= float(lmbda) <= 1


@pytest.fixture(scope="module")
def routed_bundle(routers, tmp_path_factory):
    return tiny.bundle(tmp_path_factory.mktemp("bundles") / "routed", routers=routers)


def seal(folder: Path) -> None:
    """Write sizes and hashes anew, as somebody who means harm would."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    for name in manifest["files"]:
        content = (folder / name).read_bytes()
        manifest["files"][name] = {
            "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()
        }  # fmt: skip
    path.write_text(json.dumps(manifest))


def opened(folder: Path):
    """Return a bundle's model with its datastore, after a question to it."""
    bundle = load_bundle(folder)
    model = bundle.model()
    bundle.attach(model, retriever="exact")
    model.compare("Peru", max_new_tokens=1)
    return model


@fuzz
@given(data=st.data())
def test_a_damaged_bundle_is_refused_and_one_sealed_again_is_read_or_refused(
    routed_bundle, tmp_path, monkeypatch, data
):
    folder = tmp_path / "bundle"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(routed_bundle.folder, folder)
    monkeypatch.setenv("MLPMEM_CACHE", str(tmp_path / "cache"))
    names = sorted(routed_bundle.manifest["files"])
    path = folder / data.draw(st.sampled_from([*names, "manifest.json"]))
    content = path.read_bytes()
    as_json = path.suffix == ".json" and path.stat().st_size < 20_000 and data.draw(st.booleans())
    if as_json and json.loads(content):
        path.write_text(data.draw(damaged_json(json.loads(content))), "utf-8")
    else:
        path.write_bytes(data.draw(damaged_bytes(content)))
    recorded.read(folder).defaults()
    if path.name == "manifest.json":
        refused(opened, folder)
    elif path.read_bytes() != content:
        with pytest.raises(MlpMemError):
            load_bundle(folder)
        seal(folder)
        refused(opened, folder)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    place = tmp_path_factory.mktemp("adapter")
    save_adapter(add_adapter(tiny.decoder().model, 1), place)
    return {path.name: path.read_bytes() for path in place.iterdir()}


@fuzz
@given(data=st.data())
def test_a_damaged_adapter_is_merged_or_refused_and_its_decoder_stays(
    tiny_model, adapter, tmp_path, data
):
    files = dict(adapter)
    name = data.draw(st.sampled_from(sorted(files)))
    if name == CONFIG and data.draw(st.booleans()):
        files[name] = data.draw(damaged_json(json.loads(files[name]))).encode("utf-8", "replace")
    else:
        files[name] = data.draw(damaged_bytes(files[name]))
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    before = tiny_model.decoder.head_weight.sum()
    tuned = refused(load_adapter, tiny_model.decoder, tmp_path)
    assert tiny_model.decoder.head_weight.sum() == before
    assert tuned is None or tuned.model is not tiny_model.decoder.model


@fuzz
@given(value=VALUES)
def test_adapters_that_a_manifest_lists_are_columns_or_refused(tmp_path, value):
    listed = given_columns.bundled
    refused(listed, tmp_path, {"files": {}, "adapters": value})
    refused(listed, tmp_path, {"files": {}, "adapters": {"a": value}})


@fuzz
@given(data=st.data())
def test_documents_of_any_arrays_are_read_or_refused(tmp_path, data):
    folder = tmp_path / "documents"
    tiny.documents().save(folder)
    name = data.draw(st.sampled_from(["tokens", "offsets", "document_of"]))
    kinds = [np.int8, np.int64, np.uint64, np.float32, np.complex64, "U3", bool, "M8[s]"]
    dtype = data.draw(st.sampled_from(kinds))
    shape = data.draw(st.sampled_from([(), (0,), (5,), (6,), (3, 2)]))
    filler = data.draw(st.integers(-3, 3))
    array = np.full(shape, filler).astype(dtype)
    np.save(folder / f"{name}.npy", array)
    refused(Documents.load, folder)


@fuzz
@given(data=st.data())
def test_a_damaged_cache_gives_the_same_keys_as_none(tmp_path, monkeypatch, data):
    monkeypatch.setenv("MLPMEM_CACHE", str(tmp_path))
    decoder, documents = tiny.decoder(), tiny.documents()
    right = np.array(key_cache.build_or_read(decoder, documents, "x").datastore.keys)
    path = tmp_path / data.draw(st.sampled_from(["keys-x.npy", "keys-x.json"]))
    whole = path.read_bytes()
    if path.suffix == ".json" and data.draw(st.booleans()):
        path.write_text(data.draw(damaged_json(json.loads(whole))), "utf-8")
    else:
        path.write_bytes(data.draw(damaged_bytes(whole)))
    again = key_cache.build_or_read(decoder, documents, "x")
    assert np.array_equal(again.datastore.keys, right)


@fuzz
@given(st.dictionaries(st.sampled_from(["lmbda", "k", "knn_temperature", "x"]), VALUES))
def test_settings_are_taken_or_refused(values):
    bundle = load_bundle(ROOT / "assets" / "atlas")
    made = refused(lambda: type(bundle)(bundle.folder, {"settings": values}).settings)
    assert made is None or isinstance(made, Settings)


CONTROL = st.sampled_from(["</s>", "<s>", "<|im_end|>", "<", "s>", "\u2581", "\ue000", " ", "\n"])
TYPED = st.lists(st.text(max_size=6) | CONTROL, max_size=8).map("".join)


@fuzz
@given(text=TYPED)
def test_typed_text_never_becomes_a_control_token_and_stays_as_it_is(tiny_model, text):
    decoder = tiny_model.decoder
    ids = decoder.encode(text)
    assert not set(ids[1:]) & decoder.special_ids and ids[0] == 0
    assert decoder.decode(ids) == valid(text)
    if valid(text).strip():
        asked = chat_ids(decoder, text)
        assert asked.count(0) == 1 and valid(text) in decoder.spelled(asked)


@fuzz
@given(
    chat=VALUES | st.lists(st.fixed_dictionaries({"role": VALUES, "content": VALUES}), max_size=3)
)
def test_a_chat_of_any_shape_is_read_or_refused(chat):
    messages = refused(as_messages, chat)
    assert messages is None or messages[-1]["role"] == "user"


@fuzz
@given(text=st.text(max_size=30), cuts=st.lists(st.integers(0, 60), max_size=6))
def test_characters_that_are_cut_anywhere_come_whole(text, cuts):
    data, stream = text.encode("utf-8", "replace"), TextStream()
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    shown = [stream.push(data[a:b]) for a, b in pairwise(edges)]
    assert "".join(part for part in shown if part != PARTIAL) == data.decode("utf-8")


@fuzz
@given(
    pieces=st.lists(st.binary(max_size=4) | st.sampled_from([b"ab", b"\xf0\x9f", b"\x98\x80"])),
    stops=st.lists(st.text("ab\U0001f600", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_texts_are_found_in_the_end_as_in_the_whole(pieces, stops):
    end, data = TextEnd(), b""
    for piece in pieces:
        data += piece
        found = any(stop in data.decode("utf-8", "replace") for stop in stops)
        assert end.stops(piece, stops) == found
        if found:
            break


@fuzz
@given(stop=VALUES, other=st.dictionaries(st.text(max_size=12), VALUES, max_size=2))
def test_options_of_any_shape_are_taken_or_refused(tiny_model, stop, other):
    ours = {"max_new_tokens", "temperature", "seed", "lmbda", "sources", "cancel", "store"}
    if not set(other) & ours:
        refused(tiny_model.generate, "Peru", "lm", max_new_tokens=1, stop=stop, **other)
