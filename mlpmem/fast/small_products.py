"""Compiled products of 4-bit weights, for decoders of families without a compiled step.

Until they are compiled, packed forms compute everything (few_rows.py). Afterwards a decoder's
weights are held once, if compiled code is about as fast for many rows.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from mlpmem.fast.compiling import COMPILING, PRODUCTS, compiles, in_background, is_cached
from mlpmem.fast.devices import Decodes, calibrate, trim_memory
from mlpmem.fast.few_rows import FewRows, eight_bits, four_bits, settle

SIZE = 32  # inputs and outputs of the weights that are multiplied to compile


class SmallProducts:
    """The compiled products of one decoder."""

    def __init__(self, model: nn.Module, owner: Callable[[], Decodes | None]) -> None:
        """Take a model and a weak reference to its decoder."""
        self.model, self.owner = model, owner
        self.ready = False

    @classmethod
    def of(cls, model: nn.Module, owner: Callable[[], Decodes | None]) -> "SmallProducts | None":
        """Return the products of a model, None if it has no small forms or nothing compiles."""
        small = compiles() and any(isinstance(layer, FewRows) for layer in model.modules())
        return cls(model, owner) if small else None

    def compile_in_background(self, memory: Any = None) -> None:
        """Start a thread that compiles the products and uses them, unless that is done."""
        if not self.ready:
            in_background(PRODUCTS, partial(self._use, memory), self)

    def compile_if_cached(self) -> None:
        """Use the products now if that takes no longer than to read what was compiled before."""
        if is_cached(PRODUCTS):
            self.compile()

    def compile(self) -> None:
        """Compile the products and use them; once, also with several threads."""
        with COMPILING:
            if not self.ready:
                self._use()

    def _use(self, memory: Any = None) -> None:
        """Use compiled products, with the number of threads that is fastest with them."""
        compile_products()
        for layer in self.model.modules():
            if isinstance(layer, FewRows):
                _ = layer.small  # a tied head's too: its product takes 0.4 of the table's time
        settle(self.model)
        self.ready = True
        trim_memory()
        if (owner := self.owner()) is not None:
            calibrate(owner, memory)


@torch.inference_mode()
def compile_products() -> None:
    """Compile the products of every small form, and let layers use them."""
    from mlpmem.fast.kernels import note
    from mlpmem.fast.parts import product

    weight = torch.ones(SIZE, SIZE)
    for small in (four_bits(weight), eight_bits(weight)):
        product(small, torch.zeros(2, SIZE))
    FewRows.product = staticmethod(product)
    if (place := note(PRODUCTS)) is not None:
        place.touch()
