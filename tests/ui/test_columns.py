"""Extra columns and lambda "auto": selected, generated, saved and opened again."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch

from mlpmem.api import Model
from mlpmem.engine.router import Router, RouterConfig
from mlpmem.errors import MlpMemError
from mlpmem.loading.extra_columns import ExtraColumn
from mlpmem.model.lora import add_adapter, save_adapter
from mlpmem.ui import endpoints
from mlpmem.ui.context import Shared
from mlpmem.ui.models import PageModel
from mlpmem.ui.panels import compare
from mlpmem.ui.recordings import recorded, saved
from mlpmem.ui.request import columns, inputs, stream
from mlpmem.ui.request.limits import Deadline
from mlpmem.ui.service import offers, own_text
from mlpmem.ui.service.service import Service

PROMPT = "The capital of Peru is"
OPTIONS = {"max_new_tokens": 4, "temperature": 0.0, "seed": 0, "top_k": 0, "top_p": 1.0}


@pytest.fixture(scope="module")
def model():
    """Return a tiny model whose memory has a router with varying lambdas."""
    whole = tiny.model()
    config = RouterConfig("memory", whole.decoder.vocab_size, whole.decoder.tokenizer_hash)
    router = Router(config)
    with torch.no_grad():
        router.out.weight.fill_(0.3)
    routed = Model(whole.decoder, whole.memory, whole.settings, "tiny", {"memory": router})
    routed.attach_datastore(whole.datastore, whole.retriever)
    return routed


@pytest.fixture(scope="module")
def service(model, tmp_path_factory):
    """Return a loaded service that offers every kind of column, one of them damaged."""
    folder = tmp_path_factory.mktemp("columns")
    save_adapter(add_adapter(tiny.decoder().model, 2), folder / "lora")
    tiny.memory(tiny.decoder(), seed=9).save(folder / "ce")
    extra = [
        ExtraColumn("finetuned", folder / "lora", "adapter", "decoder with LoRA on B", 9.0),
        ExtraColumn("damaged", folder, "decoder"),
        ExtraColumn("ce", folder / "ce", "memory"),
    ]
    offered = offers.Extras(extra, mixed=True, documents=lambda m: m.datastore.documents)
    loaded = Service(lambda tell: (model, []), extras=offered)
    loaded.start().join(20)
    return loaded


def events_of(service, names, lmbda=None, stop=None, **options):
    """Return the events of a request as (kind, values)."""
    chosen = columns.choose(service, names, None)
    options = {**OPTIONS, "lmbda": lmbda, **options}
    events = columns.answers(service, chosen, PROMPT, options, stop or Deadline())
    return [(event.kind, dict(event.values)) for event in events]


def ids(trace):
    return [step.token_id for step in trace.steps]


def test_the_three_sources_share_one_batch(service, model):
    events = events_of(service, ["lm", "memory", "knn"])
    assert [kind for kind, _ in events[:-1]] == ["step"] * 4 and events[-1][0] == "done"
    expected = model.compare(PROMPT, max_new_tokens=4)
    assert {n: ids(t) for n, t in events[-1][1].items()} == {n: ids(t) for n, t in expected.items()}


def test_every_column_answers_and_a_damaged_one_reports_its_error(service, model):
    names = ["lm", "mixed", "rag", "finetuned", "damaged", "ce"]
    events = events_of(service, names)
    kinds = [kind for kind, _ in events]
    assert kinds.index("part") < kinds.index("wait") < kinds.index("column"), "the batch runs first"
    (failed,) = (values for kind, values in events if kind == "failed")
    assert "Decoder: cannot load" in failed["damaged"] and str(Path("/")) not in failed["damaged"]
    done = events[-1][1]
    assert list(done) == [name for name in names if name != "damaged"]
    assert ids(done["mixed"]) == ids(model.generate(PROMPT, "mixed", max_new_tokens=4))
    assert ids(done["finetuned"]) == ids(done["lm"]), "an untrained adapter changes nothing"
    assert done["rag"].prompt.endswith(PROMPT) and "¶" in done["rag"].prompt
    assert (done["rag"].system, done["ce"].system) == ("lm", "memory")
    assert done["finetuned"].model["label"] == "decoder with LoRA on B"
    again = [kind for kind, _ in events_of(service, names)]
    assert again.count("wait") == 1, "only the damaged column is loaded again"


def test_the_bars_lambda_applies_to_memory_columns_only(service):
    begun = {}
    for kind, values in events_of(service, ["rag", "finetuned", "ce"], lmbda=0.25):
        begun |= values if kind == "column" else {}
    assert {name: row["lmbda"] for name, row in begun.items()} == {
        "rag": 0.0, "finetuned": 0.0, "ce": 0.25,
    }  # fmt: skip


def test_stop_ends_before_the_next_column(service):
    stop = Deadline()
    kinds = []
    chosen = columns.choose(service, ["lm", "rag", "finetuned"], None)
    for event in columns.answers(service, chosen, PROMPT, OPTIONS, stop):
        kinds += [(event.kind, name) for name in event.values]
        if ("step", "rag") in kinds:
            stop.set()
    assert not [k for k in kinds if k == ("step", "finetuned")]
    assert ("done", "lm") in kinds and ("step", "rag") in kinds


def test_above_room_only_the_most_recently_used_columns_stay_loaded(model, tmp_path, monkeypatch):
    tiny.memory(tiny.decoder()).save(tmp_path)
    names = [f"m{i}" for i in range(offers.KEPT + 1)]
    held = offers.Extras([ExtraColumn(name, tmp_path, "memory") for name in names])
    systems = [held.system(name, model) for name in names]
    assert [held.system(name, model) for name in names] == systems, "below ROOM all are kept"
    monkeypatch.setattr(offers, "ROOM", 0)
    held.system(names[-1], model)
    assert held.system(names[-1], model) is systems[-1] and held.wait_message(names[-1]) == ""
    assert held.wait_message(names[0]) and held.system(names[0], model) is not systems[0]
    with pytest.raises(MlpMemError, match="No column 'rag'"):
        held.system("rag", model)


def test_offers_depend_on_bundle_columns_and_datastore(tmp_path):
    names = list(offers.of_bundle(tmp_path).offers)
    assert names == ["mixed", "rag"], "an unreadable manifest adds no adapters"
    mine = [ExtraColumn("mine", tmp_path, "decoder")]
    assert list(offers.of_bundle(tmp_path, mine, datastore=False).offers) == ["rag", "mine"]
    assert list(offers.of_parts([], memory=False, text=True).offers) == ["rag"]
    assert list(offers.of_parts(mine, memory=True, text=False).offers) == ["mine"]
    assert offers.of_parts(mine, False, False).tuned is None, "its training data is unknown"
    labelled = offers.Extras(
        [*mine, ExtraColumn("lora", tmp_path, "adapter", "decoder with LoRA on B")]
    )
    assert labelled.tuned == "lora"
    assert [row["short"] for row in labelled.listed()] == ["mine", "LoRA"]


def test_the_mix_of_both_sources_waits_for_the_datastore(model):
    waiting = SimpleNamespace(model=model.only("memory"), extras=offers.Extras(mixed=True))
    chosen = columns.choose(waiting, ["memory", "mixed"], None)
    assert chosen.batch == ["memory"] and "datastore is not ready" in chosen.absent["mixed"]
    assert chosen.names == ["memory", "mixed"]
    with pytest.raises(MlpMemError, match="Choose from lm, memory, knn, mixed"):
        columns.choose(waiting, ["rag"], None)


def test_columns_are_given_on_the_command_line(tmp_path, capsys, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1]))
    import app

    save_adapter(add_adapter(tiny.decoder().model, 2), tmp_path)
    (mine,) = app.arguments(["--column", f"mine={tmp_path}"]).column
    assert (mine.name, mine.kind) == ("mine", "adapter")
    twice = ["--column", f"mine={tmp_path}"] * 2
    for wrong, message in ((["--column", "lm=x"], "give another"), (twice, "given twice")):
        with pytest.raises(SystemExit):
            app.arguments(wrong)
        assert message in capsys.readouterr().err


# auto


def test_auto_is_the_routers_lambda_and_otherwise_each_systems_own(service, model):
    done = events_of(service, ["lm", "memory", "knn", "ce"], lmbda="auto")[-1][1]
    assert done["memory"].lmbda == "auto" and done["knn"].lmbda == model.settings.of("knn")
    chosen = [step.lmbda for step in done["memory"].steps]
    assert len(set(chosen)) > 1 and all(0 < x < 1 for x in chosen)
    assert all(step.lmbda is None for step in done["ce"].steps)
    expected = model.generate(PROMPT, "memory", lmbda="auto", max_new_tokens=4)
    assert ids(done["memory"]) == ids(expected)
    with pytest.raises(MlpMemError, match="needs a router for 'knn'"):
        events_of(service, ["knn"], lmbda="auto")


def test_auto_is_accepted_from_the_bar_and_a_link():
    assert inputs.check_lmbda({"lmbda": "auto"}) == inputs.check_lmbda("auto") == "auto"
    link = inputs.read_link({"q": "a", "lambda": "auto", "systems": "rag,lm,else"}, ["rag"])
    assert (link.options.lmbda, link.systems) == ("auto", ["lm", "rag"])
    assert inputs.read_link({"q": "a", "lambda": "Auto"}).options.lmbda is None


def test_a_run_with_auto_and_extra_columns_survives_saving(service):
    served = [PageModel(service, recorded.Recorded())]
    run = endpoints.Endpoints(served).generate(
        PROMPT, ["lm", "memory", "rag", "ce"], "auto", max_new_tokens=3
    )
    assert run["lmbda"] is None and run["traces"]["memory"]["lmbda"] == "auto"
    back = saved.read(json.dumps(run))
    assert json.loads(json.dumps(back)) == json.loads(json.dumps(run))
    for place, wrong in (("lmbda", None), ("lmbda", 1.5), ("lmbda", "x")):
        altered = json.loads(json.dumps(run))
        altered["traces"]["memory"]["steps"][0][place] = wrong
        with pytest.raises(MlpMemError, match="again"):
            saved.read(json.dumps(altered))
    for name in ("memory", "Rag", "x" * 40, "__proto__"):
        altered = json.loads(json.dumps(run))
        altered["traces"] = {name: altered["traces"]["rag"]}
        with pytest.raises(MlpMemError, match="column .* is not valid"):
            saved.read(json.dumps(altered))
    with pytest.raises(MlpMemError, match="cannot load"):
        endpoints.Endpoints(served).generate(PROMPT, ["damaged"])


def test_a_separate_column_can_be_branched_but_not_scrubbed(service):
    shared = Shared(service, recorded.Recorded(), *[None] * 4, own_text.Shelf())
    request = {"kind": "branch", "run": "r", "prompt": PROMPT, "system": "rag", "lmbda": "auto",
               "settings": {"max_new_tokens": 3}, "forced": [40]}  # fmt: skip
    values = list(compare.answer(shared, request, Deadline()))
    assert values[0]["columns"] == ["rag"] and values[0]["branch"]
    assert values[-1]["traces"]["rag"]["steps"][0]["id"] == 40
    for system in ("rag", "finetuned", "ce"):
        with pytest.raises(MlpMemError, match="does not support"):
            inputs.check_request(request | {"kind": "scrub", "system": system}, ["rag"])
    scrubbed = request | {"kind": "scrub", "system": "memory", "forced": []}
    assert list(compare.answer(shared, scrubbed, Deadline()))[-1]["kind"] == "scrubbed"


def test_a_branch_or_scrub_uses_the_own_text_of_its_run(service, model):
    mine = model.store_texts([("notes", "The capital of Peru is Quito. " * 8)])
    shared = Shared(service, recorded.Recorded(), *[None] * 4, own_text.Shelf())
    key = shared.shelf.add("notes", mine)
    request = {"kind": "branch", "run": "r", "prompt": PROMPT, "system": "knn", "lmbda": 1.0,
               "settings": {"max_new_tokens": 3}, "forced": [40], "own": key[:6]}  # fmt: skip
    branched = list(compare.answer(shared, request, Deadline(), key))
    assert branched[0]["own"] == key[:6]
    titles = {near[1] for step in branched[-1]["traces"]["knn"]["steps"] for near in step["nn"]}
    assert titles == {"notes"}
    scrubbed = list(compare.answer(shared, request | {"kind": "scrub"}, Deadline(), key))[-1]
    expected = model.scrub(PROMPT, "knn", store=mine, forced=[40], max_new_tokens=3)
    assert [text["text"] for text in scrubbed["texts"]] == [t.text for t in expected.values()]
    for other in (True, "else", key):  # a saved run's, and an earlier text's
        with pytest.raises(MlpMemError, match="searched a text that is gone"):
            list(compare.answer(shared, request | {"own": other}, Deadline(), key))


def test_retrieval_searches_the_visitors_own_text(service, model):
    mine = model.store_texts([("notes", "Quito, Peru.")])
    chosen = columns.choose(service, ["lm", "rag"], mine)
    read = {}
    for store in (mine, None, mine):
        events = list(columns.answers(service, chosen, PROMPT, OPTIONS, Deadline(), store))
        read[store is None] = events[-1].values["rag"].prompt
        waits = [event.values["rag"] for event in events if event.kind == "wait"]
        assert store is None or waits == ["Indexing your text's passages …"]
    assert "Quito, Peru." in read[False] and "Quito" not in read[True]
    kept = service.extras.system("rag", model).passages
    texts = [model.decoder.decode(kept.plain(i)) for i in range(len(kept))]
    assert not any("Quito" in text for text in texts), "nothing of it is kept for other visitors"


def test_the_pages_values_cover_every_column(service):
    chosen = columns.choose(service, ["lm", "rag", "damaged"], None)
    events = columns.answers(service, chosen, PROMPT, OPTIONS, Deadline())
    values = list(stream.deltas("r", events, clock=iter(range(100)).__next__))
    kinds = [value["kind"] for value in values]
    assert {"part", "column", "steps", "failed", "done"} <= set(kinds)
    numbers = [value["seq"] for value in values if value["kind"] == "steps"]
    assert numbers == list(range(1, len(numbers) + 1))
    assert set(values[-1]["traces"]) == {"lm", "rag"} and set(values[-1]["failed"]) == {"damaged"}
    assert json.dumps(values)
