"""A memory distilled from your own texts: the recipe, progress, and end to end with a page.

The end-to-end tests train with a tiny decoder, and with a pretrained one if it is available.
"""

import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiny
from conftest import Server

import train.stages.datastore
from mlpmem.errors import MlpMemError
from mlpmem.loading import distil
from mlpmem.loading.parts import from_parts
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory
from mlpmem.retrieval.datastore import Datastore
from mlpmem.ui.request import stream
from mlpmem.ui.service import loads
from mlpmem.ui.service.service import Service
from train.config.load import load_recipe
from train.files import file_hash
from train.run.pipeline import run
from train.run.processes import check_unlocked
from train.stages.decoder import new_model
from train.stages.targets import StoredTargets

STORIES = Path(__file__).parents[3] / "shared/models/stories260K"
SAMPLE = Path(__file__).parents[3] / "shared/data/tinystories_sample/tinystories_sample.txt"


@pytest.fixture
def parts(tmp_path):
    """Return a folder with a decoder and a text."""
    decoder = tiny.decoder("gpt2", depth=1)
    decoder.model.save_pretrained(tmp_path / "decoder")
    decoder.tokenizer.save_pretrained(tmp_path / "decoder")
    text = "".join(f"The capital of land {i} is town {i * 7 % 31}. " for i in range(40))
    (tmp_path / 'notes "1".txt').write_text(text, encoding="utf-8")
    return tmp_path


def test_the_training_reads_the_recipe(parts):
    text = [parts / 'notes "1".txt']
    model = from_parts(parts / "decoder", text=text, depth=1)
    (parts / "recipe.toml").write_text(
        distil._recipe(model, parts / "decoder", [str(text[0])]), encoding="utf-8"
    )
    recipe = load_recipe(str(parts / "recipe.toml"))
    assert recipe.corpus.train == recipe.corpus.test == (str(text[0].resolve()),)
    assert recipe.decoder.source == str((parts / "decoder").resolve())
    assert (recipe.datastore.depth, recipe.targets.k) == (1, model.settings.k)
    assert recipe.targets.easy_share == 1.0, "a short text is learned completely"


def test_the_training_takes_the_pages_keys_and_computes_none(parts, monkeypatch):
    text = [parts / 'notes "1".txt']
    weights = tiny.decoder("gpt2", depth=1).model.half()  # as a run saves them
    weights.save_pretrained(parts / "decoder")
    model = from_parts(parts / "decoder", text=text, depth=1)
    source = distil._recipe(model, parts / "decoder", [str(text[0])])
    rows = {}
    for name in ("own", "taken"):
        folder = parts / name
        folder.mkdir()
        (folder / "recipe.toml").write_text(
            source if name == "taken" else source.replace('built = "datastore"', ""),
            encoding="utf-8",
        )
        if name == "taken":
            distil._hand_over(model.datastore, folder)
            for function in ("build_keys", "load_decoder"):
                monkeypatch.setattr(
                    train.stages.datastore, function, lambda *_, **__: pytest.fail("keys again")
                )
        recipe = load_recipe(str(folder / "recipe.toml"))
        for stage in ("corpus", "decoder", "datastore", "targets"):
            run(stage, recipe, folder / "runs" / "recipe")
        store = Datastore.load(folder / "runs" / "recipe" / "datastore")
        targets = StoredTargets(folder / "runs" / "recipe" / "targets")
        rows[name] = store, targets.rows(np.arange(len(store)))
    (own, (ids, probs)), (taken, found) = rows["own"], rows["taken"]
    np.testing.assert_array_equal(np.asarray(taken.keys), np.asarray(model.datastore.keys))
    for name in ("positions", "counts", "values"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(own, name))
    np.testing.assert_array_equal(found[0], ids)
    np.testing.assert_array_equal(found[1], probs)
    distil._hand_over(None, parts / "taken")  # a resumed training has it already


def test_a_memory_of_a_gguf_decoder_names_its_file(parts):
    pytest.importorskip("gguf")
    import gguf_files

    path = gguf_files.write(parts / "one.gguf", tiny.decoder())
    other = gguf_files.write(parts / "other.gguf", tiny.decoder(seed=1))
    text = [str(parts / 'notes "1".txt')]
    model = from_parts(path, text=text)
    source = distil._recipe(model, path, text).replace("epochs = 8", "epochs = 1")
    (parts / "recipe.toml").write_text(source, encoding="utf-8")
    distil._hand_over(model.datastore, parts)
    recipe, root = load_recipe(str(parts / "recipe.toml")), parts / "runs" / "recipe"
    for stage in distil.STAGES:
        run(stage, recipe, root)
    memory = Memory.load(root / "memory")
    assert memory.config.gguf_sha256 == file_hash(path)
    assert from_parts(path, root / "memory").systems == ["lm", "memory"]
    memory.bind(Decoder.load(root / "decoder"))  # the file's weights
    with pytest.raises(MlpMemError, match="belongs to another decoder: sha256 of the GGUF file"):
        from_parts(other, root / "memory")
    config = replace(recipe.decoder, source=str(root / "decoder"), epochs=1)
    assert Decoder(new_model(config, None), model.decoder.tokenizer).gguf_sha256 == ""


def test_the_label_depends_on_recipe_decoder_and_texts(parts):
    notes = parts / 'notes "1".txt'
    names = [distil._label(recipe, parts / "decoder", [str(notes)]) for recipe in ("a", "a", "b")]
    assert names[0] == names[1] != names[2]
    notes.write_text("else", encoding="utf-8")
    assert distil._label("a", parts / "decoder", [str(notes)]) != names[0]
    with pytest.raises(MlpMemError, match="cannot read"):
        distil._label("a", parts / "decoder", [str(parts / "gone.txt")])


