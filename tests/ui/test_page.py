"""The page's Python side, without a browser: loading, streaming, results."""

import json
import subprocess
import sys
import threading
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mlpmem.engine.settings import Settings
from mlpmem.errors import MlpMemError
from mlpmem.loading.extra_columns import ExtraColumn
from mlpmem.results.findings import measured
from mlpmem.ui.figures import summary
from mlpmem.ui.panels import compare, results
from mlpmem.ui.recordings import recorded
from mlpmem.ui.request import stream
from mlpmem.ui.service.loads import cost_line, report_tokens, weights_line
from mlpmem.ui.service.offers import Extras
from mlpmem.ui.service.service import BackgroundTask, Service

ROOT = Path(__file__).parents[2]
Event = namedtuple("Event", "kind values")


def test_the_model_answers_before_its_datastore_is_built():
    go, seen = threading.Event(), []
    parts = {"memory": SimpleNamespace(bytes=8_000_000), "systems": ["lm", "memory", "knn"]}
    model = SimpleNamespace(store=SimpleNamespace(bytes=223_000_000), **parts)

    def attach(tell):
        report_tokens(tell, 180_000, 430_000)
        seen.append(service.status)
        assert service.model is model
        assert go.wait(10)
        return model, cost_line(model, SimpleNamespace(seconds=21.4, cached=False, warning=""))

    service = Service(lambda tell: (model, [BackgroundTask("datastore", attach)]))
    with pytest.raises(MlpMemError, match="cannot answer yet"):
        _ = service.model
    thread = service.start()
    go.set()
    thread.join(10)
    assert service.status.state == "ready"
    assert seen[0].line == "building the datastore: 42%, 180k of 430k tokens"
    assert "The other columns answer already" in seen[0].waiting and service.status.waiting == ""
    assert service.status.line == (
        "datastore built in 21 s, 223\u00a0MB: the cost the 8\u00a0MB memory removes"
    )


def test_a_warning_of_the_cache_is_shown():
    built = SimpleNamespace(seconds=0.2, cached=True, warning="The disk is full.")
    memory, store = SimpleNamespace(bytes=900), SimpleNamespace(bytes=1_000_000)
    line = "datastore built in under a second (cached), 1\u00a0MB"
    full = f"{line}: the cost the 1\u00a0kB memory removes. The disk is full."
    assert cost_line(SimpleNamespace(memory=memory, store=store), built) == full
    without_memory = SimpleNamespace(memory=None, store=store)
    assert cost_line(without_memory, built) == f"{line}. The disk is full."


def test_a_routed_system_is_auto_in_the_table_and_represents_its_source_in_the_figure():
    cells = {"accuracy": {"B/test": 0.9, "A2/test": 0.8}}
    rows = [{"name": "memory", "label": "decoder + memory", "lmbda": 0.5, **cells},
            {"name": "auto", "label": "decoder + memory, lambda by token", "lmbda": "auto"} | cells,
            {"name": "lm", "label": "decoder", "lmbda": "<b>", **cells}]  # fmt: skip
    shown = measured({"systems": rows})
    assert [row["lmbda"] for row in shown["systems"]] == [0.5, "auto", None]
    table = results._tables(shown)
    assert "<td>auto</td>" in table and "<td>0.5</td>" in table
    names = [name for trace in summary.headline(shown).data for name in trace.text]
    assert sorted(names) == ["+ memory", "decoder only"]


def test_a_load_error_is_shown_on_the_page_and_in_the_terminal(capsys):
    def load(tell):
        raise MlpMemError("memory/model.safetensors is altered; export the bundle again")

    service = Service(load)
    service.start().join(10)
    status = service.status
    assert (status.state, status.ready) == ("error", False)
    assert "export the bundle again" in status.line
    assert "export the bundle again" in capsys.readouterr().err


