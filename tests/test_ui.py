"""The page's Python side, without a browser: checks, recordings, loading, streaming, results."""

import json
import subprocess
import sys
import threading
import time
import weakref
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
import torch

from mlpmem.errors import MlpMemError
from mlpmem.fused import FusedModel
from mlpmem.given import Given
from mlpmem.settings import Settings
from mlpmem.trace import OTHER, Candidate, Neighbour, Step, Trace
from mlpmem.ui import (
    chat,
    compare,
    corpus,
    inputs,
    inspect,
    own,
    plots,
    recorded,
    requests,
    results,
    saved,
    stream,
)  # fmt: skip
from mlpmem.ui.extras import Extras
from mlpmem.ui.measured import measured
from mlpmem.ui.service import Later, Service, Status, cost_line, tell_tokens

ROOT = Path(__file__).parents[1]
Event = namedtuple("Event", "kind values")


def test_a_bare_question_gets_its_form_and_other_text_stays():
    assert inputs.as_prompt("Where is Lima?") == "Question: Where is Lima? Answer:"
    assert inputs.as_prompt("Question: Where is Lima?") == "Question: Where is Lima? Answer:"
    assert inputs.as_prompt("Question: Where? Answer:") == "Question: Where? Answer:"
    assert inputs.as_prompt("Lima is") == "Lima is"


@pytest.mark.parametrize("text", ["", "  \n", None, 7, "x" * 2001])
def test_text_that_cannot_be_taken_says_why(text):
    with pytest.raises(MlpMemError, match="empty|characters"):
        inputs.check_text(text)


@pytest.mark.parametrize("lmbda", [-0.1, 1.1, float("nan"), "0.5", True, {"lmbda": 2}, [0.5]])
def test_lambda_outside_its_range_is_refused(lmbda):
    with pytest.raises(MlpMemError, match="lambda"):
        inputs.check_lmbda(lmbda)


def test_an_untouched_lambda_is_none_and_empty_fields_are_defaults():
    assert inputs.check_lmbda({"lmbda": None}) is None
    chosen = inputs.check_options({"lmbda": 0.25}, None, "", None, None, None)
    assert chosen == inputs.Options(lmbda=0.25)


@pytest.mark.parametrize(
    "bad", [(0, 0, 1, 0, 0), (32, 9, 1, 0, 0), (32, 0, 0, 0, 0), (32, 0, 1, 0, -1)]
)
def test_options_out_of_bounds_are_named(bad):
    with pytest.raises(MlpMemError, match="must lie between"):
        inputs.check_options(None, *bad)


def test_a_number_that_is_too_large_is_named_in_full():
    with pytest.raises(MlpMemError, match="3,000,000,000; it must lie between 0 and 2,147,483,647"):
        inputs.check_options(None, None, None, None, None, 3_000_000_000)


def test_a_bundle_without_anything_readable_is_empty(tmp_path):
    assert recorded.read(tmp_path) == recorded.Recorded()
    (tmp_path / "traces").mkdir()
    for name in ("manifest.json", "examples.json", "results.json", "traces/a.json"):
        (tmp_path / name).write_text("[{]")
    assert recorded.read(tmp_path).first() is None
    (tmp_path / "traces/a.json").write_text('{"v": 1, "prompt": "x", "traces": {"lm": {}}}')
    assert recorded.read(tmp_path).comparisons == []


def test_the_first_recording_is_one_that_helps_and_others_become_examples(tmp_path):
    (tmp_path / "traces").mkdir()
    for name, prompt in (("0", "long"), ("1", "short")):
        row = {"v": 1, "prompt": prompt, "answer": None, "traces": {"lm": {"steps": []}}}
        (tmp_path / f"traces/{name}.json").write_text(json.dumps(row))
    examples = [{"prompt": "short", "group": "helps", "answer": "A", "aliases": ["a"], "part": "B"}]
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    read = recorded.read(tmp_path)
    assert read.first()["prompt"] == "short"
    assert [e["group"] for e in read.examples] == ["helps", "longer"]
    known = {"answer": "A", "aliases": ["a"], "part": "B", "wording": ""}
    assert read.known("short") == known
    assert read.known("else") == {"answer": "", "aliases": [], "part": "", "wording": ""}
    assert read.surprises == ["short"], "without questions, the examples"
    assert read.defaults() == {"memory": 0.5, "knn": 0.5}


