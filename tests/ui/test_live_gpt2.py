"""The browser's engine on GPT-2's family: the same answers as Python on tiny random models."""

import json

import gpt2_numbers
import pytest
import tiny
import torch
from node_engine import NODE, QUESTION, answers, node, plan, same_steps

from mlpmem.engine.router import FEATURES
from mlpmem.loading.bundle import load_bundle
from mlpmem.model.tokenizer import encode_texts, load_tokenizer
from mlpmem.space import live

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
# the memory's family need not be its decoder's
MEMORIES = {
    "gpt2": {"family": "gpt2"},
    "llama": {"family": "llama", "tied_head": True},
    "context": {"family": "gpt2", "context": (4.0, 16.0), "norm_eps": 1e-3},
}


def router():
    """Return a router whose lambda depends on every feature."""
    made = tiny.routed().routers["memory"]
    with torch.no_grad():
        made.out.weight.copy_(torch.linspace(-0.3, 0.2, len(FEATURES))[None])
        made.mean.fill_(0.1)
        made.scale.fill_(1.3)
    return made


def opened(folder, config: dict, depth: int = -1) -> tuple:
    """Return (model, listing, folder) of a tiny bundle of a GPT-2, in parts of 20 kB."""
    bound = tiny.noisy(tiny.decoder("gpt2", depth))
    tiny.bundle(folder / "bundle", bound, config, routers={"memory": router()})
    model = load_bundle(folder / "bundle").model()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "PART_BYTES", 20_000)
        listing = live.write(folder / "bundle", folder / "site")
    assert len(listing["files"]["decoder/model.safetensors"]["parts"]) > 2, "shards"
    return model, listing, folder / "site"


@pytest.fixture(scope="module", params=MEMORIES)
def each(request, tmp_path_factory):
    """Return (model, listing, folder) for each memory."""
    folder = tmp_path_factory.mktemp(f"gpt2-{request.param}")
    return opened(folder, MEMORIES[request.param], depth=-2 if request.param == "context" else -1)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Return (model, listing, folder) with a memory of GPT-2's family."""
    return opened(tmp_path_factory.mktemp("gpt2"), MEMORIES["gpt2"])


@pytest.mark.parametrize("plain", [False, True], ids=["kernel", "plain"])
def test_every_source_gives_pythons_log_probs_up_to_the_last_position(each, plain):
    model, listing, folder = each
    text = QUESTION + " Lima is the capital of Peru and the largest town in its hills, café 金"
    ids = (model.decoder.encode(text) * 2)[: tiny.POSITIONS]
    assert len(ids) == tiny.POSITIONS == model.decoder.max_positions
    answer = node(listing, folder, {"logs": ids}, plain=plain)
    assert answer["kernel"] is not plain
    output = model.decoder.forward(torch.tensor([ids]))
    sources = model.sources(*output.states(0), None)
    for name in ("lm", "memory"):
        ours = torch.tensor([row[name] for row in answer["results"][0]])
        torch.testing.assert_close(ours, sources[name], atol=2e-5, rtol=0)


@pytest.mark.parametrize("lmbda", [None, 0.3, "auto"])
def test_a_comparison_is_pythons(each, lmbda):
    model, listing, folder = each
    most = tiny.POSITIONS - 12
    prompts = [QUESTION, "The hills in", "金", "a" * (most - 1)]  # <s> comes first
    assert len(model.decoder.encode(prompts[-1])) == most, "the prompt and its answer fill up"
    tasks = [plan(systems=["lm", "memory"], prompt=prompt, lmbda=lmbda) for prompt in prompts]
    for prompt, values in zip(prompts, answers(listing, folder, *tasks), strict=True):
        traces = model.compare(prompt, ["lm", "memory"], sources=["memory"], lmbda=lmbda,
                               max_new_tokens=12)  # fmt: skip
        for system, trace in traces.items():
            same_steps(values[-1]["traces"][system]["steps"], trace.steps)
            assert values[-1]["traces"][system]["text"] == trace.text


def test_the_last_positions_are_read_and_no_more(site):
    model, listing, folder = site
    full = "a" * (tiny.POSITIONS - 2)
    one = {"options": {"max_new_tokens": 1}}
    fits, longer, inspected = answers(
        listing, folder, plan(systems=["memory"], prompt=full, **one),
        plan(systems=["memory"], prompt=full + "a", **one),
        plan("inspect", text=full + "a"),
    )  # fmt: skip
    trace = model.generate(full, "memory", max_new_tokens=1)
    same_steps(fits[-1]["traces"]["memory"]["steps"], trace.steps)
    assert longer[-1]["kind"] == "message" and "has room for 95" in longer[-1]["text"]
    *_, done = model.inspect(full + "a")
    same_steps(inspected[-1]["traces"]["memory"]["steps"], done.values["memory"].steps)


