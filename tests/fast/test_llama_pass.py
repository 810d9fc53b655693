"""The Llama pass equals transformers, with torch's operators, compiled kernels, and one call."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import tiny
import torch

from mlpmem.fast.attention import growing_cache
from mlpmem.fast.few_rows import FewRows, Lanes, eight_bits, four_bits, lanes
from mlpmem.fast.linear import pack
from mlpmem.fast.llama_layers import Operators
from mlpmem.fast.llama_pass import LlamaPass
from mlpmem.model.decoder import Decoder
from mlpmem.model.families import FAMILIES, layers_of

ROOT = Path(__file__).parents[2]
IDS = torch.tensor([[0, 9, 40, 7, 12, 33, 21], [0, 3, 3, 80, 5, 90, 11]])
TOLERANCE = 1e-4  # of a log-prob
WINDOWS = {"mistral": 4, "phi3": 4, "gemma2": 4, "gemma3_text": 4}
FORMS = ["operators", "kernels", "step"]
SUPPORTED = [
    "phi3", "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text",
]  # fmt: skip


def both(family: str, form: str, depth: int = -1):
    """Return a decoder with the pass in a form, and the same by transformers."""
    window = {"sliding_window": WINDOWS[family]} if family in WINDOWS else {}
    decoders = [tiny.decoder(family, depth, **window) for _ in range(2)]
    for decoder in decoders:
        torch.manual_seed(5)
        for weight in decoder.model.parameters():
            if weight.dim() == 1:  # norms and biases with an effect
                weight.data.add_(0.3 * torch.randn_like(weight))
    decoders[0].fast_pass = pass_in(decoders[0], form)
    return decoders


def pass_of(decoder: Decoder) -> LlamaPass | None:
    """Return the hand-written pass of a decoder, None if it has none."""
    return LlamaPass.of(decoder.model, layers_of(decoder.model, decoder.family), decoder.depth)


def test_the_supported_families_name_the_pass():
    families = [name for name, row in FAMILIES.items() if row.short_pass == "llama"]
    assert families == [*SUPPORTED, "gemma3"]  # the text part of Gemma 3 with images


def pass_in(decoder: Decoder, form: str) -> LlamaPass:
    """Return a decoder's pass in a form."""
    llama = pass_of(decoder)
    if form != "operators":
        pytest.importorskip("numba")
        llama.compile()
        assert llama.step is not None
    if form == "kernels":
        llama.step = None
    assert llama.accepts(decoder.model, IDS, None)
    return llama