def test_a_surprise_is_new_to_the_decoder_in_a_wording_nobody_trained_on(tmp_path):
    parts = [("B", "test"), ("B", "unseen"), ("B", "seen"), ("A2", "test")]
    rows = [{"prompt": p + w, "answer": "x", "part": p, "wording": w} for p, w in parts]
    (tmp_path / "questions.json").write_text(json.dumps([*rows, {"prompt": 3}, "x"]))
    read = recorded.read(tmp_path)
    assert read.surprises == ["Btest", "Bunseen"]
    assert {read.surprise() for _ in range(40)} == {"Btest", "Bunseen"}
    assert read.known("A2test")["wording"] == "test"
    assert recorded.Recorded().surprises == []


def test_titles_are_names_without_their_brackets(tmp_path):
    (tmp_path / "documents").mkdir()
    titles = '["Peru", "Vell (invented town)", "One-off names"]'
    (tmp_path / "documents/titles.json").write_text(titles)
    assert recorded.read(tmp_path).titles == []
    (tmp_path / "documents/groups.json").write_text('["A1", "B", "stranger"]')
    assert recorded.read(tmp_path).titles == [["Peru", "A1"], ["Vell", "B"]]


REQUEST = {"kind": "branch", "run": "r", "prompt": "p", "system": "lm", "lmbda": 0.5,
           "settings": {"seed": 3, "odd": 1}, "forced": [4]}  # fmt: skip


def test_a_request_of_a_column_is_checked_whole():
    asked = inputs.check_request(REQUEST)
    assert (asked.kind, asked.system, asked.forced) == ("branch", "lm", [4])
    assert asked.options == inputs.Options(lmbda=0.5, seed=3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "format"}, {"kind": "scrub"}, {"system": "rag"}, {"system": None}, {"run": 3},
        {"forced": [1.5]}, {"forced": [True]}, {"forced": [-1]}, {"forced": "x"},
        {"forced": [1] * 200}, {"prompt": " "}, {"lmbda": 2}, {"settings": {"seed": -1}},
    ],
)  # fmt: skip
def test_a_request_that_cannot_be_is_refused(wrong):
    with pytest.raises(MlpMemError):
        inputs.check_request(REQUEST | wrong)


def test_a_request_that_is_no_object_is_refused():
    with pytest.raises(MlpMemError):
        inputs.check_request(None)


def test_shared_steps_are_sent_once_and_can_be_put_together_again():
    texts = ["abcd", "abxy", "abxyz", "abxy", "q"]
    traces = [{"n": n, "steps": [{"id": c} for c in text]} for n, text in enumerate(texts)]
    sent = requests.shared_steps(traces)
    assert [len(t["steps"]) for t in sent] == [4, 2, 1, 0, 1]
    whole = []
    for trace in sent:
        whole.append(whole[trace["like"]][: trace["kept"]] if trace["kept"] else [])
        whole[-1] = whole[-1] + trace["steps"]
    assert whole == [trace["steps"] for trace in traces]


def test_the_service_hands_out_the_model_before_the_datastore():
    go, seen = threading.Event(), []
    parts = {"memory": SimpleNamespace(bytes=8_000_000), "systems": ["lm", "memory", "knn"]}
    model = SimpleNamespace(store=SimpleNamespace(bytes=223_000_000), **parts)

    def attach(tell):
        tell_tokens(tell, 180_000, 430_000)
        seen.append(service.status)
        assert service.model is model
        assert go.wait(10)
        return model, cost_line(model, SimpleNamespace(seconds=21.4, cached=False, warning=""))

    service = Service(lambda tell: (model, [Later("datastore", attach)]))
    with pytest.raises(MlpMemError, match="cannot answer yet"):
        _ = service.model
    thread = service.start()
    go.set()
    thread.join(10)
    assert service.status.state == "ready"
    assert seen[0].line == "building the datastore: 42%, 180k of 430k tokens"
    assert "What is there answers meanwhile" in seen[0].waiting and service.status.waiting == ""
    assert service.status.line == (
        "datastore built in 21 s, 223\u00a0MB: the cost the 8\u00a0MB memory removes"
    )