def test_branches_samples_scrub_probe_and_chat_are_pythons(site):
    model, listing, folder = site
    forced = model.decoder.tokenizer.encode(" the in", add_special_tokens=False)
    drawn = {"max_new_tokens": 14, "temperature": 1.1, "top_p": 0.9, "seed": 7}
    ids = model.decoder.encode(QUESTION)
    turns = [["What is Gold?", "a metal"], ["What is the capital of Peru?", ""]]
    column = {"system": "memory", "before": turns[:1], "forced": [], "kept": 0}
    branch, sampled, scrubbed, probed, chat = answers(
        listing, folder, plan(systems=["memory"], lmbda="auto", forced=forced),
        plan(systems=["lm", "memory"], options=drawn),
        plan("scrub", system="memory"),
        plan("probe", number=3, ids=ids, text="the"),
        plan("chat", question=turns[1][0], typed=False, columns=[column],
             settings={"longest": 24, "stop": []}),
    )  # fmt: skip
    trace = model.generate(QUESTION, "memory", lmbda="auto", forced=forced, max_new_tokens=12)
    same_steps(branch[-1]["traces"]["memory"]["steps"], trace.steps)
    both = model.compare(QUESTION, ["lm", "memory"], sources=["memory"], **drawn)
    for system, trace in both.items():
        same_steps(sampled[-1]["traces"][system]["steps"], trace.steps)
    traces = model.scrub(QUESTION, "memory", max_new_tokens=12)
    assert [text["text"] for text in scrubbed[-1]["texts"]] == [t.text for t in traces.values()]
    for own, row in zip(probed[0]["rows"], model.probe(ids, "the"), strict=True):
        assert own["p"] == pytest.approx(row["p"], abs=1e-6)
    trace = model.chat([tuple(turn) for turn in turns], "memory", max_new_tokens=24)
    same_steps(chat[-1]["traces"]["memory"]["steps"], trace.steps)


def test_a_pasted_text_is_searched_as_python_searches_it(site):
    model, listing, folder = site
    text = "Vellmar is an invented town. Its mayor is Ilka Brandt."
    ask = plan(systems=["knn"], prompt="Its mayor is", lmbda=0.6, own=True)
    made, asked = answers(listing, folder, plan("own", text=text), ask)
    assert made[-1]["kind"] != "message", made
    store = model.store_texts([("your text", text)])
    both = {"sources": ["memory", "knn"], "store": store}
    trace = model.generate("Its mayor is", "knn", lmbda=0.6, max_new_tokens=12, **both)
    own = asked[-1]["traces"]["knn"]["steps"]
    assert [step["id"] for step in own] == [step.token_id for step in trace.steps]
    for step, other in zip(own, trace.steps, strict=True):  # keys are rounded to halves
        assert step["p"] == pytest.approx(other.to_dict()["p"], abs=1e-4)
        assert [row[0] for row in step["nn"]] == [row[0] for row in other.to_dict()["nn"]]


def test_a_tokenizer_file_of_an_older_version_is_cut_by_gpt2s_pattern(site, tmp_path):
    model, listing, folder = site
    model.decoder.tokenizer.save_pretrained(tmp_path)
    file = tmp_path / "tokenizer.json"
    row = json.loads(file.read_text("utf-8"))
    assert row["pre_tokenizer"].pop("use_regex") is True  # GPT-2's own file does not say
    file.write_text(json.dumps(row), "utf-8")
    texts = ["n'the other, 'then", "it's  the'll\n the", "cafe\u0301 \u91d1 2the 12the"]
    ((ids,),) = answers(listing, folder, {"cut": str(tmp_path), "tasks": [{"encode": texts}]})
    assert ids == encode_texts(load_tokenizer(str(tmp_path)), texts)


def test_the_scripts_own_test_has_pythons_numbers():
    kept, numbers = json.loads(gpt2_numbers.FILE.read_text("utf-8")), gpt2_numbers.numbers()
    for name, logs in numbers.pop("logs").items():
        torch.testing.assert_close(
            torch.tensor(kept["logs"][name]), torch.tensor(logs), atol=5e-6, rtol=0
        )
    assert {name: kept[name] for name in numbers} == numbers


def test_other_shapes_of_gpt2_are_refused_with_a_sentence(site):
    _, listing, folder = site
    name = "decoder/config.json"
    (place,) = listing["files"][name]["parts"]
    config = json.loads((folder / place).read_text("utf-8"))
    cases = [
        ({"activation_function": "relu"}, "with the activation relu, which does not run"),
        ({"activation_function": "gelu"}, "with the activation gelu, which does not run"),
        ({"scale_attn_weights": False}, "with attention of another scale"),
        ({"scale_attn_by_inverse_layer_idx": True}, "with attention of another scale"),
        ({"add_cross_attention": True}, "with attention to another text"),
        ({"n_head": 16}, "with heads whose size is not a multiple of 4"),
        ({"n_positions": 97}, "must be 97 x 32 by its config; got 96 x 32"),
        ({"n_inner": 96}, "must be 32 x 96 by its config; got 32 x 128"),
        ({"tie_word_embeddings": False}, "has no lm_head.weight"),
        ({"model_type": "gptj"}, "of the family gptj, which does not run in the browser; llama"),
    ]
    tasks = []
    for number, (values, _) in enumerate(cases):
        (folder / f"other-{number}").write_text(json.dumps(config | values), "utf-8")
        files = {**listing["files"], name: {"parts": [f"other-{number}"]}}
        tasks.append({"open": {**listing, "files": files}})
    for (_, text), error in zip(cases, answers(listing, folder, *tasks), strict=True):
        assert error is not None and text in error
