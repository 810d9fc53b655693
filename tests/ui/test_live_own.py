"""A visitor's own text in the browser: the same entries and gate as Python's, under node."""

import random
from pathlib import Path

import named
import pytest
import tiny
import torch
from node_engine import NODE, answers, foreign, plan
from safetensors.torch import save

from mlpmem.engine.text_gate import _rows
from mlpmem.errors import MlpMemError
from mlpmem.loading.bundle import load_bundle
from mlpmem.model.prompts import question_prompt
from mlpmem.retrieval.own.sentences import answer_head, sentences_of
from mlpmem.space import live
from mlpmem.space.general import NAME

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed")
LAMBDA = 0.025  # by which a lambda may differ from Python's, whose gate is fitted in float32
MEAN = 0.001  # of all lambdas that a gate is fitted to
TEXT = (
    "The village of Pellworth was founded in 1612 by Mara Quell. Its harbour freezes in January. "
    "The mayor of Pellworth is Tobin Ash, a baker.\nThe old lighthouse was painted green in 1987, "
    "because the council had too much green paint. Bread costs two crowns. Nobody may whistle "
    "after ten in the evening. Its harbour freezes in January."
)
ODD = "\ufeffVellmar is an invented town. Its mayor is Ilka Brandt.\r\n" * 6 + "caf\u00e9 \u91d1 "
CLEAN = ODD.removeprefix("\ufeff").replace("\r\n", "\n")


@pytest.fixture(scope="module", autouse=True)
def every_model_is_large():
    """Let the states of general requests come with every model."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "ASKED_BYTES", 0)
        yield


@pytest.fixture(scope="module")
def tiny_site(tmp_path_factory):
    """Return (model, listing, folder) of a tiny bundle, whose decoder has no form of questions."""
    folder = tmp_path_factory.mktemp("own")
    tiny.bundle(folder / "bundle", routers=tiny.routed().routers)
    model = load_bundle(folder / "bundle").model()
    return model, live.write(folder / "bundle", folder / "site"), folder / "site"


@pytest.fixture(scope="module")
def chat_site(tmp_path_factory):
    """Return (model, listing, folder) of a tiny chat bundle with context vectors."""
    return chat_bundle(tmp_path_factory.mktemp("own-chat"))


def chat_bundle(folder, **config) -> tuple:
    """Return the same of a decoder with other values in its config."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder / "site")
        named.package(folder / "site", kind="Q4_1", hidden_size=64, intermediate_size=96,
                      tie_word_embeddings=True, **config)  # fmt: skip
        named.bundle(folder / "bundle", context=(4.0, 16.0))
        model = load_bundle(folder / "bundle").model()
        listing = live.write(folder / "bundle", folder / "out")
    return model, listing, folder / "out"


@pytest.fixture(scope="module")
def atlas_site(tmp_path_factory):
    """Return (model, listing, folder) of the shipped bundle."""
    folder = tmp_path_factory.mktemp("atlas")
    bundle = Path(__file__).parents[2] / "assets" / "atlas"
    return load_bundle(bundle).model(), live.write(bundle, folder), folder