def equal(found, wanted):
    torch.testing.assert_close(
        found.logits.log_softmax(-1), wanted.logits.log_softmax(-1), rtol=0, atol=TOLERANCE
    )
    torch.testing.assert_close(found.hidden, wanted.hidden, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", SUPPORTED)
def test_prompts_steps_branches_and_chunks_equal_transformers(family, form):
    passes = both(family, form)
    for last in (0, 1, 3):
        equal(*(decoder.forward(IDS, last=last) for decoder in passes))
    read = [decoder.forward(IDS[:, :5], use_cache=True, last=1) for decoder in passes]
    equal(*read)
    for token in (4, 90, 33, 2, 8, 7):
        ids = torch.tensor([[token], [token + 1]])
        read = [d.forward(ids, cache=r.cache, last=1) for d, r in zip(passes, read, strict=True)]
        equal(*read)
        for one in read:  # as columns separate
            one.cache.batch_select_indices(torch.tensor([1, 0]))
    for one in read:
        one.cache.batch_select_indices(torch.tensor([0, 0, 1]))
    more = torch.cat([IDS, IDS[:1]])
    equal(*(d.forward(more, cache=r.cache, last=2) for d, r in zip(passes, read, strict=True)))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("depth", [0, 1])
def test_the_hidden_state_of_an_inner_layer_is_the_same(form, depth):
    passes = both("llama", form, depth)
    read = [decoder.forward(IDS, use_cache=True, last=2) for decoder in passes]
    equal(*read)
    ids = torch.tensor([[4], [9]])
    equal(*(d.forward(ids, cache=r.cache, last=1) for d, r in zip(passes, read, strict=True)))


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_a_prompt_in_blocks_equals_transformers(family, threads, monkeypatch):
    passes = both(family, "step")
    monkeypatch.setattr("mlpmem.fast.step.PROMPT", 3)
    torch.set_num_threads(threads)
    try:
        for last in (0, 1, 4, 5):
            read = [d.forward(IDS, use_cache=True, last=last) for d in passes]
            equal(*read)
            ids = IDS[:, :2]  # further tokens of a chat
            equal(*(d.forward(ids, cache=r.cache) for d, r in zip(passes, read, strict=True)))
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize("form", FORMS)
def test_a_context_is_read_up_to_its_limit(form):
    passes = both("llama", form)
    ids = torch.randint(2, 250, (1, tiny.POSITIONS - 1))
    read = [decoder.forward(ids, use_cache=True, last=1) for decoder in passes]
    token = torch.tensor([[4]])
    equal(*(d.forward(token, cache=r.cache, last=1) for d, r in zip(passes, read, strict=True)))
    assert not passes[0].fast_pass.accepts(passes[0].model, token, read[0].cache)


def test_transformers_reads_a_cache_that_the_pass_filled():
    found, wanted = both("mistral", "operators")
    caches = [d.forward(IDS, use_cache=True, last=1).cache for d in (found, wanted)]
    found.fast_pass = None
    ids = torch.tensor([[4], [9]])
    equal(*(d.forward(ids, cache=c, last=1) for d, c in zip((found, wanted), caches, strict=True)))


@pytest.mark.parametrize("form", FORMS)
def test_threads_never_share_a_steps_arrays(form):
    decoder, plain = both("llama", form)

    def write(first: int) -> list[torch.Tensor]:
        output = decoder.forward(IDS[:1] + first, use_cache=True, last=1)
        found = []
        for token in range(12):
            output = decoder.forward(torch.tensor([[first + token]]), cache=output.cache, last=1)
            found.append(output.logits)
        return found

    wanted = [write(first) for first in range(8)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(write, range(8)))
    for one, other in zip(found, wanted, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_several_threads_compute_the_same_as_one(threads):
    decoder, plain = both("llama", "step")
    step, cache = decoder.fast_pass.step, growing_cache(plain.model.config, grow_windows=True)
    wanted = plain.forward(IDS[:, :1], use_cache=True, last=1)
    with torch.inference_mode():
        logits, hidden, *_ = step.run(IDS[:, :1], cache, threads)
    torch.testing.assert_close(logits, wanted.logits, rtol=0, atol=TOLERANCE)
    torch.testing.assert_close(hidden, wanted.hidden, rtol=0, atol=TOLERANCE)


@tiny.needs_ops
def test_concurrent_threads_compile_a_model_once():
    pytest.importorskip("numba")
    decoder = tiny.decoder("llama", hidden_size=64, intermediate_size=96)
    decoder.model.to(torch.bfloat16)
    decoder.pack(4)
    with ThreadPoolExecutor(3) as pool:
        for _ in range(3):
            pool.submit(decoder.fast_pass.compile)
    step = decoder.fast_pass.step
    decoder.fast_pass.compile()
    assert step is not None and decoder.fast_pass.step is step


@tiny.needs_ops
@pytest.mark.parametrize(
    ("bits", "most", "compiled"),
    [(0, 2e-3, False), (8, 2e-2, False), (8, 4e-3, True), (4, 0.25, True)],
)
@pytest.mark.parametrize("form", ["operators", "step"])
def test_rounded_weights_change_the_answers_by_a_bounded_kl(bits, most, compiled, form):
    shape = {"hidden_size": 64, "intermediate_size": 96}
    exact, rounded = tiny.decoder("llama", **shape), tiny.decoder("llama", **shape)
    rounded.model.to(torch.bfloat16)
    pack(rounded.model, bits, compiled)
    found = pass_of(rounded)
    if form == "step":
        pytest.importorskip("numba")
        found.compile()
        assert (found.step is not None) == compiled, "inputs are rounded by torch's operators only"
    rounded.fast_pass = found
    outputs = []
    for decoder in (exact, rounded):
        read = decoder.forward(IDS, use_cache=True)
        after = decoder.forward(IDS[:, :1], cache=read.cache)
        outputs.append(torch.cat([read.logits, after.logits], 1).float().log_softmax(-1))
    one, other = outputs
    kl = float((one.exp() * (one - other)).sum(-1).mean())
    assert 0 < kl < most, kl


def test_four_bits_hold_the_numbers_of_a_file_exactly():
    q = torch.randint(0, 16, (32, 64), dtype=torch.int8)
    scale, offset = (torch.randn(32, 2).half().float() for _ in range(2))
    wanted = q.view(32, 2, 32) * scale[..., None] + offset[..., None]
    assert torch.equal(lanes(q, scale, offset).dense(), wanted.view(32, 64))
    signed = lanes(q - 8, scale, None).dense()
    assert torch.equal(signed, ((q - 8).view(32, 2, 32) * scale[..., None]).view(32, 64))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 5, 7, 8, 9, 13, 32])
def test_products_of_small_forms_equal_plain_ones(rows):
    pytest.importorskip("numba")
    from mlpmem.fast.parts import product

    weight, x = torch.randn(48, 96), torch.randn(rows, 96)
    for small in (four_bits(weight), eight_bits(weight)):
        wanted = x.double() @ small.dense().double().T
        torch.testing.assert_close(product(small, x).double(), wanted, rtol=0, atol=1e-4)
        error = (small.dense() - weight).norm() / weight.norm()
        assert error < (0.1 if isinstance(small, Lanes) else 0.01)