def test_a_warning_of_the_cache_is_shown():
    built = SimpleNamespace(seconds=0.2, cached=True, warning="The disk is full.")
    memory, store = SimpleNamespace(bytes=900), SimpleNamespace(bytes=1_000_000)
    line = "datastore built in under a second (cached), 1\u00a0MB"
    full = f"{line}: the cost the 1\u00a0kB memory removes. The disk is full."
    assert cost_line(SimpleNamespace(memory=memory, store=store), built) == full
    alone = SimpleNamespace(memory=None, store=store)
    assert cost_line(alone, built) == f"{line}. The disk is full."


def test_a_system_under_its_router_is_auto_in_the_table_and_stands_for_its_source_in_the_figure():
    cells = {"accuracy": {"B/test": 0.9, "A2/test": 0.8}}
    rows = [{"name": "memory", "label": "decoder + memory", "lmbda": 0.5, **cells},
            {"name": "auto", "label": "decoder + memory, lambda by token", "lmbda": "auto"} | cells,
            {"name": "lm", "label": "decoder", "lmbda": "<b>", **cells}]  # fmt: skip
    found = measured({"systems": rows})
    assert [row["lmbda"] for row in found["systems"]] == [0.5, "auto", None]
    table = results._tables(found)
    assert "<td>auto</td>" in table and "<td>0.5</td>" in table
    names = [name for trace in plots.headline(found).data for name in trace.text]
    assert sorted(names) == ["+ memory", "decoder alone"]


def test_a_bundle_that_cannot_be_loaded_is_said_on_the_page_and_in_the_terminal(capsys):
    def load(tell):
        raise MlpMemError("memory/model.safetensors is altered; export the bundle again")

    service = Service(load)
    service.start().join(10)
    status = service.status
    assert (status.state, status.ready) == ("error", False)
    assert "export the bundle again" in status.line
    assert "export the bundle again" in capsys.readouterr().err


def test_what_is_made_later_may_replace_the_model_and_what_fails_leaves_the_rest():
    settings = Settings({"knn": 0.25}, auto=True)
    first = SimpleNamespace(systems=["lm"], settings=settings, routers={})
    second = SimpleNamespace(systems=["lm", "knn"], settings=settings, routers={"knn": 1})

    def fails(tell):
        tell("distilling a memory: corpus 50%", 0.1)
        assert service.status.line == "Note. distilling a memory: corpus 50%"
        assert (service.status.ready, service.status.share) == (True, 0.1)
        raise MlpMemError("the memory could not be distilled")

    steps = [Later("datastore", lambda tell: (second, "built")), Later("memory", fails)]
    service = Service(lambda tell: (first, steps), note="Note.")
    assert service.payload({"knn": 0.5})["defaults"] == {"knn": 0.5}
    service.start().join(10)
    assert service.model is second
    assert service.payload({"knn": 0.5})["defaults"] == {"knn": 0.25}, "the model's own"
    assert service.payload({})["auto"] == ["knn"] and service.payload({})["routed"]
    status = service.status
    assert (status.state, status.ready, status.waiting) == ("error", True, "")
    assert status.line == "Note. the memory could not be distilled"


def test_a_chats_retry_begins_otherwise_where_the_answer_would_repeat_itself():
    turn = chat.new_turn("Who?", "memory", None)
    assert chat.another_try(turn, "memory", None) == turn, "it never began"
    steps = [{"id": 7, "cand": [[7, " I", 0.6], [2, "</s>", 0.2], [9, " You", 0.1]]}, {"id": 2}]
    firsts = chat.firsts_of({"finish": "eos", "steps": steps})
    assert firsts == [[7, " I"], [9, " You"]], "an answer that ends at once is none"
    first = {**turn, "answer": "I", "firsts": firsts, "done": True}
    again = chat.another_try(first, "memory", None)
    assert (again["try"], again["answer"], again["firsts"]) == (2, "", firsts)
    assert chat.another_try(again, "memory", None)["try"] == 2, "it was stopped: the same again"
    done = {**again, "done": True}
    assert chat.another_try(done, "memory", None)["try"] == 1, "after the last the first"
    for system, lmbda in (("lm", None), ("memory", 0.5)):
        assert chat.another_try(done, system, lmbda) == chat.new_turn("Who?", system, lmbda)


def _step(text):
    return SimpleNamespace(to_dict=lambda: {"s": text})


