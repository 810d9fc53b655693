"""The prepared run for a GPU: its self-test on the CPU, and what its file keeps."""

import json
import math
import time
from dataclasses import replace

import pytest
import torch

from mlpmem.bench.figures import Figure
from mlpmem.errors import MlpMemError
from train.bench.__main__ import main
from train.bench.gpu import decoders as gpu_decoders
from train.bench.gpu import device
from train.bench.gpu import run as gpu
from train.bench.gpu.device import Job, peak_flops
from train.bench.gpu.products import StepSizes
from train.bench.turns import BenchOptions

SIZES = {"cpu": StepSizes((), "float32", ())}  # of parts that ignore them


def run(parts, out):
    """Return the figures' names of a run, and its message if parts are not done."""
    names = []
    try:
        for figure in gpu.bench(BenchOptions(out=out), parts):
            names.append(figure.name)
    except MlpMemError as error:
        return names, str(error)
    return names, ""


def counted(name, fails=None):
    """Return a part with one figure, which fails after it if told so, and the list of its runs."""
    runs = []

    def measure(sizes, job):
        runs.append(name)
        yield Figure(f"{name}/value", 2.0, "s", floor=1.0)
        if fails is not None:
            raise fails

    return gpu.Part(measure, 10, SIZES), runs


def test_the_self_test_measures_every_part_and_says_what_it_is(tmp_path, capsys):
    out = tmp_path / "found.json"
    assert main(["gpu", "--device", "cpu", "--json", "--out", str(out)]) == 0
    said, result = capsys.readouterr(), json.loads(out.read_text("utf-8"))
    assert "mean nothing about a GPU" in said.err and "mean nothing" in result["self_test"]
    assert list(result["parts"]) == ["step", "search", "keys", "decode", "recipe"]
    for row in result["parts"].values():
        assert row["status"] == "done" and row["figures"] and len(row["sources"]) == 64
        for figure in row["figures"].values():
            assert math.isfinite(figure["value"]) and figure["value"] > 0 and figure["unit"]
    figures = {k: v for row in result["parts"].values() for k, v in row["figures"].items()}
    assert [json.loads(line)["name"] for line in said.out.splitlines()] == list(figures)
    assert figures["search/2000x16/k=8/recall"]["value"] == 1.0
    recipe = {k.rpartition("/")[2]: v["value"] for k, v in figures.items() if "recipe/" in k}
    assert recipe["loss_after"] < recipe["loss_before"] and recipe["done"] == 1.0


def test_a_second_start_skips_what_is_done_with_the_same_code_and_sizes(tmp_path, capsys):
    (a, ran_a), (b, ran_b) = counted("a"), counted("b")
    out = tmp_path / "gpu.json"
    assert run({"a": a}, out) == (["a/value"], "")
    assert run({"a": a, "b": b}, out) == (["a/value", "b/value"], "")
    assert (len(ran_a), len(ran_b)) == (1, 1) and "a: done before" in capsys.readouterr().err
    other = replace(a, sizes={"cpu": StepSizes((), "bfloat16", ())})
    assert run({"a": other, "b": b}, out)[1] == "" and (len(ran_a), len(ran_b)) == (2, 1)


def test_other_code_runs_all_parts_again(tmp_path, monkeypatch):
    part, runs = counted("a")
    for sources in ("1", "1", "2"):
        code = {"sources": sources, "torch": ""}
        monkeypatch.setattr(gpu, "code_version", lambda code=code: code)
        assert run({"a": part}, tmp_path / "gpu.json")[1] == ""
    assert len(runs) == 2


def test_the_code_is_that_of_both_packages(monkeypatch, tmp_path):
    assert (device.ROOT / "mlpmem" / "api.py").is_file() and device.ROOT.joinpath("train").is_dir()
    here = device.code_version()["sources"]
    monkeypatch.setattr(device, "ROOT", tmp_path)
    assert device.code_version()["sources"] != here


def test_a_failing_part_is_recorded_and_only_it_runs_again(tmp_path):
    (a, _), (b, ran_b) = counted("a", RuntimeError("out of memory")), counted("b")
    out = tmp_path / "gpu.json"
    names, message = run({"a": a, "b": b}, out)
    assert names == ["a/value", "b/value"] and "not done: a;" in message
    row = json.loads(out.read_text("utf-8"))["parts"]["a"]
    assert (row["status"], row["message"]) == ("failed", "RuntimeError: out of memory")
    assert row["figures"]["a/value"]["value"] == 2.0
    mended, ran = counted("a")
    assert run({"a": mended, "b": b}, out)[1] == "" and (len(ran), len(ran_b)) == (1, 1)


def test_a_kill_in_between_keeps_finished_parts(tmp_path):
    (a, ran_a), (b, _) = counted("a"), counted("b", KeyboardInterrupt())
    out = tmp_path / "gpu.json"
    with pytest.raises(KeyboardInterrupt):
        run({"a": a, "b": b}, out)
    assert list(json.loads(out.read_text("utf-8"))["parts"]) == ["a"]
    mended, ran_b = counted("b")
    assert run({"a": a, "b": mended}, out)[1] == "" and (len(ran_a), len(ran_b)) == (1, 1)


