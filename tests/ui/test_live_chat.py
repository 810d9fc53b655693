"""The browser's engine on a chat model: a GGUF file's own blocks, context vectors, chat forms."""

import json

import named
import pytest
import tiny
import torch
from marks import slow
from node_engine import NODE, OPTIONS, answers, foreign, plan, same_steps

pytest.importorskip("gguf")

from mlpmem.engine.router import FEATURES, Router, RouterConfig
from mlpmem.loading.bundle import load_bundle
from mlpmem.model.tokenizer import load_tokenizer
from mlpmem.space import live
from mlpmem.space.general import NAME
from mlpmem.space.turns import CHATS, joined, turns_of

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
SHAPE = {"hidden_size": 64, "intermediate_size": 96, "tie_word_embeddings": True}
LIVES = (4.0, 16.0)
ASK = "What is  the capital of Peru?\n"


def router(decoder) -> Router:
    """Return a router with a hidden layer that reads all of the state, and no evidence."""
    sizes = {"units": 5, "state_size": decoder.hidden_size * (2 + len(LIVES)), "evidence": False}
    made = Router(RouterConfig("memory", decoder.vocab_size, decoder.tokenizer_hash, **sizes))
    torch.manual_seed(3)
    with torch.no_grad():
        made.hidden.weight.normal_(std=0.05)
        made.out.weight.normal_(std=0.7)
        made.mean.normal_(std=0.1)
        made.scale.fill_(1.2)
    return made


@pytest.fixture(scope="module", params=["Q4_1", *slow("Q8_0", "Q4_0", "F32")])
def site(request, tmp_path_factory):
    """Return (model, listing, folder) of a tiny chat bundle whose decoder is a file of blocks."""
    folder = tmp_path_factory.mktemp("chat")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        named.package(folder / "site", kind=request.param, **SHAPE)
        named.bundle(folder / "first", context=LIVES)
        first = load_bundle(folder / "first").model()
        turn = tuple(first.chat_ids(ASK, 1)[3:5])  # begun anew inside
        words = {"context": LIVES, "turn": turn, "asked": True}
        named.bundle(folder / "bundle", routers={"memory": router(first.decoder)}, **words)
        model = load_bundle(folder / "bundle").model()
        listing = live.write(folder / "bundle", folder / "out")
    return model, listing, folder / "out"


def asked(model, question: str, tokens: int = 12) -> list[int]:
    return model.chat_ids(question, tokens)


def test_the_listing_is_of_a_chat_model(site):
    model, listing, folder = site
    assert listing["chat"] and listing["chats"] and not listing["asked"]
    assert listing["title"] == "tiny" and listing["eos"] == sorted(model.decoder.eos_ids)
    blocks = listing["files"]["decoder/blocks.gguf"]
    assert blocks["sha256"] == model.decoder.gguf_sha256, "the very file that people have"
    assert all((folder / part).stat().st_size <= live.PART_BYTES for part in blocks["parts"])


def test_a_large_model_is_only_loaded_when_asked_for(site, monkeypatch, tmp_path):
    _, listing, folder = site
    size = sum(file["bytes"] for file in listing["files"].values())
    monkeypatch.setattr(live, "ASKED_BYTES", size - 1)
    monkeypatch.setattr(live, "PART_BYTES", 10_000)
    monkeypatch.syspath_prepend(folder.parent / "site")
    large = live.write(folder.parent / "bundle", tmp_path)
    assert large["asked"]
    assert large["files"].keys() - listing["files"].keys() == {NAME}, "states for a gate"
    for name, file in large["files"].items():
        whole = b"".join((tmp_path / part).read_bytes() for part in file["parts"])
        assert all((tmp_path / part).stat().st_size <= 10_000 for part in file["parts"])
        assert len(whole) == file["bytes"]
        assert name == NAME or file["sha256"] == listing["files"][name]["sha256"]