def test_a_background_task_may_replace_the_model_and_a_failed_one_keeps_it():
    settings = Settings({"knn": 0.25}, auto=True)
    first = SimpleNamespace(systems=["lm"], settings=settings, routers={})
    second = SimpleNamespace(systems=["lm", "knn"], settings=settings, routers={"knn": 1})

    def fails(tell):
        tell("distilling a memory: corpus 50%", 0.1)
        assert service.status.line == "Note. distilling a memory: corpus 50%"
        assert (service.status.ready, service.status.share) == (True, 0.1)
        raise MlpMemError("the memory could not be distilled")

    datastore = BackgroundTask("datastore", lambda tell: (second, "built"))
    tasks = [datastore, BackgroundTask("memory", fails)]
    service = Service(lambda tell: (first, tasks), note="Note.")
    assert service.payload({"knn": 0.5})["defaults"] == {"knn": 0.5}
    service.start().join(10)
    assert service.model is second
    assert service.payload({"knn": 0.5})["defaults"] == {"knn": 0.25}, "the model's own"
    assert service.payload({})["auto"] == ["knn"] and service.payload({})["routed"]
    status = service.status
    assert (status.state, status.ready, status.waiting) == ("error", True, "")
    assert status.line == "Note. the memory could not be distilled"


def _step(text):
    return SimpleNamespace(to_dict=lambda: {"s": text})


def test_deltas_are_throttled_and_numbered_and_the_end_is_complete():
    ticks = iter([0.0, 0.01, 0.1, 0.1, 0.11, 0.12])
    events = [Event("step", {"lm": _step(c)}) for c in "abcd"]
    events.append(Event("done", {"lm": SimpleNamespace(to_dict=lambda: {"text": "abcd"})}))
    values = list(stream.deltas("r", events, clock=lambda: next(ticks)))
    assert [v["kind"] for v in values] == ["steps", "done"]
    assert [s["s"] for s in values[0]["steps"]["lm"]] == ["a", "b"]
    assert [v["seq"] for v in values] == [1, 2]
    assert values[1]["traces"]["lm"]["text"] == "abcd"


def test_closing_a_generation_stops_the_model():
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


def test_incomplete_recordsare_drawn():
    def tables(row):
        return results._tables(measured(row))

    assert measured({}) is None and results.draw(measured({"v": 1})) == [None] * 5
    assert not any(figure.there(measured({"v": 1})) for figure in results.FIGURES)
    row = {"name": "lm", "accuracy": {"B/test": {"n": 10, "right": 1}, "A2/test": {"n": 0}}}
    assert summary.headline(measured({"systems": [row]})) is None
    assert "10.0" in tables({"systems": [row]})
    tuned = {"groups": "A1+B", "label": "decoder fine-tuned on A1+B", "lr": 0.001, "epochs": 2}
    cells = tables({"forgetting": [tuned]}).split("<tbody>")[-1]
    assert ">A1+B</th><td>0.001</td><td>2</td>" in cells
    named = {"systems": [{**row, "accuracy": {"B/test": 1, "A2/test": 0}, "label": "<img src=x>"}]}
    assert "<img" not in tables(named)
    assert "<img" not in summary.headline(measured(named)).to_json().replace("\\u003c", "<")


def test_headline_labels_that_would_overlap_on_a_phone_are_moved():
    def tuned(learned, kept):
        return {"kind": "tuned", "learned": learned, "kept": kept}

    points = [tuned(12, 51), tuned(97, 52), tuned(3, 65), tuned(99, 20)]
    sides = [summary._side(point, points) for point in points]
    assert sides == ["bottom right", "top left", "middle right", "middle left"]


