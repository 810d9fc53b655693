""" "auto" uses all GPUs: layers spread by accelerate answer as on one device."""

import pytest
import tiny
import torch
from accelerate import dispatch_model  # noqa: TID251  what transformers calls for "auto"

from mlpmem.api import Model
from mlpmem.errors import MlpMemError
from mlpmem.fast import devices
from mlpmem.loading import capacity
from mlpmem.model.decoder import Decoder
from mlpmem.model.memory import Memory, MemoryConfig

IDS = torch.tensor([[0, 9, 40, 7, 12]])


@pytest.fixture
def gpus(monkeypatch):
    """Return a function that fakes GPUs with so many free bytes."""

    def pretend(*free):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(free))
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(free))
        monkeypatch.setattr(
            torch.cuda, "mem_get_info", lambda i=0: (free[int(i)], 2 * free[int(i)])
        )

    return pretend


def test_without_a_gpu_auto_is_the_cpu(gpus, tmp_path):
    gpus()
    assert devices.spread("auto") == {} and devices.first_device("auto") == "cpu"
    tiny.decoder("llama").model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    decoder = Decoder.load(tmp_path, device="auto")
    assert decoder.device.type == "cpu"
    assert capacity.available_bytes("auto") > 0


def test_one_gpu_holds_everything_and_several_share_with_a_margin(gpus):
    gpus(10**9)
    assert devices.spread("auto") == {} and devices.first_device("auto") == "cuda:0"
    gpus(10**9, 3 * 10**9)
    for device in ("cpu", "cuda", torch.device("cuda:1")):
        assert devices.spread(device) == {} and devices.first_device(device) == device
    options = devices.spread("auto")
    assert options == {"device_map": "auto", "max_memory": {0: 85 * 10**7, 1: 255 * 10**7}}
    assert capacity.available_bytes("auto") == 34 * 10**8
    capacity.check_room({"decoder": 15 * 10**8}, torch.bfloat16, "auto")
    with pytest.raises(MlpMemError, match="free on auto"):
        capacity.check_room({"decoder": 16 * 10**8}, torch.bfloat16, "auto")


def test_a_decoder_for_several_gpus_is_loaded_with_these_options_and_not_moved(
    gpus, tmp_path, monkeypatch
):
    from transformers import AutoModelForCausalLM

    gpus(10**9, 10**9)
    tiny.decoder("gpt2").model.save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    read, seen = AutoModelForCausalLM.from_pretrained, {}

    def spy(folder, device_map=None, max_memory=None, **options):
        seen.update(device_map=device_map, max_memory=max_memory)
        model, info = read(folder, **options)
        monkeypatch.setattr(model, "to", lambda *_: pytest.fail("the decoder was moved"))
        return model, info

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", spy)
    Decoder.load(tmp_path, device="auto")
    assert seen == devices.spread("auto")


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_layers_with_accelerates_hooks_give_the_same_answer(family):
    """Every layer gets the hooks that move its inputs, here from the CPU to the CPU."""
    plain, hooked = tiny.decoder(family), tiny.decoder(family)
    names = {name: "cpu" for name, _ in hooked.model.named_children()}
    dispatch_model(hooked.model, names, main_device="cpu", force_hooks=True)
    wanted, found = (d.forward(IDS, use_cache=True) for d in (plain, hooked))
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.hidden, wanted.hidden)
    wanted, found = (
        d.forward(IDS[:, :1], cache=r.cache, last=1) for d, r in ((plain, wanted), (hooked, found))
    )
    assert torch.equal(found.logits, wanted.logits) and torch.equal(found.hidden, wanted.hidden)
    assert torch.equal(hooked.forward(IDS, head=False).hidden, plain.forward(IDS).hidden)


def test_a_tied_memory_uses_the_decoders_head():
    decoder = tiny.decoder("llama")
    config = MemoryConfig(
        decoder.hidden_size, decoder.vocab_size, 1, 48, family="llama", tied_head=True
    )
    model = Model(decoder, Memory(config))
    assert torch.equal(model.memory.lm_head.weight, decoder.head_weight)
    assert model.memory.lm_head.weight.data_ptr() == decoder.head_weight.data_ptr()
