"""The bench of answering runs at tiny size; its floors, medians and crossings are right."""

import json
import math
import multiprocessing

import named as named_bundle
import numpy as np
import pytest
import tiny

from mlpmem.bench import __main__ as command
from mlpmem.bench import decode, engine, prompts, search, systems
from mlpmem.bench import figures as timing
from mlpmem.bench.figures import Figure
from mlpmem.errors import MlpMemError
from mlpmem.loading.registry import SystemRegistry


def named(figures) -> dict[str, Figure]:
    """Return figures by name, none twice."""
    listed = list(figures)
    found = {figure.name: figure for figure in listed}
    assert len(found) == len(listed) and all(f.value > 0 for f in listed)
    return found


def test_decoding_is_measured_for_every_system_and_all_as_one_batch():
    model = tiny.model()
    found = named(decode.bench(model, model.decoder.encode("Peru"), tokens=3, rounds=2))
    for system in ("lm", "memory", "knn", decode.ALL):
        assert found[f"decode/{system}/ms_per_token"].floor > 0
        assert f"decode/{system}/ms_to_first_token" in found
    assert found["decode/lm/ms_per_token"].peer > 0
    assert found[f"decode/{decode.ALL}/times_memory"].n == 2


def test_every_system_writes_as_many_tokens_even_past_the_end_of_text():
    model = tiny.model()
    said = decode.decoding(model, "x", model.systems, [1], 3)
    model.decoder.eos_ids = frozenset()
    assert set(said()) == {"x/first", "x/token"}
    ended = model.compare([1], temperature=1.0, max_new_tokens=90)
    assert {len(trace.steps) for trace in ended.values()} == {90}


def test_every_system_is_timed_alone_and_writes_past_the_end_of_text():
    cast = SystemRegistry(tiny.routed(k=8), documents=tiny.documents)
    found = named(systems.bench(cast.systems(()), "The capital of Peru is", tokens=4, rounds=2))
    assert {name.split("/")[1] for name in found} == set(cast.makers)
    for system in cast.makers:
        first, token = (found[f"systems/{system}/{m}"] for m in systems.UNITS.values())
        assert first.n == token.n == 2
    held = {name: found[f"systems/{name}/in_memory"].value for name in cast.makers}
    assert held["lm"] < held["memory"] < held["mixed"] and held["rag"] > held["lm"]
    assert len(cast.system("lm").generate("Peru", max_new_tokens=30).steps) == 30


def test_a_token_reads_the_weights_it_needs(tiny_model):
    decoder, memory = tiny_model.decoder, tiny_model.memory
    weights = sum(p.numel() for p in decoder.model.parameters()) * 4
    table = decoder.vocab_size * decoder.hidden_size * 4  # not tied: one row is read
    assert decode.read_bytes(tiny_model, ["lm"]) == weights - table
    own = sum(p.numel() for p in memory.parameters()) * 4
    assert decode.read_bytes(tiny_model, ["lm", "memory"]) == weights - table + own