def test_deltas_are_throttled_numbered_and_complete_at_the_end():
    ticks = iter([0.0, 0.01, 0.1, 0.1, 0.11, 0.12])
    events = [Event("step", {"lm": _step(c)}) for c in "abcd"]
    events.append(Event("done", {"lm": SimpleNamespace(to_dict=lambda: {"text": "abcd"})}))
    values = list(stream.deltas("r", events, clock=lambda: next(ticks)))
    assert [v["kind"] for v in values] == ["steps", "done"]
    assert [s["s"] for s in values[0]["steps"]["lm"]] == ["a", "b"]
    assert [v["seq"] for v in values] == [1, 2]
    assert values[1]["traces"]["lm"]["text"] == "abcd"


def test_leaving_a_generation_early_stops_the_model():
    stops = []

    def make(stop):
        stops.append(stop)
        yield {"kind": "begin"}
        yield {"kind": "steps"}

    values = stream.guarded(make)
    next(values)
    values.close()
    assert stops[0].is_set()


def test_errors_become_messages():
    def wrong(stop):
        yield {"kind": "begin"}
        raise MlpMemError("the prompt is too long; shorten it")

    def broken(stop):
        raise ZeroDivisionError
        yield

    values = list(stream.guarded(wrong))
    assert [v["kind"] for v in values] == ["begin", "message"]
    assert values[1]["text"] == "The prompt is too long; shorten it"
    assert "terminal" in list(stream.guarded(broken))[0]["text"]


def test_results_with_parts_missing_still_draw():
    def tables(row):
        return results._tables(measured(row))

    assert measured({}) is None and results.draw(measured({"v": 1})) == [None] * 5
    assert not any(figure.there(measured({"v": 1})) for figure in results.FIGURES)
    row = {"name": "lm", "accuracy": {"B/test": {"n": 10, "right": 1}, "A2/test": {"n": 0}}}
    assert plots.headline(measured({"systems": [row]})) is None
    assert "10.0" in tables({"systems": [row]})
    tuned = {"groups": "A1+B", "label": "decoder fine-tuned on A1+B", "lr": 0.001, "epochs": 2}
    cells = tables({"forgetting": [tuned]}).split("<tbody>")[-1]
    assert ">A1+B</th><td>0.001</td><td>2</td>" in cells
    named = {"systems": [{**row, "accuracy": {"B/test": 1, "A2/test": 0}, "label": "<img src=x>"}]}
    assert "<img" not in tables(named)
    assert "<img" not in plots.headline(measured(named)).to_json().replace("\\u003c", "<")


def test_labels_of_the_headline_that_would_meet_on_a_phone_part():
    def tuned(learned, kept):
        return {"kind": "tuned", "learned": learned, "kept": kept}

    points = [tuned(12, 51), tuned(97, 52), tuned(3, 65), tuned(99, 20)]
    sides = [plots._side(point, points) for point in points]
    assert sides == ["bottom right", "top left", "middle right", "middle left"]


def test_columns_say_what_they_were_measured_to_get_right():
    shown = measured(json.loads((ROOT / "tests/browser/results.json").read_text()))
    label = shown["forgetting"][0]["label"]
    tuned = Given("finetuned", Path("tuned"), "adapter", label)
    shared = SimpleNamespace(
        recorded=recorded.Recorded(results=shown), service=SimpleNamespace(extras=Extras([tuned]))
    )
    found = compare._records(shared)
    assert list(found) == ["lm", "knn", "memory", "finetuned"]
    assert found["memory"]["own"] == pytest.approx([0.993, 0.974])
    row = shown["forgetting"][0]
    assert found["finetuned"] == {"own": pytest.approx([row["B_test"], row["A2_test"]])}
    accuracy = {"B/test": 0.75, "A2/test": 0.5}
    routed = {"systems": [{"name": "auto", "accuracy": accuracy}]}
    shared.recorded = recorded.Recorded(results=measured(routed))
    assert compare._records(shared) == {"memory": {"auto": [0.75, 0.5]}}


@pytest.mark.parametrize(
    "manifest",
    [
        {"settings": "abc"},
        {"settings": {"lmbda": [1]}},
        {"settings": {"lmbda": {"memory": None, "knn": "x"}}},
        {"attributions": 3},
        [],
    ],
)
def test_a_manifest_of_other_values_opens_the_page_all_the_same(manifest, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "questions.json").write_text(json.dumps([{"prompt": "a", "aliases": 5}]))
    read = recorded.read(tmp_path)
    assert read.defaults() == {"memory": 0.5, "knn": 0.5}
    assert read.attributions == [] and read.questions[0]["aliases"] == []