@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "plain"])
def test_blocks_and_context_give_pythons_log_probs(site, plain):
    model, listing, folder = site
    ids = model.decoder.encode("Question: What is the capital of Peru? Answer: Lima, the largest")
    assert len(ids) > 32, "several passes of the decoder, with an odd number of rows"
    (rows,) = answers(listing, folder, {"logs": ids[:51]}, plain=plain)
    output = model.decoder.forward(torch.tensor([ids[:51]]))
    sources = model.sources(*output.states(0), None)
    for name in ("lm", "memory"):
        ours = torch.tensor([row[name] for row in rows])
        torch.testing.assert_close(ours, sources[name], atol=5e-5, rtol=0)


def test_what_a_chat_asks_is_read_as_in_python(site):
    model, listing, folder = site
    context, encode = model.decoder.context, model.decoder.encode
    said = encode(" It is by the sea. Which one?")
    asked = encode("Not Lima. Name a city."), encode("Tell me. Go")
    end = min(model.decoder.eos_ids)
    ids = [i for text in asked for i in (*context.turn, *text, end, end, *said)]
    assert {1.0, 2.0, 3.0} <= {*context.ends[ids].tolist()}
    (rows,) = answers(listing, folder, {"logs": ids})
    output = model.decoder.forward(torch.tensor([ids]))
    sources = model.sources(*output.states(0), None)
    ours = torch.tensor([row["memory"] for row in rows])
    torch.testing.assert_close(ours, sources["memory"], atol=5e-5, rtol=0)


def test_a_comparison_asks_in_chat_form_as_python_does(site):
    model, listing, folder = site
    chat, typed = answers(
        listing, folder, plan(systems=["lm", "memory"], prompt=ASK, lmbda="auto", chat=True),
        plan(systems=["memory"], prompt=ASK, lmbda="auto"),
    )  # fmt: skip
    assert chat[0]["prompt"] == ASK, "the page shows what was typed"
    traces = model.compare(asked(model, ASK), ["lm", "memory"], sources=["memory"], lmbda="auto",
                           max_new_tokens=12)  # fmt: skip
    for system, trace in traces.items():
        own = chat[-1]["traces"][system]
        same_steps(own["steps"], trace.steps)
        for key in ("prompt", "prompt_ids", "lmbda", "settings", "finish", "text"):
            assert own[key] == trace.to_dict()[key], key
    assert len({step["lmbda"] for step in chat[-1]["traces"]["memory"]["steps"]}) > 2
    trace = model.generate(ASK, "memory", lmbda="auto", max_new_tokens=12)
    same_steps(typed[-1]["traces"]["memory"]["steps"], trace.steps)


def test_branches_and_scrubbed_texts_keep_each_rows_context(site):
    model, listing, folder = site
    ids = asked(model, ASK)
    forced = model.generate(ids, "memory", lmbda=0.0, max_new_tokens=3).steps
    forced = [step.token_id for step in forced]
    scrub, branch = answers(
        listing, folder, plan("scrub", prompt=ASK, system="memory", chat=True),
        plan(systems=["memory"], prompt=ASK, forced=forced, lmbda="auto", chat=True),
    )  # fmt: skip
    whole = []
    for text in scrub[-1]["texts"]:
        whole.append((whole[text["like"]][: text["kept"]] if whole else []) + text["steps"])
    traces = model.scrub(ids, "memory", max_new_tokens=12)
    assert len({trace.text for trace in traces.values()}) > 1, "rows part"
    for steps, trace in zip(whole, traces.values(), strict=True):
        assert [step["id"] for step in steps] == [step.token_id for step in trace.steps]
    trace = model.generate(ids, "memory", lmbda="auto", forced=forced, max_new_tokens=12)
    same_steps(branch[-1]["traces"]["memory"]["steps"], trace.steps)


TURNS = [["Hi", " Hello </s> you"], ["Is <s> a\n\nname? \ue000", "yes"], ["Who?  ", ""]]