def test_a_released_layer_is_saved_with_its_rounded_weight():
    decoder = tiny.decoder("llama", hidden_size=64, intermediate_size=96)
    decoder.model.to(torch.bfloat16)
    pack(decoder.model, 4)
    before = {k: v.clone() for k, v in decoder.model.state_dict().items()}
    size = decoder.bytes
    for module in decoder.model.modules():
        if isinstance(module, FewRows) and isinstance(module.small, Lanes):
            module.release()
    assert decoder.bytes < size
    after = decoder.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_unsupported_models_use_transformers():
    decoder = tiny.decoder("llama")
    found = pass_of(decoder)
    assert not found.accepts(tiny.decoder("llama").model, IDS, None)
    assert pass_of(tiny.decoder("gpt2")) is None
    decoder.model.to(torch.float16)
    assert not found.accepts(decoder.model, IDS, None)


def test_a_llama_uses_the_pass(tiny_model):
    assert isinstance(tiny_model.decoder.fast_pass, LlamaPass)
    assert tiny_model.decoder.fast_pass.operators is Operators


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2"])
def test_columns_of_one_prompt_read_it_from_one_row(family):
    passes = both(family, "step")
    read = [decoder.forward(IDS[:1], use_cache=True, last=1) for decoder in passes]
    for output in read:
        output.cache.batch_select_indices(torch.zeros(3, dtype=torch.long))
    for token in (4, 90, 33):
        ids = torch.tensor([[token], [token + 1], [token + 2]])
        read = [d.forward(ids, cache=r.cache, last=1) for d, r in zip(passes, read, strict=True)]
        equal(*read)
        for output in read:
            output.cache.batch_select_indices(torch.tensor([2, 0, 1]))
    assert {layer.shared for layer in read[0].cache.layers} == {IDS.shape[1]}
    if family != "llama":
        return  # transformers does not crop a window
    for output in read:
        output.cache.crop(-(3 + 2))
    assert {layer.shared for layer in read[0].cache.layers} == {IDS.shape[1] - 2}
    ids = torch.tensor([[8], [9], [10]])
    equal(*(d.forward(ids, cache=r.cache, last=1) for d, r in zip(passes, read, strict=True)))


@tiny.needs_ops
@pytest.mark.parametrize("family", ["llama", "qwen2"])  # without and with biases
def test_the_kl_of_4_bits_is_measured_before_anything_is_compiled(family, monkeypatch):
    monkeypatch.setattr(FewRows, "product", None)
    decoder = tiny.decoder(family, hidden_size=64, intermediate_size=96)
    decoder.model.to(torch.bfloat16)
    decoder.pack(4)
    assert 1e-4 < decoder.kl < 0.5
    assert not any(m.probing for m in decoder.model.modules() if isinstance(m, FewRows))


def test_one_process_compiles_while_many_tokens_are_decoded(monkeypatch):
    started, go_on = [], threading.Event()

    def compile_slowly(dtype: str) -> None:
        started.append(dtype)
        assert go_on.wait(60)
        raise RuntimeError("stopped by the test")

    monkeypatch.setenv("MLPMEM_COMPILE", "1")
    monkeypatch.setattr("mlpmem.fast.compiling.compile_apart", compile_slowly)
    decoder = tiny.decoder("llama")
    decoder.fast_pass = pass_of(decoder)
    output = decoder.forward(IDS[:1], use_cache=True, last=1)
    for _ in range(8):
        output = decoder.forward(IDS[:1, :1], cache=output.cache, last=1)
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "compile":
            thread.join(60)
    assert started == ["float32"]


@pytest.mark.slow
def test_a_process_that_ends_while_kernels_are_compiled_ends_as_others_do(tmp_path):
    pytest.importorskip("numba")
    decoder = tiny.decoder("llama")
    decoder.model.save_pretrained(tmp_path / "decoder")
    decoder.tokenizer.save_pretrained(tmp_path / "decoder")
    script = "import mlpmem; print(len(mlpmem.load(decoder='decoder').generate('a', "
    script += "max_new_tokens=2).steps))"
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = str(ROOT)
    for _ in range(2):
        ended = subprocess.run(
            [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True,
            text=True, timeout=200,
        )  # fmt: skip
        assert (ended.returncode, ended.stdout.strip()) == (0, "2"), ended.stderr
        assert "numba" not in ended.stderr


def test_a_norm_without_epsilon_is_read():
    decoder = tiny.decoder("llama", rms_norm_eps=0.0)
    found = pass_of(decoder).forward(IDS, None, 1)[0]
    wanted = decoder.model(IDS, logits_to_keep=1).logits
    torch.testing.assert_close(found, wanted, rtol=0, atol=TOLERANCE)
