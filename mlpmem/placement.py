"""Where weights lie: on one device, or a decoder's on all GPUs that there are ("auto").

accelerate spreads the layers and carries a pass from GPU to GPU. Token ids go in and hidden states
come out on the first, where memory and search are. Nothing goes to host memory or disk: a decoder
that does not fit the GPUs is refused before it is read (room.py).
"""

from typing import Any

import torch

AUTO = "auto"
FILLED = 0.85  # of a GPU's free memory; the rest is for caches, the memory and keys


def first_device(device: str | torch.device) -> str | torch.device:
    """Return the one device of everything but a decoder's layers: for "auto" the first GPU.

    That is the CPU where there is no GPU.
    """
    if device != AUTO:
        return device
    return "cuda:0" if torch.cuda.is_available() else "cpu"


def spread(device: str | torch.device) -> dict[str, Any]:
    """Return from_pretrained's options for several GPUs; none where one device holds it all."""
    if device != AUTO or torch.cuda.device_count() < 2:
        return {}
    free = {i: int(FILLED * size) for i, size in enumerate(free_on_gpus())}
    return {"device_map": AUTO, "max_memory": free}


def free_on_gpus() -> list[int]:
    """Return the bytes that are free on every GPU."""
    return [torch.cuda.mem_get_info(i)[0] for i in range(torch.cuda.device_count())]
