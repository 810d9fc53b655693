"""The transformers model gives the same texts and scores as the library."""

import json

import pytest
import tiny
import torch
from fake_hub import FakeHub
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    TextIteratorStreamer,
    pipeline,
)

from mlpmem.errors import MlpMemError
from mlpmem.hf.__main__ import main
from mlpmem.hf.model import MlpMemoryForCausalLM
from mlpmem.model.memory import Memory

PROMPT = "The capital of Peru is"
SYSTEMS = ("lm", "memory", "knn")


def wrapped(model, system: str, lmbda: float = 0.4) -> MlpMemoryForCausalLM:
    return MlpMemoryForCausalLM.of(model, system, lmbda)


def ids_of(model, text: str = PROMPT) -> torch.Tensor:
    return torch.tensor([model.decoder.encode(text)])


def written(model, system: str, prompt: str = PROMPT, tokens: int = 12) -> list[int]:
    trace = model.generate(prompt, system, lmbda=0.4, max_new_tokens=tokens)
    return [step.token_id for step in trace.steps]


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("family", ("gpt2", "llama"))
def test_greedy_generate_equals_ours_token_for_token(family, system):
    model = tiny.model(family, seed=3)
    ids = ids_of(model)
    output = wrapped(model, system).generate(ids, max_new_tokens=12, do_sample=False)
    assert output[0, ids.shape[1] :].tolist() == written(model, system)


@pytest.mark.parametrize("system", SYSTEMS)
def test_softmax_of_the_logits_is_the_mix_of_probabilities(system, tiny_model):
    ids = ids_of(tiny_model)
    logits = wrapped(tiny_model, system)(ids).logits
    found = tiny_model.distributions(ids[0].tolist())
    other = found[system].exp() if system != "lm" else found["lm"].exp()
    wanted = 0.6 * found["lm"].exp() + 0.4 * other
    torch.testing.assert_close(logits[0, -1].softmax(-1), wanted, rtol=1e-5, atol=1e-7)
    assert not logits.requires_grad and not logits.is_inference()


def test_the_loss_of_labels_is_the_mean_nll_of_the_score(tiny_model):
    ids = ids_of(tiny_model, "The capital of Peru is Lima.")
    score = tiny_model.score("The capital of Peru is Lima.")
    loss = wrapped(tiny_model, "memory", 0.3)(ids, labels=ids).loss
    assert float(loss) == pytest.approx(score.mixed("memory", 0.3).mean(), abs=1e-5)


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_left_padded_batch_equals_single_runs(system, tiny_model):
    prompts = [PROMPT, "Gold", "Vellmar is an invented town in"]
    words = tiny_model.decoder.tokenizer
    batch = words(prompts, return_tensors="pt", padding=True, padding_side="left")
    batch.pop("token_type_ids", None)
    output = wrapped(tiny_model, system).generate(**batch, max_new_tokens=8, do_sample=False)
    for row, prompt in zip(output[:, batch.input_ids.shape[1] :].tolist(), prompts, strict=True):
        single = written(tiny_model, system, prompt, 8)
        assert row[: len(single)] == single


