"""The browser's engine under node: the same answers as Python on tiny random models."""

import itertools
import json
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from node_engine import NODE, QUESTION, TOOLS, answers, node, plan, same_steps

from mlpmem.engine.router import FEATURES
from mlpmem.loading.bundle import load_bundle
from mlpmem.model.tokenizer import TextStream, encode_texts, load_tokenizer, tokenizer_hash
from mlpmem.space import live
from mlpmem.ui.components import STATIC

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return (model, listing, folder) of a tiny bundle with a router that reads everything."""
    folder = tmp_path_factory.mktemp("live")
    routers = tiny.routed().routers
    router = routers["memory"]
    with torch.no_grad():
        router.out.weight.copy_(torch.linspace(-0.3, 0.2, len(FEATURES))[None])
        router.mean.fill_(0.1)
        router.scale.fill_(1.3)
    tiny.bundle(folder / "bundle", routers={"memory": router})
    model = load_bundle(folder / "bundle").model()
    return model, live.write(folder / "bundle", folder / "site"), folder / "site"


@pytest.mark.parametrize(("name", "bytes_"), [("kernel", "kernel"), ("blocks", "blocks_kernel")])
def test_the_kernels_bytes_are_its_sources(name, bytes_):
    if not (TOOLS / "node_modules" / "wabt").is_dir():
        pytest.skip("no assembler: npm ci --prefix tests/js")
    wat = STATIC / "live" / "model" / "products" / f"{name}.wat"
    command = [NODE, "assemble.mjs", str(wat)]
    done = subprocess.run(command, cwd=TOOLS, capture_output=True, text=True)
    lines = re.findall(r'^  "([\w+/=]+)",$', wat.with_name(f"{bytes_}.js").read_text("utf-8"), re.M)
    assert "".join(done.stdout.split()) == "".join(lines), done.stderr


TEXTS = [
    "", " ", "the in an", "The capital of Peru is Lima.", "a\ufeffb \u0085 c\u00a0d\u200be\u2003",
    "café naïve 金 \U0001f600 ﬁ \u0301", "\t\tx\n\n y\r\n", "</s> and <s>", "it's we'll I'D 12.50",
    "\ud800x".encode("utf-16", "surrogatepass").decode("utf-16", "replace"), "x" * 5000,
]  # fmt: skip


def test_bytes_become_characters_as_they_do_in_python(site):
    _, listing, folder = site
    # an ASCII letter, the edges of what may follow, and every kind of beginning
    kinds = bytes.fromhex("41 80 8f 90 9f a0 bf c0 c2 e0 e1 ed ef f0 f1 f4 f5 ff")
    written = [list(four) for four in itertools.product(kinds, repeat=4)]
    (found,) = answers(listing, folder, {"written": written})
    for four, ours in zip(written, found, strict=True):
        text = TextStream()
        assert ours == [text.push(bytes([byte])) for byte in four], bytes(four)


@pytest.mark.parametrize("source", ["tiny", "atlas"])
def test_texts_are_cut_as_python_cuts_them(site, source):
    model, listing, folder = site
    pairs = (f"a{chr(i)} {chr(i)}9" for i in range(1, 0x900))
    texts = [*TEXTS, *map(chr, range(1, 0x3000)), *pairs]
    tasks = [{"encode": texts}, {"encode": TEXTS, "special": True}, {"hash": True}]
    tokenizer = model.decoder.tokenizer
    if source == "atlas":
        decoder = str(Path(__file__).parents[2] / "assets" / "atlas" / "decoder")
        tokenizer = load_tokenizer(decoder)
        tasks = [{"cut": decoder, "tasks": tasks}]
    results = answers(listing, folder, *tasks)
    plain, special, digest = results[0] if source == "atlas" else results
    assert plain == encode_texts(tokenizer, texts)
    assert special == encode_texts(tokenizer, TEXTS, special=True)
    assert digest == tokenizer_hash(tokenizer)


@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "plain"])
def test_every_source_gives_pythons_log_probs(site, plain):
    model, listing, folder = site
    ids = model.decoder.encode(QUESTION + " Lima is the capital of Peru and the largest town")
    assert len(ids) > 2 * 32, "several passes of the decoder"
    answer = node(listing, folder, {"logs": ids}, plain=plain)
    assert answer["kernel"] is not plain
    output = model.decoder.forward(torch.tensor([ids]))
    sources = model.sources(*output.states(0), None)
    for name in ("lm", "memory"):
        ours = torch.tensor([row[name] for row in answer["results"][0]])
        torch.testing.assert_close(ours, sources[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("largest", [60.0, 100.0], ids=["halves", "floats"])
def test_the_kernel_takes_every_half_exactly(site, largest):
    model, listing, folder = site
    name = "memory/model.safetensors"
    data = b"".join((folder / part).read_bytes() for part in listing["files"][name]["parts"])
    start = 8 + int.from_bytes(data[:8], "little")
    halves = np.frombuffer(data[start:], np.float16).copy()
    halves[::7] = np.arange(len(halves[::7])) % 1024 * np.float16(6e-8)  # subnormal
    halves[1001] = largest
    (folder / "exact").write_bytes(data[:start] + halves.tobytes())
    other = {**listing, "files": {**listing["files"], name: {"parts": ["exact"]}}}
    task = {"logs": model.decoder.encode(QUESTION)}
    kernel, plain = (answers(other, folder, task, plain=plain)[0] for plain in (False, True))
    for ours, wanted in zip(kernel, plain, strict=True):
        assert ours["memory"] == pytest.approx(wanted["memory"], abs=1e-4)


def test_numbers_are_rounded_to_halves_as_numpy_rounds_them(site):
    _, listing, folder = site
    halves = np.random.default_rng(0).normal(size=200) * 10.0 ** np.arange(-8, 12).repeat(10)[:200]
    halves = np.concatenate([halves[np.abs(halves) < 60000], [0.0, 6e-8, 2**-25, 1.00048828125]])
    (half,) = answers(listing, folder, {"half": halves.tolist()})
    assert half == halves.astype(np.float32).astype(np.float16).astype(float).tolist()


@pytest.mark.parametrize("lmbda", [None, 0.3, "auto", 0.0, 1.0])
def test_a_comparison_is_pythons(site, lmbda):
    model, listing, folder = site
    (values,) = answers(listing, folder, plan(systems=["lm", "memory"], lmbda=lmbda))
    assert [values[0]["kind"], values[-1]["kind"]] == ["begin", "done"]
    traces = model.compare(QUESTION, ["lm", "memory"], sources=["memory"], lmbda=lmbda,
                           max_new_tokens=12)  # fmt: skip
    for system, trace in traces.items():
        own = values[-1]["traces"][system]
        same_steps(own["steps"], trace.steps)
        for key in ("prompt", "prompt_ids", "lmbda", "settings", "finish", "text"):
            assert own[key] == trace.to_dict()[key], key
        assert own["cost"].keys() == trace.cost.keys()
    streamed = [s for v in values[1:-1] for s in v["steps"].get("lm", [])]
    assert streamed == values[-1]["traces"]["lm"]["steps"][: len(streamed)]


def test_forced_tokens_and_samples_are_pythons(site):
    model, listing, folder = site
    forced = model.decoder.tokenizer.encode(" the in", add_special_tokens=False)
    drawn = {"max_new_tokens": 14, "temperature": 1.1, "top_p": 0.9, "top_k": 30, "seed": 7,
             "min_p": 0.01, "repetition_penalty": 1.2}  # fmt: skip
    given, sampled, random = answers(
        listing, folder, plan(systems=["memory"], lmbda="auto", forced=forced),
        plan(systems=["lm", "memory"], options=drawn), {"random": [7, 5]},
    )  # fmt: skip
    rng = torch.Generator().manual_seed(7)
    assert random == [float(torch.rand((), generator=rng, dtype=torch.float64)) for _ in range(5)]
    trace = model.generate(QUESTION, "memory", lmbda="auto", forced=forced, max_new_tokens=12)
    same_steps(given[-1]["traces"]["memory"]["steps"], trace.steps)
    traces = model.compare(QUESTION, ["lm", "memory"], sources=["memory"], **drawn)
    for system, trace in traces.items():
        same_steps(sampled[-1]["traces"][system]["steps"], trace.steps)


def test_scrubbed_texts_are_pythons(site):
    model, listing, folder = site
    (values,) = answers(listing, folder, plan("scrub", system="memory"))
    texts, whole = values[-1]["texts"], []
    for text in texts:
        whole.append((whole[text["like"]][: text["kept"]] if whole else []) + text["steps"])
    traces = model.scrub(QUESTION, "memory", max_new_tokens=12)
    for steps, trace in zip(whole, traces.values(), strict=True):
        assert [step["id"] for step in steps] == [step.token_id for step in trace.steps]
    assert [text["lmbda"] for text in texts] == list(traces)


def test_inspect_probe_and_chat_are_pythons(site):
    model, listing, folder = site
    text = "Vellmar is an invented town in the hills; the café is small. 金"
    first = [model.decoder.encode("Lima")[-1]]
    turns = [["What is  Gold?", " a metal "], ["What is the capital of Peru?", ""]]
    ids = model.decoder.encode(QUESTION)
    given = [*ids, model.decoder.tokenizer.eos_token_id, *first]
    inspected, by_ids, probed, chat = answers(
        listing, folder, plan("inspect", text=text), plan("inspect", text="any", ids=given),
        plan("probe", number=3, ids=ids, text="the"),
        plan("chat", question=turns[1][0], typed=False, settings={"longest": 48, "stop": []},
             columns=[{"system": "memory", "before": turns[:1], "forced": [], "kept": 0},
                      {"system": "lm", "before": [], "forced": first, "kept": 1}]),
    )  # fmt: skip
    *_, done = model.inspect(text, lmbda=0.55)
    assert [value["kind"] for value in inspected] == ["begin", "progress", "progress", "done"]
    same_steps(inspected[-1]["traces"]["memory"]["steps"], done.values["memory"].steps)
    *_, done = model.inspect(given, lmbda=0.55)
    same_steps(by_ids[-1]["traces"]["memory"]["steps"], done.values["memory"].steps)
    assert probed[0]["number"] == 3
    for own, row in zip(probed[0]["rows"], model.probe(ids, "the"), strict=True):
        assert own["p"] == pytest.approx(row.pop("p"), abs=1e-6)
        for ours, probs in zip(own["tokens"], row.pop("tokens"), strict=True):
            assert ours == pytest.approx(probs, abs=1e-6)
        assert {name: own[name] for name in row} == row
    trace = model.chat([tuple(turn) for turn in turns], "memory", max_new_tokens=48)
    assert chat[-1]["traces"]["memory"]["prompt_ids"] == trace.prompt_ids
    assert chat[-1]["traces"]["memory"]["text"] == trace.text
    alone = model.chat(turns[1:], "lm", max_new_tokens=49, forced=first, sources=["memory"])
    begun, done = chat[0]["columns"]["lm"], chat[-1]["traces"]["lm"]
    assert done["prompt_ids"] == alone.prompt_ids and done["text"] == alone.text
    assert (begun["read"], begun["kept"], begun["dropped"]) == (len(alone.prompt_ids), 1, 0)
    same_steps(done["steps"], alone.steps[1:])


def test_files_of_another_kind_are_refused_with_a_sentence(site):
    _, listing, folder = site
    weights = "decoder/model.safetensors"
    data = b"".join((folder / part).read_bytes() for part in listing["files"][weights]["parts"])
    memory = (folder / listing["files"]["memory/model.safetensors"]["parts"][0]).read_bytes()
    cases = [
        (weights, data[:5], "no whole file of weights: it has 5 bytes"),
        (weights, data[:-7], "does not lie within it"),
        (weights, b"\xff" * 64, "its header does not fit"),
        (weights, b"\x05" + bytes(7) + b"{nono" * 9, "its header is not JSON"),
        (weights, memory, "belongs to a model of another kind"),
        (weights, data[:-2] + b"\x00\x7c", "infinite or nan"),
        ("decoder/config.json", b"nothing", "is not JSON"),
        ("decoder/config.json", {"model_type": "gemma"}, "of the family gemma, which does not"),
        ("decoder/config.json", {"intermediate_size": 40}, "must be 40 x 32 by its config"),
        ("decoder/config.json", {"attention_bias": True}, "with biases"),
        ("memory/config.json", {"family": "rwkv"}, "memory is of the family rwkv"),
        ("memory/config.json", {"family": "gpt2"}, "has no h.0.ln_1.weight"),
        ("memory/config.json", {"tokenizer_hash": "0" * 64}, "belongs to another decoder"),
        ("decoder/tokenizer.json", {"model": {"type": "Unigram"}}, "cannot read (Unigram)"),
        ("decoder/tokenizer.json", {"normalizer": {"type": "NFC"}}, "tokenizer is of a kind"),
        ("router/memory/config.json", {"features": ["x"]}, "reads other features"),
    ]
    tasks = []
    for number, (name, other, _) in enumerate(cases):
        if isinstance(other, dict):
            (place,) = listing["files"][name]["parts"]
            row = json.loads((folder / place).read_text("utf-8")) | other
            other = json.dumps(row).encode()
        (folder / f"foreign-{number}").write_bytes(other)
        files = {**listing["files"], name: {"parts": [f"foreign-{number}"]}}
        tasks.append({"open": {**listing, "files": files}})
    for (*_, text), error in zip(cases, answers(listing, folder, *tasks), strict=True):
        assert error is not None and text in error


def test_wrong_requests_get_a_sentence(site):
    _, listing, folder = site
    cases = [
        (plan(systems=["lm"], prompt=" "), "The prompt is empty"),
        (plan(systems=["lm"], prompt="x" * 2001), "at most 2,000 characters; got 2,001"),
        (plan(systems=["lm"], prompt="x" * 90), "room for 84"),
        (plan(systems=["knn"]), "paste a text of your own"),
        (plan(systems=["lm"], options={"temperature": 9}), "temperature must be between 0 and 2"),
        (plan(systems=["lm"], options={"seed": 1.5}), "seed must be a whole number"),
        (plan(systems=["lm"], own=True), "a text that is gone"),
        (plan("inspect", text="a" * 200), "at most 96 tokens"),
        (plan("own", text="\x00"), "NUL"),
        (plan("own", text="é" * 1_000_001), "at most 2 MB"),
        (plan("probe", number=1, ids=[], text="x"), "no longer known"),
    ]
    results = answers(listing, folder, *(case for case, _ in cases))
    for (_, text), values in zip(cases, results, strict=True):
        assert values[-1]["kind"] == "message" and text in values[-1]["text"]