def test_numbers_are_drawn_as_python_and_torch_draw_them(tiny_site):
    _, listing, folder = tiny_site
    sizes = [1, 2, 3, 7, 40, 256, 1000, 5000]
    (drawn,) = answers(listing, folder, {"chance": {"seed": 1, "sizes": sizes, "floats": 700}})
    rng = random.Random(1)
    assert drawn["below"] == [rng.randint(0, n - 1) for n in sizes]
    assert drawn["choice"] == rng.choice(sizes)
    assert drawn["samples"] == [rng.sample(range(n), -(-n // 9)) for n in sizes]
    torch.manual_seed(1)
    wanted = torch.empty(700).uniform_(-0.25, 0.25)
    assert drawn["uniform"] == pytest.approx(wanted.tolist(), abs=1e-7)


def test_texts_are_cut_into_the_same_sentences(tiny_site):
    _, listing, folder = tiny_site
    texts = [
        TEXT, CLEAN, "", " \n ", "One. Two", "\u201cOne!\u201d Two? (Three.) 4",
        "3.5 is no end. e.g. this\u2026 is", "\u4e00\u3002\u4e8c\uff01\n\n\u4e09\uff1f\u201d\u56db",
        "a\n\n\n b \u2028c.\u00a0d\x1ce", "no end", "x.\ty.\x85z", "\u3002\u3002\n\u3002",
    ]  # fmt: skip
    (cut,) = answers(listing, folder, {"sentences": texts})
    assert cut == [sentences_of(text) for text in texts]


def fitted(site, text: str) -> tuple[list, list]:
    """Assert that both make the same store of a text; return lambdas of JS and Python."""
    model, listing, folder = site
    (made,) = answers(listing, folder, {"gated": text})
    store = model.store_texts([("your text", text)])
    places = [(e["passage"], e["at"]) for e in made["entries"]]
    documents, positions = store.datastore.documents, store.datastore.positions
    passages = documents.passage_at(positions)
    first = documents.offsets[passages]
    assert places == list(zip(passages.tolist(), (positions - first).tolist(), strict=True))
    assert [entry["count"] for entry in made["entries"]] == store.datastore.counts.tolist()
    assert made["parts"] == [part.tolist() for part in store.texts.parts]
    assert made["usual"] == pytest.approx(store.texts.usual, rel=1e-3)
    parts = list(_rows(model, store, random.Random(1)))
    assert made["kinds"] == [kind for _, kind in parts]
    ours = torch.tensor([row for rows in made["rows"] for row in rows])
    theirs = torch.cat([rows for rows, _ in parts])
    # where the text gives two tokens nearly the same probability, either may come first
    tied = (ours - theirs).abs() > 0.01
    assert tied.any(1).float().mean() < 0.02
    lambdas = [value for values in made["lambdas"] for value in values]
    return lambdas, torch.sigmoid(store.gate(theirs)).tolist()


@pytest.mark.parametrize(
    ("site", "text"), [("tiny_site", CLEAN), ("chat_site", TEXT), ("atlas_site", TEXT)]
)
def test_a_texts_gate_is_pythons(site, text, request):
    ours, theirs = fitted(request.getfixturevalue(site), text)
    apart = (torch.tensor(ours) - torch.tensor(theirs)).abs()
    # where two entries are as near, either may come first: a random model has such rows
    assert (apart > LAMBDA).float().mean() < 0.005 and apart.mean() < MEAN


@pytest.mark.parametrize(
    ("site", "text"), [("tiny_site", CLEAN), ("chat_site", TEXT), ("atlas_site", TEXT)]
)
def test_states_that_come_with_the_model_give_the_same_gate(site, text, request):
    _, listing, folder = request.getfixturevalue(site)
    files = {name: file for name, file in listing["files"].items() if name != NAME}
    assert len(files) == len(listing["files"]) - 1
    lambdas = [
        torch.tensor([value for part in made["lambdas"] for value in part])
        for files in (listing["files"], files)
        for made in answers({**listing, "files": files}, folder, {"gated": text})
    ]
    torch.testing.assert_close(*lambdas, atol=1e-3, rtol=0)


def test_states_of_another_model_are_refused(tiny_site):
    _, listing, folder = tiny_site
    data = save({name: torch.zeros(3, 5) for name in ("states", "heads")})
    other = foreign(listing, folder, NAME, data)
    (values,) = answers(other, folder, {"plan": {"kind": "own", "text": TEXT}})
    assert values[-1]["kind"] == "message"
    assert "states in general.safetensors must be" in values[-1]["text"]


def test_a_sentence_that_does_not_fit_behind_the_form_is_cut_as_in_python(tmp_path):
    site = chat_bundle(tmp_path, max_position_embeddings=40)
    model, listing, folder = site
    head = len(answer_head(model.decoder))
    assert 0 < head < 40 < head + 40
    text = f"{'The harbour of Pellworth freezes in January ' * 8}. Bread costs two crowns."
    (made,) = answers(listing, folder, {"gated": text})
    store = model.store_texts([("your text", text)])
    assert made["parts"] == [part.tolist() for part in store.texts.parts]
    assert max(len(part) for part in made["parts"]) == 40 - head
    assert [entry["count"] for entry in made["entries"]] == store.datastore.counts.tolist()


def test_a_decoder_without_room_behind_its_form_says_so_as_in_python(tmp_path):
    head = len(answer_head(chat_bundle(tmp_path / "wide")[0].decoder))
    model, listing, folder = chat_bundle(tmp_path / "narrow", max_position_embeddings=head)
    with pytest.raises(MlpMemError, match=f"decoder reads {head} tokens"):
        model.store_texts([("your text", TEXT)])
    (values,) = answers(listing, folder, {"plan": {"kind": "own", "text": TEXT}})
    assert f"decoder reads {head} tokens" in values[-1]["text"]


def same_answers(own: list[dict], theirs: list) -> None:
    """Assert that steps of both have the same tokens, neighbours and probabilities."""
    assert [step["id"] for step in own] == [step.token_id for step in theirs]
    for step, other in zip(own, theirs, strict=True):
        wanted = other.to_dict()
        assert step.get("lmbda", 0) == pytest.approx(wanted.get("lmbda", 0), abs=LAMBDA)
        listed = {row[0]: row for row in wanted["nn"]}
        for row, neighbour in zip(step["nn"], wanted["nn"], strict=True):
            assert row[7:] == pytest.approx(neighbour[7:], rel=1e-2, abs=1e-3)
            # entries of one key are equally far, and may stand in any order
            assert row[:7] == listed.get(row[0], row)[:7]
            assert row[0] == neighbour[0] or row[8] == pytest.approx(neighbour[8], abs=1e-4)
        assert step["p"]["knn"] == pytest.approx(wanted["p"]["knn"], abs=2e-3)


QUESTIONS = {
    "When was Pellworth founded?": "1612", "Who is the mayor of Pellworth?": "",
    "When was the lighthouse painted green?": "", "What is the capital of France?": "",
    "Write a short poem about rain.": "",
}  # fmt: skip


def test_questions_about_a_text_are_answered_as_in_python(atlas_site):
    model, listing, folder = atlas_site
    prompts = [question_prompt(question) for question in QUESTIONS]
    plans = [plan(systems=["knn"], prompt=prompt, own=True) for prompt in prompts]
    fixed = plan(systems=["knn"], prompt=prompts[0], own=True, lmbda=0.3)
    _, *runs, other = answers(listing, folder, plan("own", text=TEXT), *plans, fixed)
    store = model.store_texts([("your text", TEXT)])
    shut = []
    for prompt, run, wanted in zip(prompts, runs, QUESTIONS.values(), strict=True):
        trace = model.generate(prompt, "knn", store=store, max_new_tokens=12)
        own = run[-1]["traces"]["knn"]
        assert (own["text"], own["lmbda"]) == (trace.text, "auto") and wanted in own["text"]
        same_answers(own["steps"], trace.steps)
        shut.append(all(step["lmbda"] < 0.1 for step in own["steps"]))
    assert shut == [False, *shut[1:-2], True, True], "other requests are the decoder's"
    assert other[-1]["traces"]["knn"]["lmbda"] == 0.3


def test_odd_texts_are_searched_as_in_python(tiny_site):
    model, listing, folder = tiny_site
    _, ran, inspected, probed = answers(
        listing, folder, plan("own", text=ODD),
        plan(systems=["memory", "knn"], prompt="Its mayor is", own=True, lmbda=0.4),
        plan("inspect", text="the mayor of Vellmar", own=True),
        plan("probe", number=3, ids=model.decoder.encode("Its mayor is"), text="Ilka", own=True),
    )  # fmt: skip
    store, both = model.store_texts([("your text", CLEAN)]), ["memory", "knn"]
    traces = model.compare("Its mayor is", both, sources=both, store=store, max_new_tokens=12,
                           lmbda=0.4)  # fmt: skip
    steps = {name: trace["steps"] for name, trace in ran[-1]["traces"].items()}
    same_answers(steps["knn"], traces["knn"].steps)
    for step, other in zip(steps["memory"], traces["memory"].steps, strict=True):
        wanted = other.to_dict()
        assert step["p"] == pytest.approx(wanted["p"], abs=1e-4)
        assert step["js"] == pytest.approx(wanted["js"], abs=1e-4)
        assert dict(step["far"]) == pytest.approx(dict(wanted["far"]), abs=1e-4)
    *_, done = model.inspect("the mayor of Vellmar", lmbda=0.55, store=store)
    own = inspected[-1]["traces"]["memory"]["steps"]
    for step, other in zip(own, done.values["memory"].steps, strict=True):
        assert step["p"] == pytest.approx(other.to_dict()["p"], abs=1e-4)
    rows = model.probe(model.decoder.encode("Its mayor is"), "Ilka", store)
    for row, other in zip(probed[0]["rows"], rows, strict=True):
        assert row["p"] == pytest.approx(other["p"], abs=1e-4)


def test_a_long_text_is_keyed_as_far_as_bytes_and_seconds_allow(tiny_site):
    _, listing, folder = tiny_site
    text = " ".join(f"Vellmar{i} is an invented town." for i in range(400))
    bytes_, seconds, letters = answers(
        listing, folder, {"keyed": text, "most": {"bytes": 450_000}},
        {"keyed": text, "most": {"seconds": 0.01}}, {"encode": ["a" * 200_000 + "the" * 70_000]},
    )  # fmt: skip
    assert bytes_["note"].endswith("because 0.45 MB were used") and bytes_["bytes"] <= 450_000
    assert seconds["note"].startswith("left out: the last ")
    assert 0 < seconds["tokens"] < bytes_["tokens"]
    assert len(letters[0]) == 200_000 + 70_000
