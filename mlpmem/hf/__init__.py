"""The mix behind transformers and lm_eval: `python -m mlpmem.hf`. Importing it registers the model.

model is the mix as a transformers model, folder what it saves and loads, harness runs lm_eval.
It may import every room of `mlpmem` but `ui`, `bench` and `space`. Open model.py first.
"""

from mlpmem.hf.model import MlpMemoryForCausalLM, MlpMemoryLMConfig

__all__ = ["MlpMemoryForCausalLM", "MlpMemoryLMConfig"]