def test_columns_show_their_measured_accuracy():
    shown = measured(json.loads((ROOT / "tests/browser/results.json").read_text()))
    label = shown["forgetting"][0]["label"]
    tuned = ExtraColumn("finetuned", Path("tuned"), "adapter", label)
    shared = SimpleNamespace(
        recorded=recorded.Recorded(results=shown), service=SimpleNamespace(extras=Extras([tuned]))
    )
    records = compare._records(shared)
    assert list(records) == ["lm", "knn", "memory", "finetuned"]
    assert records["memory"]["own"] == pytest.approx([0.993, 0.974])
    row = shown["forgetting"][0]
    assert records["finetuned"] == {"own": pytest.approx([row["B_test"], row["A2_test"]])}
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
def test_a_malformed_manifest_still_opens_the_page(manifest, tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    (tmp_path / "questions.json").write_text(json.dumps([{"prompt": "a", "aliases": 5}]))
    read = recorded.read(tmp_path)
    assert read.defaults() == {"memory": 0.5, "knn": 0.5}
    assert read.attributions == [] and read.questions[0]["aliases"] == []


def test_headline_labels_omit_learning_rates_unless_they_are_needed():
    def labels(*names):
        rows = [{"name": n, "label": n, "B_test": 0.5, "A2_test": 0.5} for n in names]
        return [p["label"] for p in summary.headline_points(measured({"forgetting": rows}))]

    long = [
        "decoder fine-tuned on B, lr 0.001, 2 epochs",
        "decoder with LoRA on B, lr 0.4, 6 epochs",
    ]
    assert labels(*long) == ["fine-tuned on B, 2 epochs", "LoRA on B, 6 epochs"]
    alike = ["decoder fine-tuned on B, lr 0.001", "decoder fine-tuned on B, lr 0.002"]
    assert labels(*alike) == ["fine-tuned on B, lr 0.001", "fine-tuned on B, lr 0.002"]


def test_the_headline_has_one_point_per_system():
    shown = measured(json.loads((ROOT / "tests/browser/results.json").read_text()))
    points = summary.headline_points(shown)
    assert [p["kind"] for p in points] == ["lm", "knn", "memory"] + ["tuned"] * 4
    assert points[2]["learned"] == pytest.approx(99.3)
    assert all(figure is not None for figure in results.draw(shown))
    assert all(figure.there(shown) for figure in results.FIGURES)


def test_the_page_is_imported_without_torch():
    code = "import app, sys; from mlpmem.ui import page; print('torch' in sys.modules)"
    process = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert process.stdout.strip() == "False", process.stderr


def test_text_may_be_files_folders_and_patterns(tmp_path, monkeypatch):
    import app

    (tmp_path / "notes").mkdir()
    for name in ("A.TXT", "b.jsonl.gz"):
        (tmp_path / "notes" / name).touch()
    monkeypatch.chdir(tmp_path)
    for patterns in ("notes", "notes/A.TXT", "notes/*", "notes/A.TXT notes/b.jsonl.gz"):
        args = app.arguments(["--decoder", "a/b", "--text", *patterns.split()])
        assert [str(path) for path in args.text] == patterns.split()


def test_a_folder_without_a_manifest_is_refused(tmp_path, capsys):
    import app

    assert app.main(["--bundle", str(tmp_path)]) == 2
    assert "is not a bundle" in capsys.readouterr().err


@pytest.mark.parametrize(("kl", "costly"), [(0.0, False), (0.003, False), (0.9, True)])
def test_the_line_on_weights_says_what_rounding_costs(kl, costly):
    decoder = SimpleNamespace(kl=kl, bytes=9_000_000, fast_pass=None)
    line = weights_line(SimpleNamespace(decoder=decoder), "int8")
    assert (f"costs a KL of {kl:.4f} nats" in line) == (kl > 0)
    assert ("--dtype bfloat16 is more exact" in line) == costly


@pytest.mark.parametrize("options", ["--dtype int8", "--device cuda", "--dtype float32", ""])
def test_options_that_a_bundle_ignores_are_reported(options, tiny_bundle, capsys):
    import app

    args = app.arguments(["--bundle", str(tiny_bundle.folder), *options.split()])
    load, bundle, _, _ = app.opened(args)
    stderr = capsys.readouterr().err
    if options in ("--dtype int8", "--device cuda"):
        assert stderr.startswith(f"mlpmem: {options} is ignored: the bundle tiny is served on")
        assert stderr.count("\n") == 1
    else:
        assert stderr == ""
    model, _ = load(lambda line, share: None)
    assert bundle == tiny_bundle.folder and model.decoder.model.dtype == torch.float32
    assert type(model.memory.lm_head) is torch.nn.Linear, "as it was measured, not packed"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--decoder /nowhere", "neither a local folder nor a Hub id"),
        ("--decoder README.md", "neither a local folder nor a Hub id"),
        ("--decoder a/b --memory ./c", "--memory ./c is neither a local folder"),
        ("--decoder a/b --text nowhere.txt", "--text nowhere.txt does not exist; give .txt"),
        ("--decoder a/b --text app.py", "--text app.py must be one of .txt, .md, .jsonl"),
        ("--decoder a/b --text tests/ui", "tests/ui holds no text (left out: "),
        ("--preset nope", "preset 'nope' is not known"),
        ("--port 0", "port 0 is not valid; use 1 to 65535"),
        ("--port 99999", "port 99999 is not valid"),
        ("--decoder a/b --device nope", "device 'nope' is not available"),
    ],
)
def test_an_invalid_argument_ends_the_start_with_its_reason(options, message, capsys, monkeypatch):
    import app

    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        app.main(options.split())
    assert ended.value.code == 2 and message in capsys.readouterr().err