def test_labels_of_the_headline_leave_learning_rates_out_where_they_still_differ():
    def labels(*names):
        rows = [{"name": n, "label": n, "B_test": 0.5, "A2_test": 0.5} for n in names]
        return [p["label"] for p in plots.headline_points(measured({"forgetting": rows}))]

    long = [
        "decoder fine-tuned on B, lr 0.001, 2 epochs",
        "decoder with LoRA on B, lr 0.4, 6 epochs",
    ]
    assert labels(*long) == ["fine-tuned on B, 2 epochs", "LoRA on B, 6 epochs"]
    alike = ["decoder fine-tuned on B, lr 0.001", "decoder fine-tuned on B, lr 0.002"]
    assert labels(*alike) == ["fine-tuned on B, lr 0.001", "fine-tuned on B, lr 0.002"]


def test_the_headline_has_a_point_for_every_system():
    shown = measured(json.loads((ROOT / "tests/browser/results.json").read_text()))
    points = plots.headline_points(shown)
    assert [p["kind"] for p in points] == ["lm", "knn", "memory"] + ["tuned"] * 4
    assert points[2]["learned"] == pytest.approx(99.3)
    assert all(figure is not None for figure in results.draw(shown))
    assert all(figure.there(shown) for figure in results.FIGURES)


def test_serving_begins_without_torch():
    code = "import app, sys; from mlpmem.ui import page; print('torch' in sys.modules)"
    made = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert made.stdout.strip() == "False", made.stderr


def test_a_folder_that_is_no_bundle_is_refused_in_a_sentence(tmp_path, capsys):
    import app

    assert app.main(["--bundle", str(tmp_path)]) == 2
    assert "is no bundle" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["--dtype int8", "--device cuda", "--dtype float32", ""])
def test_a_bundle_says_at_the_start_what_it_does_not_follow(asked, tiny_bundle, capsys):
    import app

    args = app.arguments(["--bundle", str(tiny_bundle.folder), *asked.split()])
    load, bundle, _, _ = app.opened(args)
    said = capsys.readouterr().err
    if asked in ("--dtype int8", "--device cuda"):
        assert said.startswith(f"mlpmem: {asked} left aside: the bundle tiny is served in float32")
        assert said.count("\n") == 1
    else:
        assert said == ""
    model, _ = load(lambda line, share: None)
    assert bundle == tiny_bundle.folder and model.decoder.model.dtype == torch.float32
    assert type(model.memory.lm_head) is torch.nn.Linear, "as it was measured, not packed"


class Kept:
    bytes = 1


def kept(size):
    return SimpleNamespace(bytes=size)


def test_a_shelf_keeps_texts_by_secret_id_for_a_time_and_within_its_room():
    now = [0.0]
    shelf = own.Shelf(most=100, seconds=60, clock=lambda: now[0])
    first, second = shelf.add("a", kept(40)), shelf.add("b", kept(40))
    assert shelf.get(first).title == "a" and shelf.get("else") is None
    third = shelf.add("c", kept(40))
    assert shelf.get(second) is None, "it was used least recently"
    assert shelf.get(first) and shelf.left(shelf.get(third)) == 60
    large = shelf.add("d", kept(1000))
    assert shelf.get(large), "the newest always has room"
    shelf.drop(large)
    shelf.drop("")
    late = shelf.add("e", kept(1))
    now[0] = 60.0
    assert shelf.get(late) is None


def test_an_expired_store_is_freed_though_nobody_comes_by():
    shelf = own.Shelf(seconds=0.05)
    first, second = Kept(), Kept()
    gone = [weakref.ref(first), weakref.ref(second)]
    shelf.add("a", first)
    shelf.add("b", second)
    del first, second
    deadline = time.monotonic() + 10
    while any(ref() for ref in gone) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [ref() for ref in gone] == [None, None]


