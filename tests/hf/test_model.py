"""The mix behind transformers writes and scores what the library writes and scores."""

import json

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, TextIteratorStreamer, pipeline

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
    made = wrapped(model, system).generate(ids, max_new_tokens=12, do_sample=False)
    assert made[0, ids.shape[1] :].tolist() == written(model, system)


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
    made = wrapped(tiny_model, system).generate(**batch, max_new_tokens=8, do_sample=False)
    for row, prompt in zip(made[:, batch.input_ids.shape[1] :].tolist(), prompts, strict=True):
        alone = written(tiny_model, system, prompt, 8)
        assert row[: len(alone)] == alone


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


def test_beams_find_a_text_at_least_as_probable_as_greedy_and_score_it_rightly(tiny_model):
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


def test_a_streamer_hears_every_token(tiny_model):
    model, words = wrapped(tiny_model, "memory"), tiny_model.decoder.tokenizer
    streamer = TextIteratorStreamer(words, skip_prompt=True)
    ids = ids_of(tiny_model)
    made = model.generate(ids, max_new_tokens=8, do_sample=False, streamer=streamer)
    assert "".join(streamer) == words.decode(made[0, ids.shape[1] :])


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_saved_folder_answers_as_before(system, tiny_model, tmp_path):
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
    (made,) = write(PROMPT, max_new_tokens=8, return_full_text=False)  # greedy, unless told
    words = AutoTokenizer.from_pretrained(tmp_path)
    wanted = words.decode(written(tiny_model, "memory", tokens=8), skip_special_tokens=True)
    assert made["generated_text"] == wanted


def test_the_command_writes_a_bundle_as_a_folder(tiny_bundle, tmp_path, capsys):
    folder = tmp_path / "made"
    assert main([str(folder), "--bundle", str(tiny_bundle.folder), "--system", "memory"]) == 0
    assert MlpMemoryForCausalLM.from_pretrained(folder).config.lmbda == 0.55
    assert " MB\n" in capsys.readouterr().err
    assert main([str(folder), "--bundle", str(tmp_path / "none")]) == 1, "its own is replaced"
    assert "no folder" in capsys.readouterr().err
    (tmp_path / "file").write_text("mine")
    for taken in (tmp_path, tmp_path / "file", tmp_path / "file" / "below"):
        assert main([str(taken), "--bundle", str(tiny_bundle.folder)]) == 1
        assert str(taken) in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_keeps_no_path_and_no_taste_for_sampling_of_its_decoder(tmp_path):
    model = tiny.model()
    model.decoder.model.config.name_or_path = "/home/somebody/decoder"
    model.decoder.model.generation_config.update(do_sample=True, temperature=0.6, top_p=0.9)
    wrapped(model, "memory").save_pretrained(tmp_path)
    said = json.loads((tmp_path / "generation_config.json").read_text())
    assert said["do_sample"] is False and not {"temperature", "top_p"} & said.keys()
    assert all("somebody" not in path.read_text() for path in tmp_path.rglob("*.json"))


def test_what_a_folder_cannot_do_is_said(tiny_model, tmp_path):
    with pytest.raises(MlpMemError, match="no folder with a config.json"):
        MlpMemoryForCausalLM.from_pretrained(tmp_path)
    wrapped(tiny_model, "lm").save_pretrained(tmp_path)
    with pytest.raises(MlpMemError, match="load_in_4bit"):
        MlpMemoryForCausalLM.from_pretrained(tmp_path, load_in_4bit=True)
    with pytest.raises(MlpMemError, match="one device"):
        MlpMemoryForCausalLM.from_pretrained(tmp_path, device_map="balanced")
    with pytest.raises(MlpMemError, match="float7"):
        MlpMemoryForCausalLM.from_pretrained(tmp_path, dtype="float7")
    half = MlpMemoryForCausalLM.from_pretrained(tmp_path, revision="main", dtype="bfloat16")
    assert half.dtype == torch.bfloat16


@pytest.mark.parametrize("asked", [{"system": "mixed"}, {"lmbda": "auto"}])
def test_what_a_folder_cannot_hold_is_refused(asked):
    with pytest.raises(MlpMemError, match="one of lm, memory and knn at a number"):
        MlpMemoryForCausalLM.of(tiny.model(k=8), **asked)
