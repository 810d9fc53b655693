"""The decoder's states of general requests, which the gate of a visitor's text is fitted to.

The page computes them for a small model. A large one takes half of the time of a gate for it, so
they come with its files.
"""

import torch
from safetensors.torch import save

from mlpmem.engine.text_gate import general_answers
from mlpmem.model.decoder import Decoder

NAME = "general.safetensors"


@torch.inference_mode()
def states(decoder: Decoder, questions: bool) -> bytes:
    """Return a safetensors file of what stands before every token of the answers, R in all.

    "states" are hidden states (R, D), and "heads" (R, D) is what enters the head.
    """
    none = torch.empty(0, decoder.hidden_size)  # short positions may leave no answer
    hidden, entering = [none], [none]
    head = decoder.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0][0]))
    try:
        for answer in general_answers(decoder, questions):
            count = len(answer.ids) - answer.start
            output = decoder.forward(torch.tensor([answer.ids[:-1]]), last=count)
            hidden.append(output.hidden[0, :, : decoder.hidden_size])
    finally:
        hook.remove()
    read = {"states": torch.cat(hidden).float(), "heads": torch.cat(entering).float()}
    assert read["states"].shape == read["heads"].shape, {k: v.shape for k, v in read.items()}
    return save({name: rows.contiguous() for name, rows in read.items()})