def test_a_part_beyond_its_bound_is_interrupted(tmp_path):
    def endless(sizes, job):
        assert job.until - time.monotonic() < 0.2
        time.sleep(20)
        yield

    out = tmp_path / "gpu.json"
    start = time.monotonic()
    assert "not done: a" in run({"a": gpu.Part(endless, 0.2, SIZES)}, out)[1]
    assert time.monotonic() - start < 10
    assert "interrupted" in json.loads(out.read_text("utf-8"))["parts"]["a"]["message"]


def test_no_part_begins_after_the_time_of_all(tmp_path, monkeypatch):
    part, runs = counted("a")
    monkeypatch.setattr(gpu, "TOTAL", 0.0)
    assert "not done: a" in run({"a": part}, tmp_path / "gpu.json")[1] and not runs


def test_a_figure_that_is_not_finite_fails_its_part_and_leaves_valid_json(tmp_path):
    out = tmp_path / "gpu.json"
    part = gpu.Part(lambda sizes, job: iter([Figure("a/loss", math.nan, "nats")]), 10, SIZES)
    assert "not done: a" in run({"a": part}, out)[1]
    assert "NaN" not in out.read_text("utf-8")


@pytest.mark.parametrize("text", ["no json", "[]", '{"parts": {}}', '{"bench": "gpu"}'])
def test_another_file_is_not_overwritten(tmp_path, text):
    out = tmp_path / "gpu.json"
    out.write_text(text, "utf-8")
    with pytest.raises(MlpMemError, match="not a file of this bench"):
        next(gpu.bench(BenchOptions(out=out), {}))
    assert out.read_text("utf-8") == text


def test_figures_of_another_device_are_not_overwritten(tmp_path):
    out = tmp_path / "gpu.json"
    out.write_text('{"bench": "gpu", "device": {"name": "NVIDIA H200"}, "parts": {}}', "utf-8")
    with pytest.raises(MlpMemError, match="'NVIDIA H200'; this is 'cpu'. Give another --out"):
        next(gpu.bench(BenchOptions(out=out), {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (BenchOptions(device="toaster"), "'toaster' is not available"),
        (BenchOptions(device="meta"), "must be cpu, cuda"),
        (BenchOptions(device="cuda:99"), "'cuda:99' is not available"),
    ],
)
def test_a_device_that_is_not_there_is_named(options, message):
    with pytest.raises(MlpMemError, match=message):
        next(gpu.bench(options, {}))


def test_a_folder_that_is_not_there_is_named_at_once(tmp_path):
    with pytest.raises(MlpMemError, match="cannot write .*absent"):
        next(gpu.bench(BenchOptions(out=tmp_path / "absent" / "gpu.json"), {}))


def test_the_peak_is_that_of_the_device_by_its_name():
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("NVIDIA H100 PCIe") == 756e12 and peak_flops("NVIDIA L40S") == 362e12
    assert peak_flops("NVIDIA A100-SXM4-80GB") == 312e12 and peak_flops("NVIDIA L4") == 121e12
    assert peak_flops("cpu") is None and peak_flops("NVIDIA H200 MIG 1g.18gb") is None


def test_the_parameters_of_the_shape_of_7b_are_7_billion():
    shape = gpu.SEVEN
    parameters = sum(weight.numel() for weight in gpu_decoders.empty_model(shape).parameters())
    head, last = shape.vocab * shape.hidden, 3 * shape.hidden * shape.intermediate
    assert 7.2e9 < parameters < 7.3e9
    attention = shape.layers * 4 * shape.hidden * shape.length // 2
    norms = (2 * shape.layers + 1) * shape.hidden
    assert shape.flop == 2 * (parameters - 2 * head - last - norms) + attention


def test_a_random_decoder_equals_one_that_transformers_builds_with_the_same_weights():
    from transformers import LlamaForCausalLM

    model = gpu_decoders.random_decoder(gpu.TINY, "cpu").model
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    ids = torch.arange(12)[None]
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, other(ids).logits)


def test_keys_are_built_with_random_weights_where_the_file_is_not_installed():
    shape = replace(gpu.TINY, source="package:not-installed-anywhere/file.gguf")
    names = [f.name for f in gpu_decoders.keys((shape,), Job("cpu", time.monotonic() + 60, 1e12))]
    assert names == [f"keys/tiny-random/{metric}" for metric in ("tokens", "flop", "mfu")]


def test_a_case_that_begins_too_late_is_named():
    with pytest.raises(MlpMemError, match="used up before tiny"):
        list(gpu_decoders.keys((gpu.TINY,), Job("cpu", 0.0, None)))


@pytest.mark.gpu
def test_on_a_gpu_every_part_runs_at_tiny_sizes(tmp_path):
    parts = {n: replace(p, sizes={"cuda": p.sizes["cpu"]}) for n, p in gpu.PARTS.items()}
    both = replace(parts["step"].sizes["cuda"], dtype="bfloat16", compile=("off", "on"))
    parts["step"] = replace(parts["step"], sizes={"cuda": both})
    options = BenchOptions(device="cuda", out=tmp_path / "gpu.json")
    figures = list(gpu.bench(options, parts))
    assert figures and all(math.isfinite(f.value) and f.value > 0 for f in figures)
