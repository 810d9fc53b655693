from mlpmem.hf.model import MlpMemoryForCausalLM, MlpMemoryLMConfig

__all__ = ["MlpMemoryForCausalLM", "MlpMemoryLMConfig"]