def test_search_is_measured_by_kind_and_size_and_says_which_keys_are_simulated():
    model = tiny.model()
    n = len(model.datastore)
    found = named(search.bench(model, (n // 2, 2 * n), rounds=2))
    for kind in ("exact-torch-fp16", "flat-fp32", "flat-fp16", "ivf-sq8", "memory"):
        assert f"search/{kind}/ms_per_query/keys={n // 2}" in found
        assert f"search/{kind}/ms_per_query/keys={2 * n}/simulated" in found
    assert found[f"search/ivf-sq8/recall/keys={n // 2}"].value > 0.5  # 32 lists are all there are


def test_made_keys_are_real_as_far_as_they_reach():
    real = np.random.default_rng(0).standard_normal((50, 4)).astype(np.float16)
    assert np.array_equal(search.made_keys(real, 50), real)
    more = search.made_keys(real, 80)
    assert more.shape == (80, 4) and np.array_equal(more[:50], real)
    apart = np.abs(more[50:, None].astype("f4") - real[None].astype("f4")).sum(-1).min(1)
    assert 0 < apart.min() and apart.max() < 4 * real.std() * 4 * search.MOVED


def test_lines_cross_where_a_power_law_says():
    line = [(10, 1.0), (100, 10.0), (1000, 100.0)]
    assert search.crossing(line, 20.0) == pytest.approx(200.0)
    assert search.crossing(line, 0.5) is None and search.crossing(line, 200.0) is None


def test_a_median_comes_with_its_95_percent_interval():
    luck, level = np.random.default_rng(0), math.log(2)  # the median of an exponential
    figures = [timing.timed("a", luck.exponential(size=25)) for _ in range(400)]
    held = [figure.low <= level <= figure.high for figure in figures]
    assert 0.91 < sum(held) / len(held) < 0.99
    assert all(figure.low <= figure.value <= figure.high for figure in figures)


def test_prompts_are_cut_to_what_the_decoder_reads_and_bytes_are_counted(tiny_bundle):
    model = tiny_bundle.model()
    found = named(prompts.bench(model, [3, 4, 5], (2, 8, 512), rounds=1))
    assert "prompt/memory/ms_to_first_token/tokens=95" in found and len(found) == 8
    assert "prompt/memory/ms_to_first_token/tokens=95/new=20" in found
    sizes = named(prompts.bytes_of(model, tiny_bundle.folder))
    assert sizes["bytes/memory/in_memory"].value == model.memory.bytes
    weights = (tiny_bundle.folder / "memory" / "model.safetensors").stat().st_size
    config = (tiny_bundle.folder / "memory" / "config.json").stat().st_size
    assert sizes["bytes/memory/on_disk"].value == weights + config


def test_the_command_prints_objects_or_says_what_is_wrong(tiny_bundle, capsys):
    assert command.main(["bytes", "--json", "--bundle", str(tiny_bundle.folder)]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"name", "value", "unit", "floor", "times_floor"} == set(lines[0])
    assert command.main(["speed"]) == 1
    assert "there is decode" in capsys.readouterr().err


def test_a_bundle_that_names_its_decoder_has_nothing_to_search(tmp_path, monkeypatch, capsys):
    named_bundle.package(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    saved = named_bundle.bundle(tmp_path / "named")
    found = named(command.figures(["bytes", "search"], str(saved.folder)))
    assert found["bytes/lm/on_disk"].value == saved.decoder_file.bytes
    assert not any(name.startswith("search") for name in found)
    assert command.main(["search", "--bundle", str(saved.folder)]) == 1
    assert "has no datastore; name another" in capsys.readouterr().err


def test_the_engine_is_measured_plain_and_packed_with_its_errors():
    shape = engine.Shape(16, 2, 2, 2, 300, keys=20, prompt=4, tokens=3)
    found = named(f for f in engine.bench(shape, rounds=1) if f.value)
    for name in ("float32", "packed-float32", "packed-bfloat16"):
        assert found[f"engine/{name}/ms_per_token"].floor > 0
        assert f"engine/{name}/three_columns_times_one" in found
    assert found["engine/packed-float32/log_prob_error"].value < 5e-5
    assert found["engine/packed-bfloat16/kl"].value < 1e-3


def test_a_peer_that_is_not_there_is_named(tmp_path):
    shape = engine.Shape(16, 2, 2, 2, 300, keys=20)
    with pytest.raises(MlpMemError, match="mlpMemory.py.*5b04efb"):
        next(engine.bench(shape, tmp_path))


def test_a_prompt_that_leaves_no_room_to_write_is_refused(capsys):
    engine.Shape(prompt=1007)
    for tokens in (0, 1008):
        assert command.main(["engine", "--prompt", str(tokens)]) != 0
        assert "give 1 to 1007" in "".join(capsys.readouterr())


def test_first_tokens_are_measured_beside_a_busy_loop_that_ends(tiny_bundle, capsys):
    arguments = ["busy", "--rounds", "1", "--json", "--bundle", str(tiny_bundle.folder)]
    assert command.main(arguments) == 0
    found = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    quiet, loaded = (
        found[f"busy/bundle/{kind}/ms_to_first_token/p95"]["value"] for kind in ("quiet", "busy")
    )
    assert min(quiet, loaded) > 0
    assert found["busy/bundle/busy_times_quiet/p95"]["value"] == pytest.approx(loaded / quiet)
    assert not multiprocessing.active_children()


def test_two_streams_are_measured_at_once_and_one_after_the_other(tiny_bundle, capsys):
    arguments = ["streams", "--rounds", "1", "--json", "--bundle", str(tiny_bundle.folder)]
    assert command.main(arguments) == 0
    found = {line["name"]: line for line in map(json.loads, capsys.readouterr().out.splitlines())}
    for arrangement in ("after", "at_once", "at_once_shared"):
        assert found[f"streams/bundle/{arrangement}"]["unit"] == "tokens/s"
        assert found[f"streams/bundle/{arrangement}"]["value"] > 0
    assert found["streams/bundle/at_once_times_after"]["value"] > 0
    with pytest.raises(SystemExit):
        command.main(["streams", "decode"])