def test_sampling_is_reproducible_and_follows_the_mix(tiny_model):
    model, ids = wrapped(tiny_model, "memory"), ids_of(tiny_model)
    many = {"do_sample": True, "top_k": 0, "top_p": 1.0, "max_new_tokens": 1}

    def drawn(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return model.generate(ids, num_return_sequences=4000, **many)[:, -1]

    one, other = drawn(1), drawn(2)
    assert torch.equal(one, drawn(1)) and not torch.equal(one, other)
    shares = torch.bincount(torch.cat([one, other]), minlength=tiny_model.decoder.vocab_size) / 8000
    assert (shares - model(ids).logits[0, -1].exp()).abs().max() < 0.03


def test_beam_search_finds_a_text_at_least_as_probable_as_greedy(tiny_model):
    model, ids = wrapped(tiny_model, "memory"), ids_of(tiny_model)
    options = {"max_new_tokens": 6, "do_sample": False, "length_penalty": 0.0}
    greedy = model.generate(ids, **options)
    beams = model.generate(
        ids, num_beams=4, output_scores=True, return_dict_in_generate=True, **options
    )

    def total(sequence: torch.Tensor) -> float:
        log_probs, start = model(sequence[None]).logits[0], ids.shape[1]
        picked = log_probs[start - 1 : -1].gather(1, sequence[start:, None])
        return float(picked.sum())

    assert total(beams.sequences[0]) >= total(greedy[0]) - 1e-4
    assert float(beams.sequences_scores[0]) == pytest.approx(total(beams.sequences[0]), abs=1e-4)


def test_a_streamer_receives_every_token(tiny_model):
    model, words = wrapped(tiny_model, "memory"), tiny_model.decoder.tokenizer
    streamer = TextIteratorStreamer(words, skip_prompt=True)
    ids = ids_of(tiny_model)
    output = model.generate(ids, max_new_tokens=8, do_sample=False, streamer=streamer)
    assert "".join(streamer) == words.decode(output[0, ids.shape[1] :])


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_folder_gives_the_same_answers(system, tiny_model, tmp_path):
    model, ids = wrapped(tiny_model, system), ids_of(tiny_model)
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(again, MlpMemoryForCausalLM)
    assert (again.config.system, again.config.lmbda) == (system, model.config.lmbda)
    assert torch.equal(again(ids).logits, model(ids).logits)
    assert again.generation_config.eos_token_id == model.generation_config.eos_token_id
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pkl", ".pt", ".py")]
    if system == "memory":
        assert Memory.load(tmp_path / "memory").config == tiny_model.memory.config


def test_a_pipeline_writes_what_the_model_writes(tiny_model, tmp_path):
    wrapped(tiny_model, "memory").save_pretrained(tmp_path)
    write = pipeline("text-generation", model=str(tmp_path))
    (result,) = write(PROMPT, max_new_tokens=8, return_full_text=False)  # greedy by default
    words = AutoTokenizer.from_pretrained(tmp_path)
    wanted = words.decode(written(tiny_model, "memory", tokens=8), skip_special_tokens=True)
    assert result["generated_text"] == wanted


def test_the_command_writes_a_bundle_as_a_folder(tiny_bundle, tmp_path, capsys):
    folder = tmp_path / "fused"
    assert main([str(folder), "--bundle", str(tiny_bundle.folder), "--system", "memory"]) == 0
    assert MlpMemoryForCausalLM.from_pretrained(folder).config.lmbda == 0.55
    assert " MB\n" in capsys.readouterr().err
    assert main([str(folder), "--bundle", str(tmp_path / "none")]) == 1, "own output is replaced"
    assert "neither a local folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    for occupied in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        assert main([str(occupied), "--bundle", str(tiny_bundle.folder)]) == 1
        assert str(occupied) in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_keeps_neither_the_decoders_path_nor_its_sampling(tmp_path):
    model = tiny.model()
    model.decoder.model.config.name_or_path = "/home/somebody/decoder"
    model.decoder.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    wrapped(model, "memory").save_pretrained(tmp_path)
    generation = json.loads((tmp_path / "generation_config.json").read_text())
    assert generation["do_sample"] is False
    assert not {"temperature", "top_p"} & generation.keys()
    assert all("somebody" not in path.read_text() for path in tmp_path.rglob("*.json"))


LOADERS = [AutoModelForCausalLM, MlpMemoryForCausalLM]
OPTIONS = [
    {"dtype": torch.float16}, {"dtype": "float16"}, {"torch_dtype": "bfloat16"}, {"dtype": "auto"},
    {"device_map": "auto"}, {"device_map": "sequential"}, {"device_map": {"": "cpu"}},
    {"device_map": {"decoder": "cpu", "memory": "cpu"}}, {"device_map": torch.device("cpu")},
    {"attn_implementation": "eager"}, {"low_cpu_mem_usage": True}, {"use_safetensors": True},
    {"revision": "main", "token": "x", "cache_dir": "/nowhere", "local_files_only": True},
    {"trust_remote_code": True}, {"weights_only": True}, {"offload_folder": "x"}, {"lmbda": 0.1},
]  # fmt: skip


@pytest.mark.parametrize("loader", LOADERS)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_folder_supports_transformers_loading_options(loader, options, tiny_model, tmp_path):
    wrapped(tiny_model, "memory").save_pretrained(tmp_path)
    loaded = loader.from_pretrained(tmp_path, **options)
    named = options.get("dtype", options.get("torch_dtype", "float32"))
    kinds = {"auto": torch.float32} | {k: getattr(torch, k) for k in ("float16", "bfloat16")}
    default = torch.float16 if named is torch.float16 else loaded.dtype
    assert loaded.dtype == kinds.get(named, default)
    assert loaded.config.lmbda == options.get("lmbda", 0.4)
    attention = options.get("attn_implementation", "sdpa")
    assert loaded.decoder.config._attn_implementation == attention
    ids = ids_of(tiny_model)
    wanted = wrapped(tiny_model, "memory", loaded.config.lmbda)(ids).logits
    near = 1e-5 if loaded.dtype == torch.float32 else 1.0
    torch.testing.assert_close(loaded(ids).logits, wanted, atol=near, rtol=1e-4)


@pytest.mark.parametrize("loader", LOADERS)
def test_stored_dtype_subfolder_and_loading_info(loader, tmp_path):
    model = tiny.model()
    model.decoder.model.half()
    wrapped(model, "lm").save_pretrained(tmp_path / "below")
    loaded, info = loader.from_pretrained(
        tmp_path, subfolder="below", dtype="auto", output_loading_info=True
    )
    assert loaded.dtype == torch.float16
    assert not any(info.values()) and {"missing_keys", "unexpected_keys"} <= info.keys()
    generation = GenerationConfig(max_new_tokens=3)
    config = AutoConfig.from_pretrained(tmp_path / "below")
    loaded = loader.from_pretrained(tmp_path / "below", config=config, generation_config=generation)
    assert loaded.generation_config.max_new_tokens == 3 and loaded.config is config


@pytest.mark.parametrize("loader", LOADERS)
def test_a_folder_on_the_hub_is_downloaded(loader, tiny_model, tmp_path, monkeypatch):
    wrapped(tiny_model, "memory").save_pretrained(tmp_path / "repository")
    (tmp_path / "repository" / "run.py").write_text("print('no')")
    hub = FakeHub({"someone/fused": tmp_path / "repository"})
    hub.be_the_hub(monkeypatch, tmp_path / "cache")
    options = {"cache_dir": tmp_path / "cache", "revision": "main"}
    loaded = loader.from_pretrained("someone/fused", **options)
    hub.close()
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # transformers asks it again in vain
    ids = ids_of(tiny_model)
    assert torch.equal(loaded(ids).logits, wrapped(tiny_model, "memory")(ids).logits)
    assert not list((tmp_path / "cache").rglob("run.py"))
    again = loader.from_pretrained("someone/fused", local_files_only=True, **options)
    assert torch.equal(again(ids).logits, loaded(ids).logits)


def test_unsupported_options_are_refused(tiny_model, tmp_path):
    with pytest.raises(MlpMemError, match="not a folder with a config.json"):
        MlpMemoryForCausalLM.from_pretrained(tmp_path)
    with pytest.raises(MlpMemError, match="cannot be downloaded"):
        MlpMemoryForCausalLM.from_pretrained("no/such-model", local_files_only=True)
    wrapped(tiny_model, "lm").save_pretrained(tmp_path)
    for options, what in (
        ({"load_in_4bit": True}, "load_in_4bit is not supported; .* config and its values"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"device_map": {"decoder": "cpu", "memory": "cuda:0"}}, "one device"),
        ({"device_map": "nowhere"}, "one device"),
        ({"dtype": "float7"}, "float7"),
        ({"attn_implementation": "no_such"}, "no_such.* use sdpa or eager"),
        ({"subfolder": "../elsewhere"}, "not a folder with a config.json"),
    ):
        with pytest.raises(MlpMemError, match=what):
            MlpMemoryForCausalLM.from_pretrained(tmp_path, **options)


@pytest.mark.parametrize("options", [{"system": "mixed"}, {"lmbda": "auto"}])
def test_unsupported_systems_are_refused(options):
    with pytest.raises(MlpMemError, match="one of lm, memory and knn at a number"):
        MlpMemoryForCausalLM.of(tiny.model(k=8), **options)