def test_a_text_of_ones_own_is_checked(tmp_path):
    assert own.titled("your text", "a b") == [("your text", "a b")]
    lines = '{"title": "T", "text": "x"}\n\n{"text": "y"}\n{"text": " "}'
    assert own.titled("a.jsonl", lines) == [("T", "x"), ("a.jsonl:3", "y")]
    for name, content, word in (
        ("a.txt", " ", "no text"), ("a.txt", "a\x00", "NUL"), ("a.jsonl", "[1]", "line 1"),
        ("a.txt", "\u00e9" * 1_100_000, "more than 2 MB"),
    ):  # fmt: skip
        with pytest.raises(MlpMemError, match=word):
            own.titled(name, content)
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfok")
    assert own.read_upload(tmp_path / "a.txt") == ("a.txt", "ok")
    (tmp_path / "c.txt").write_text("read once")
    assert corpus._uploaded(tmp_path / "c.txt") == ("c.txt", "read once")
    with pytest.raises(MlpMemError, match="not here any more"):
        corpus._uploaded(tmp_path / "c.txt")
    for name, content, word in (("a.exe", b"", "none of"), ("b.md", b"\xff", "UTF-8")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MlpMemError, match=word):
            own.read_upload(tmp_path / name)


@pytest.mark.parametrize(
    "data", [{}, {"ids": [], "text": "a"}, {"ids": [True], "text": "a"}, {"ids": [1], "text": " "},
             {"ids": [1], "text": "x" * 41}, {"ids": [-1], "text": "a"}, {"ids": "1", "text": "a"}]
)  # fmt: skip
def test_a_probe_is_bounded(data):
    with pytest.raises(MlpMemError, match="Choose a token|Name a token"):
        inputs.check_probe(data)
    assert inputs.check_probe({"ids": [1, 2], "text": " a"}) == ([1, 2], " a")


def test_a_probe_answers_from_the_datastore_that_the_text_was_written_with():
    asked = []
    model = SimpleNamespace(probe=lambda ids, text, store: asked.append(store) or [])
    shared = SimpleNamespace(
        service=SimpleNamespace(model=model), store=lambda key, choice: (key, choice)
    )
    for said in (True, False, "yes"):
        data = {"number": 1, "ids": [1], "text": "a", "own": said}
        inspect._prober(shared)(SimpleNamespace(_data=data), "mine")
    assert asked == [("mine", "own"), None, None]


def test_a_question_that_was_stopped_is_not_told_to_the_model_again():
    told = []
    model = SimpleNamespace(
        systems=["lm"], lmbdas=lambda *given: {"lm": 0.0},
        chat=lambda turns, **options: told.append(turns) or iter(()),
    )  # fmt: skip
    shared = SimpleNamespace(
        service=SimpleNamespace(model=model), recorded=SimpleNamespace(known=lambda prompt: {})
    )
    turns = [chat.new_turn(question, "lm", None) for question in ("one", "two", "three")]
    turns[0]["answer"] = "1"
    list(chat._generate(shared, turns, threading.Event(), None))
    assert told == [[("one", "1"), ("three", "")]]


def test_columns_are_those_that_are_there():
    assert inputs.check_systems(None, ["lm", "memory"]) == ["lm", "memory"]
    assert inputs.check_systems(["knn", "lm"], ["lm", "memory"]) == ["lm"]
    for bad in (["else"], "lm", [["lm"]], 3):
        with pytest.raises(MlpMemError, match="choose from lm, memory, knn"):
            inputs.check_systems(bad, ["lm", "memory"])
    with pytest.raises(MlpMemError, match="wait for the datastore"):
        inputs.check_systems(["knn"], ["lm", "memory"])


def test_what_is_off_in_a_link_is_brought_in():
    assert inputs.read_link({}) is None and inputs.read_link({"q": " "}) is None
    link = inputs.read_link(
        {"q": "x" * 3000, "tokens": "1e9", "seed": "-4", "top_p": "nan", "top_k": "7.9",
         "temperature": "hot", "lambda": "-3", "systems": "knn,<b>,lm", "else": "1"}
    )  # fmt: skip
    assert link.options == inputs.Options(lmbda=0.0, max_new_tokens=128, top_k=7)
    assert (len(link.prompt), link.systems) == (2000, ["lm", "knn"])
    assert inputs.read_link({"q": "a", "systems": "none"}).systems == ["lm", "memory", "knn"]


def _run():
    probs = {"lm": 0.25, "memory": 0.5, "fused": 0.375}
    near = Neighbour(4, "Lima", "A1", "the city of", " Lima", 9, " is", 2.5, 0.75)
    candidates, far = [Candidate(9, " Lima", probs)], {9: 0.125, OTHER: 0.125}
    step = Step(0, 9, " Lima", probs, candidates, probs, 0.25, [near], 1.5, far)
    model, settings = {"bundle": "b"}, {"seed": 0, "forced": [9]}
    trace = Trace("memory", "x", [1], 0.5, settings, model, [step], "eos", " Lima", {"a_ms": 1})
    known = {"answer": "y", "aliases": [], "part": "B", "wording": "test"}
    return saved.record("x", known, 0.25, {"memory": trace})


