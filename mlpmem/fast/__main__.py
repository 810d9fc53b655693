"""Compile the kernels of Llama-shaped decoders: `python -m mlpmem.fast float32` or bfloat16.

`products` compiles only what other families use.

Later processes read them from the cache. Decoding starts this by itself when it is needed.
"""

import argparse

from transformers import LlamaConfig, LlamaForCausalLM

from mlpmem.fast.compiling import PRODUCTS
from mlpmem.fast.linear import pack
from mlpmem.fast.llama_pass import DTYPES, LlamaPass
from mlpmem.fast.small_products import compile_products

SIZES = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 16, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1}


def main(arguments: list[str] | None = None) -> None:
    """Compile for the dtype that is named."""
    known = {str(dtype).removeprefix("torch."): dtype for dtype in DTYPES}
    parser = argparse.ArgumentParser("python -m mlpmem.fast", description=__doc__.split(":")[0])
    parser.add_argument(
        "dtype", choices=[*known, PRODUCTS], help="of the decoder's weights, or the products only"
    )
    if (dtype := parser.parse_args(arguments).dtype) == PRODUCTS:
        compile_products()
        return
    model = LlamaForCausalLM(LlamaConfig(**SIZES, **HEADS)).to(known[dtype]).eval()
    if dtype != "float32":
        pack(model, 4)  # a step reads no other weights of this dtype
    llama = LlamaPass.of(model, model.model.layers, -1)
    assert llama is not None, "a Llama in its usual form is supported"
    llama.compile()


if __name__ == "__main__":
    main()
