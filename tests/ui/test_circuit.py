"""The circuit under node, the sentence of value, previews, and where an answer comes from."""

import json
import shutil
import subprocess
from pathlib import Path

import fake
import pytest

from mlpmem.engine.trace import mix
from mlpmem.retrieval.documents import join_passages
from mlpmem.retrieval.origins import passages_saying
from mlpmem.retrieval.text_search import TextIndex
from mlpmem.ui.door.preview import Preview
from mlpmem.ui.recordings import value
from mlpmem.ui.recordings.recorded import Recorded, read

TOOLS = Path(__file__).parents[1] / "js"
ATLAS = Path(__file__).parents[2] / "assets" / "atlas"
BOOK = fake.ask("Who wrote The Salt Ledger?")


def node(*tasks):
    program = shutil.which("node") or pytest.skip("node is not installed")
    done = subprocess.run(
        [program, "circuit.mjs"], cwd=TOOLS, input=json.dumps(tasks), capture_output=True,
        text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def trace_of(system, lmbda=0.55):
    model = fake.FakeModel(pace=0)
    model.systems = ["lm", "memory", "knn"]
    return model.compare(BOOK, [system], lmbda=lmbda)[system].to_dict()


@pytest.mark.parametrize("system", ["lm", "memory", "knn"])
def test_pipes_are_the_traces_probabilities_and_their_shares_sum_to_the_mix(system):
    trace = trace_of(system)
    flows = node(*({"flow": [trace, i, 0.3]} for i in range(len(trace["steps"]))))
    for step, flow in zip(trace["steps"], flows, strict=True):
        for pipe in flow["pipes"]:
            assert pipe["p"] == step["p"][pipe["source"]]
        expected = mix(step["p"], system, 0.3) if system != "lm" else step["p"]["lm"]
        assert flow["fused"] == pytest.approx(expected, abs=1e-12)
        assert sum(pipe["share"] for pipe in flow["pipes"]) == pytest.approx(expected, abs=1e-12)
        open_ = {pipe["source"] for pipe in flow["pipes"] if pipe["weight"]}
        assert open_ == {"lm", system}


def test_a_source_says_its_likeliest_token_and_the_race_has_each_sources():
    trace = trace_of("memory")
    (flow,) = node({"flow": [trace, 0, 0.5]})
    says = {pipe["source"]: pipe["says"]["text"] for pipe in flow["pipes"]}
    assert says == {"lm": " Mar", "memory": " Od", "knn": " Od"}
    assert [rival["text"] for rival in flow["rivals"]][:2] == [" Mar", " Od"]
    assert [rival["written"] for rival in flow["rivals"]] == [False, True, False]


def test_cards_are_of_different_documents():
    (flow,) = node({"flow": [trace_of("memory"), 0, 0.5]})
    titles = [card["title"] for card in flow["cards"]]
    assert titles == ["The Salt Ledger (book)", "Harrow (town)"]


def test_a_whole_answers_probability_is_the_product_of_its_tokens_before_the_end():
    texts = [trace_of("memory", lmbda) for lmbda in (0.0, 0.6)]
    (rivals,) = node({"answers": [texts, texts[1], 0.37]})
    assert [(r["text"], r["written"]) for r in rivals] == [
        ("Martin Holt", False), ("Odalys Wren", True),
    ]  # fmt: skip
    for text, rival in zip(texts, rivals, strict=True):
        product = 1.0
        for step in text["steps"][:-1]:
            product *= mix(step["p"], "memory", 0.37)
        assert rival["p"] == pytest.approx(product, rel=1e-9) and not rival["bound"]


def test_an_answer_that_another_begins_with_counts_its_end():
    short, long = trace_of("memory"), trace_of("memory")
    short["steps"] = [*short["steps"][:1], short["steps"][-1]]
    short["text"] = short["steps"][0]["s"].strip()
    first, last = (mix(step["p"], "memory", 0.4) for step in short["steps"])
    (rivals,) = node({"answers": [[short, long], long, 0.4]})
    assert rivals[0]["p"] == pytest.approx(first * last, rel=1e-9)


def test_a_routers_lambdas_give_the_written_answer_and_bound_the_others():
    texts = [trace_of("memory", lmbda) for lmbda in (0.0, 0.6)]
    lambdas = [0.9, 0.2, 0.7, 0.5, 0.3]
    pairs = zip(texts[1]["steps"], lambdas, strict=True)
    steps = [{**step, "lmbda": lmbda} for step, lmbda in pairs]
    routed = {**texts[1], "lmbda": "auto", "steps": steps}
    (rivals,) = node({"answers": [texts, routed, "auto"]})
    product = 1.0
    for step in routed["steps"][:-1]:
        product *= mix(step["p"], "memory", step["lmbda"])
    assert rivals[1]["p"] == pytest.approx(product, rel=1e-9) and not rivals[1]["bound"]
    parting = mix(texts[0]["steps"][0]["p"], "memory", 0.9)
    assert rivals[0]["p"] == pytest.approx(parting, rel=1e-9) and rivals[0]["bound"]


def test_the_text_for_screen_readers_has_the_same_content():
    trace = trace_of("memory")
    (text,) = node({"said": [trace, 0, 0.5]})
    assert text.startswith("Token 1 of 5: “Od”.")
    assert "The decoder's head says “Mar”" in text and "The memory says “Od”" in text
    assert "none of it passes the valve" in text and "looks nothing up" in text
    assert "The Salt Ledger (book)" in text and "At lambda 0.50" in text


def test_a_band_is_as_wide_as_its_ends_and_a_stack_is_centred():
    ends = {"along": 0, "across": 20, "width": 10}, {"along": 40, "across": 50, "width": 4}
    right, down, stack = node(
        {"ends": [*ends, False]}, {"ends": [*ends, True]}, {"widths": [4, 0, 6]}
    )
    assert right.startswith("M0.0 15.0C20.0 15.0 20.0 48.0 40.0 48.0L40.0 52.0")
    assert right.endswith("0.0 25.0Z") and down.startswith("M15.0 0.0")
    assert stack == [-3, -1, 2]


def test_the_sentence_of_value_has_the_bundles_own_figures():
    recorded = read(ATLAS)
    assert value.plain(recorded) == (
        "Never told these facts, a frozen language model gets 2\u00a0% of them right. With a "
        "23\u00a0MB memory it gets 99\u00a0%, and keeps 99\u00a0% of what it knew. The datastore "
        "that the memory replaces has 354\u00a0MB."
    )
    assert value.title(recorded) == "atlas: Llama, 6 layers"
    assert recorded.first()["prompt"].startswith("Question: As for Sevilla")


def test_a_bundle_without_figures_or_with_none_better_claims_none():
    worse = {"systems": [
        {"name": "lm", "accuracy": {"B/test": 0.5, "A2/test": 0.9}},
        {"name": "memory", "accuracy": {"B/test": 0.4, "A2/test": 0.9}}],
        "cost": {"memory_bytes": 5e6}}  # fmt: skip
    for recorded in (Recorded(), Recorded(results=worse), Recorded(results={"systems": []})):
        assert value.sentence(recorded) == value.PLAIN
    assert value.title(Recorded()) == ""


def test_a_hostile_name_is_escaped(monkeypatch):
    monkeypatch.setenv("SPACE_ID", 'a"><script>/b')
    found = value.links(Recorded(name="<img src=x onerror=alert(1)>"))
    assert "<img" not in found and "<script" not in found and "&lt;img" in found
    monkeypatch.setenv("SPACE_ID", "someone/page")
    assert "https://huggingface.co/spaces/someone/page/tree/main" in value.links(Recorded())


TEXTS = [
    ["The country of Sevilla is Spain.", "Sevilla has 684,234 people."],
    ["Jamnagar lies in India.", "Spain is far away."],
    ["Travellers from Spain like Sevilla, and Lisbon too, and write of it at great length."],
    ["Strangers: Sevilla, Spain."],
]


@pytest.fixture
def index():
    flat = [(i, [10 * i + j]) for i, texts in enumerate(TEXTS) for j in range(len(texts))]
    titles = ["Sevilla", "Jamnagar", "A journey", "Strangers"]
    documents = join_passages(flat, titles, ["B", "B", "A1", "stranger"])
    return TextIndex(documents, lambda ids: TEXTS[ids[0] // 10][ids[0] % 10])


def test_passages_that_say_the_same_are_found_the_subjects_own_first(index):
    found = passages_saying(index, "Question: As for Sevilla, what country? Answer:", " Spain", 3)
    assert [(one.title, "".join(one.parts)) for one in found] == [
        ("Sevilla", TEXTS[0][0]), ("A journey", TEXTS[2][0]),
    ]  # fmt: skip
    assert found[0].parts[1::2] == ["Sevilla", "Spain"]


@pytest.mark.parametrize("answer", [" Portugal", " India", "", "684,235", " Spain and Atlantis"])
def test_what_no_passage_says_about_the_subject_is_not_found(index, answer):
    assert passages_saying(index, "In which country is Sevilla?", answer, 3) == []


def test_a_longer_answer_is_looked_up_sentence_by_sentence(index):
    answer = " The country of Sevilla is Spain. Sevilla has 684,234 people. It is on the moon."
    found = passages_saying(index, "Tell me about Sevilla.", answer, 3)
    assert ["".join(one.parts) for one in found] == TEXTS[0]


def test_a_question_without_a_known_word_finds_nothing(index):
    assert passages_saying(index, "Who is Xyzzy?", " Spain", 3) == []


def test_a_preview_replaces_gradios_tags_and_escapes_its_texts(tmp_path):
    picture = tmp_path / "p.png"
    picture.write_bytes(b"png")
    page = b'<head>\n<meta property="og:title" content="Gradio" />\n<meta\n name="twitter:card"\n '
    page += b'content="x" />\n<meta charset="utf-8"></head>'
    kind, body = Preview('A "page"', "2 % < 99 %", picture).placed(
        b"text/html; charset=utf-8", page, "https://host.org/x"
    )
    text = body.decode()
    assert "Gradio" not in text and 'charset="utf-8"' in text and kind.startswith(b"text/html")
    assert '<meta property="og:title" content="A &quot;page&quot;">' in text
    assert 'content="2 % &lt; 99 %"' in text
    assert '"og:image" content="https://host.org/x/preview.png"' in text
    plain = Preview("t", "s")
    assert (
        "image" not in plain.tags("r") and plain.placed(b"application/json", b"{}", "r")[1] == b"{}"
    )