def test_a_saved_run_comes_back_as_it_was():
    assert saved.read(json.dumps(_run())) == _run()
    mine = _run() | {"own": True}  # it searched a visitor's own text
    assert saved.read(json.dumps(mine)) == mine
    assert saved.read(json.dumps(_run() | {"own": "yes"})) == _run()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((), []), (("v",), 2), (("traces",), {}), (("traces",), None), (("lmbda",), 1.5),
        (("answer",), 3), (("prompt",), None), (("traces", "memory", "system"), "knn"),
        (("traces", "memory", "lmbda"), "a"), (("traces", "memory", "text"), None),
        (("traces", "memory", "steps"), 7), (("traces", "memory", "settings"), {"a": []}),
        (("traces", "memory", "cost"), []), (("traces", "memory", "prompt_ids"), 5),
        (("traces", "memory", "settings"), {"a": float("nan")}),
        (("traces", "memory", "settings", "forced"), [4]),
        (("traces", "memory", "settings", "forced"), 9), (("wording",), 3),
        (("traces", "memory", "steps", 0, "far"), [["9", 0.5]]),
        (("traces", "memory", "steps", 0, "far"), [[9, 2]]),
        (("traces", "memory", "steps", 0, "far"), [[i, 0] for i in range(99)]),
        (("traces", "memory", "steps", 0, "i"), 4),
        (("traces", "memory", "steps", 0, "p"), {"lm": "0.5"}),
        (("traces", "memory", "steps", 0, "p", "lm"), float("nan")),
        (("traces", "memory", "steps", 0, "rest"), {"lm": 1, "else": 0}),
        (("traces", "memory", "steps", 0, "s"), {"html": "x"}),
        (("traces", "memory", "steps", 0, "ms"), None),
        (("traces", "memory", "steps", 0, "cand", 0, 1), ["x"]),
        (("traces", "memory", "steps", 0, "cand", 0, 2), True),
        (("traces", "memory", "steps", 0, "nn", 0, 8), 4),
        (("traces", "memory", "steps", 0, "nn", 0, 1), "x" * 30_000),
    ],
)  # fmt: skip
def test_a_file_that_is_no_saved_run_says_what_to_do(path, value):
    run = {"": json.loads(json.dumps(_run()))}
    place = run
    for key in ("", *path)[:-1]:
        place = place[key]
    place[("", *path)[-1]] = value
    with pytest.raises(MlpMemError, match="again"):
        saved.read(json.dumps(run[""]))


def test_a_file_that_is_no_json_or_too_large_is_refused():
    for text in ("[" * 100_000, "{", None, "x" * (saved.MAX_BYTES + 1)):
        with pytest.raises(MlpMemError, match="again"):
            saved.read(text)


def test_a_recording_that_ships_accounts_for_all_of_the_datastores_weight():
    found = recorded.read(ROOT / "assets" / "atlas").comparisons
    steps = [s for c in found for trace in c["traces"].values() for s in trace["steps"]]
    assert len(steps) > 50
    for step in steps:
        mass = sum(row[8] for row in step["nn"]) + sum(mass for _, mass in step["far"])
        assert mass == pytest.approx(1, abs=1e-4), "or leaving a neighbour out would not be exact"


def test_the_chat_prefers_the_best_source_there_is(tiny_model):
    assert [chat.best(there) for there in (("lm", "memory", "knn"), ("lm", "knn"), ("lm",))] == [
        "memory", "knn", "lm",
    ]  # fmt: skip
    alone = FusedModel(tiny_model.decoder)
    service = Service(lambda tell: (alone, []))
    choose = chat._chooser(SimpleNamespace(service=service))
    assert choose("memory", "atlas") == gr.skip(), "nothing is known while it loads"
    service.start().join(20)
    assert choose("memory", "atlas") == "lm" and choose("memory", "own") == "knn"
    assert choose("knn", "own") == choose("lm", "atlas") == gr.skip()
    building = SimpleNamespace(status=Status(ready=True), model=alone)
    choose = chat._chooser(SimpleNamespace(service=building))
    assert choose("knn", "atlas") == gr.skip(), "it comes, and was chosen"
    assert choose("memory", "atlas") == "lm"
