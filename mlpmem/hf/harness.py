"""Run lm_eval (EleutherAI) on a folder that `python -m mlpmem.hf` wrote; all arguments are its own.

    python -m mlpmem.hf fused --system memory
    python -m mlpmem.hf.harness run --model hf --model_args pretrained=fused,add_bos_token=False \\
        --include_path my_tasks --tasks my_task --device cpu

It does nothing but let transformers know such folders first. It is no evaluator of its own.
"""

import sys
from importlib.util import find_spec

import mlpmem.hf  # noqa: F401  registers the model


def main() -> int:
    """Hand over to lm_eval's command line; return 1 where it is not installed."""
    if find_spec("lm_eval") is None:
        sys.stderr.write('lm_eval is not installed here; pip install ".[eval]" brings it\n')
        return 1
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
