"""The mix as a transformers model, for lm_eval too: `python -m mlpmem.hf`. Importing registers it.

model is the transformers model, folder saves and loads it, harness runs lm_eval on it.
It may import every room of `mlpmem` but `ui`, `bench` and `space`. Open model.py first.
"""

from mlpmem.hf.model import MlpMemoryForCausalLM, MlpMemoryLMConfig

__all__ = ["MlpMemoryForCausalLM", "MlpMemoryLMConfig"]