@pytest.mark.parametrize("system", ["", "Be brief, say </s>."])
def test_a_chat_is_rendered_as_the_template_renders_it(site, system):
    model, listing, folder = site
    turns = [turn for turn in TURNS if "\ue000" not in turn[0]]
    settings = {"longest": 8, "stop": [], "system": system}
    column = {"system": "memory", "before": turns[:-1], "forced": [], "kept": 0}
    (chat,) = answers(listing, folder, plan("chat", question=turns[-1][0], typed=False,
                                            settings=settings, columns=[column]))  # fmt: skip
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}]
        messages += [{"role": "assistant", "content": answer}] if answer else []
    trace = model.chat(messages, "memory", max_new_tokens=8)
    own = chat[-1]["traces"]["memory"]
    assert (own["prompt_ids"], own["prompt"]) == (trace.prompt_ids, trace.prompt)
    same_steps(own["steps"], trace.steps)


CHATML = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}<s>system\nBe kind.</s>\n"
    "{% endif %}<s>{{ m['role'] }}\n{{ m['content'] }}</s>\n{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant\n{% endif %}"
)


def test_a_templates_turns_are_read_off_it():
    words = tiny.tokenizer()
    words.chat_template = CHATML
    turns = turns_of(words)
    assert turns["before"] == "<s>system\nBe kind.</s>\n<s>user\n"
    assert turns["system"] == ["<s>system\n", "</s>\n<s>user\n"]
    assert joined(turns, CHATS[2]).endswith("<s>user\n" + CHATS[2][2] + turns["end"])
    words.chat_template = CHATML.replace(
        "{% for m in", "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}"
        "{% endif %}{% for m in")  # fmt: skip
    assert turns_of(words)["system"] is None


@pytest.mark.parametrize("template", [
    "{% for m in messages %}<s>{{ m['content'] | trim }}</s>{% endfor %}<s>",
    "{% for m in messages %}<s>{{ loop.index }}{{ m['content'] }}</s>{% endfor %}<s>",
    "{% for m in messages[-1:] %}<s>{{ m['content'] }}</s>{% endfor %}<s>",
    "{{ raise_exception('no') }}",
])  # fmt: skip
def test_a_template_that_does_more_than_join_its_turns_is_not_used(template):
    words = tiny.tokenizer()
    words.chat_template = template
    assert turns_of(words) is None


def test_a_damaged_file_of_blocks_gets_a_sentence(site):
    _, listing, folder = site
    name = "decoder/blocks.gguf"
    parts = listing["files"][name]["parts"]
    data = b"".join((folder / part).read_bytes() for part in parts)
    (place,) = listing["files"]["decoder/places.json"]["parts"]
    places = json.loads((folder / place).read_text("utf-8"))
    norm = places["model.norm.weight"]["start"]
    nan = data[:norm] + b"\x00\x00\xc0\x7f" + data[norm + 4 :]
    rows = {**places, "model.norm.weight": {**places["model.norm.weight"], "kind": "Q2_K"}}
    cases = [
        (name, data[:-900], "is truncated"),
        (name, nan, "infinite or nan"),
        ("decoder/places.json", json.dumps(rows).encode(), "kind Q2_K"),
        ("decoder/places.json", b"{}", "has no model.embed_tokens"),
    ]
    for which, other, text in cases:
        task = {"open": foreign(listing, folder, which, other)}
        (error,) = answers(listing, folder, task)
        assert error is not None and text in error


def test_options_are_the_pages(site):
    model, listing, folder = site
    drawn = {**OPTIONS, "temperature": 1.1, "seed": 7, "repetition_penalty": 1.2}
    (values,) = answers(
        listing, folder, plan(systems=["memory"], prompt=ASK, options=drawn, chat=True)
    )
    trace = model.generate(asked(model, ASK), "memory", **drawn)
    same_steps(values[-1]["traces"]["memory"]["steps"], trace.steps)
    assert len(FEATURES) + 4 * 64 == model.routers["memory"].mean.numel()
    assert load_tokenizer(str(model.decoder.folder)).chat_template
