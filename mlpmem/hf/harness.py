"""Run lm_eval (EleutherAI) on a folder that `python -m mlpmem.hf` wrote; arguments are lm_eval's.

    python -m mlpmem.hf fused --system memory
    python -m mlpmem.hf.harness run --model hf --model_args pretrained=fused,add_bos_token=False \\
        --include_path my_tasks --tasks my_task --device cpu

It only registers such folders with transformers first; lm_eval does the evaluation.
"""

import sys
from importlib.util import find_spec

import mlpmem.hf  # noqa: F401  registers the model


def main() -> int:
    """Run lm_eval's command line; return 1 if it is not installed."""
    if find_spec("lm_eval") is None:
        sys.stderr.write('lm_eval is not installed; run pip install ".[eval]"\n')
        return 1
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()
    return 0


if __name__ == "__main__":
    sys.exit(main())