def test_a_stages_bar_gives_the_share_of_all_stages_and_the_seconds_left():
    line = "memory:  50%|xx  | 4/8 [00:05<01:02:48, 1.2step/s]"
    assert distil._progress(line) == ("memory", 0.9, ", 3768 s left")
    line = "targets: 100%|xx| 8/8 [00:05<00:03, 1.2row/s]"
    assert distil._progress(line) == ("targets", 0.8, ", 3 s left of this step")
    assert distil._progress("memory:   0%|  | 0/8 [00:00<?, ?step/s]") == ("memory", 0.8, "")
    for line in ("memory: {}", "memory  22/896 loss 2.3", "tokenizer: 5%|", "", "100%|x"):
        assert distil._progress(line) is None


@pytest.mark.skipif(sys.platform == "win32", reason="a shell script stands in for Python")
def test_a_failed_training_reports_its_last_line_and_keeps_its_log(tmp_path, monkeypatch):
    (tmp_path / "recipe.toml").write_text("seed = 'x'")
    (tmp_path / "python").write_text(
        "#!/bin/sh\necho starts; echo no module named datasets; exit 3"
    )
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(MlpMemError, match="distilled: no module named datasets; .*start again"):
        distil._train(tmp_path, lambda line, share: None)
    assert "starts" in (tmp_path / "log.txt").read_text()


def settled(service: Service, most: float = 300.0) -> list:
    """Start a service; return every status it had, the last one settled."""
    service.start()
    seen, deadline = [service.status], time.monotonic() + most
    while not service.status.settled and time.monotonic() < deadline:
        if service.status != seen[-1]:
            seen.append(service.status)
        time.sleep(0.005)
    return [*seen, service.status]


@pytest.mark.slow
def test_a_decoder_and_a_text_become_three_columns(parts):
    text = [parts / 'notes "1".txt']
    load = loads.open_parts(str(parts / "decoder"), None, text, train=True)
    service = Service(load)
    seen = settled(service)
    assert seen[-1].state == "ready", seen[-1].line
    assert "memory trained in" in seen[-1].line and "datastore built in" in seen[-1].line
    assert any(s.ready and s.line.startswith("distilling a memory: memory") for s in seen)
    assert any(re.search(r"memory, \d+%, \d+ s left$", s.line) for s in seen)
    shares = [s.share for s in seen if s.line.startswith("distilling")]
    assert shares == sorted(shares)
    assert service.model.systems == ["lm", "memory", "knn"]
    settings = service.model.settings
    assert settings.of("memory") == settings.of("knn"), "used as what it imitates"
    begin = time.monotonic()
    again = Service(loads.open_parts(str(parts / "decoder"), None, text, train=True))
    assert settled(again)[-1].state == "ready" and time.monotonic() - begin < 10, (
        "the memory was kept"
    )


def trainings(cache: Path) -> list[psutil.Process]:
    """Return the processes that train in a cache folder."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = process.cmdline()
            found += (
                [process] if "train" in line and any(str(cache) in part for part in line) else []
            )
    return found


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has other signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 0), ("SIGKILL", -9)])
def test_the_training_ends_with_the_page_and_leaves_no_lock(parts, name, code):
    cache = parts / "cache"
    command = [
        "app.py",
        "--decoder",
        str(parts / "decoder"),
        "--text",
        str(parts / 'notes "1".txt'),
    ]
    environment = {"MLPMEM_CACHE": str(cache)}
    server = Server(parts / "log", *command, "--train-memory", "--port", "{port}", **environment)
    try:
        ends = time.monotonic() + 240
        while not (locks := list(cache.rglob(".locks/*.json"))) and time.monotonic() < ends:
            time.sleep(0.05)
        assert locks and trainings(cache), server.log.read_text()
        server.process.send_signal(getattr(signal, name))
        assert server.process.wait(30) == code
        ends = time.monotonic() + 5  # a killed page does not wait for it
        while trainings(cache) and time.monotonic() < ends:
            time.sleep(0.05)
        assert not trainings(cache)
    finally:
        server.stop()
    assert not list(cache.rglob(".locks/*.json"))
    check_unlocked(next(cache.rglob("recipe.toml")).parent / "runs" / "recipe")
    assert list(cache.rglob("runs/recipe/*")), "finished stages are kept"


@pytest.mark.slow
@pytest.mark.skipif(not (STORIES / "config.json").exists(), reason="needs stories260K")
def test_a_memory_of_a_pretrained_decoder_lowers_perplexity(tmp_path, monkeypatch):
    monkeypatch.setattr(distil, "ROWS", 4000)
    story = SAMPLE.read_text(encoding="utf-8")
    (tmp_path / "stories.txt").write_text(story[:24_000], encoding="utf-8")
    load = loads.open_parts(str(STORIES), None, [tmp_path / "stories.txt"], train=True)
    service = Service(load)
    assert settled(service)[-1].state == "ready", service.status.line
    model = service.model
    events = model.stream("Once upon a time", max_new_tokens=8)
    values = list(stream.deltas("run", events))
    assert set(values[-1]["traces"]) == {"lm", "memory", "knn"}
    score = model.score(story[2000:4000])  # text that was stored and learned
    plain = score.perplexity("lm")
    assert score.perplexity("knn", 0.25) < plain and score.perplexity("memory", 0.25) < plain
