"""The fast path: an equation's kernel over time, in place, differentiated by hand.

products  which library forms a product, and how a weight lies in memory for it
kernels   the equations in place, each with its derivative
timeline  when rows take their steps
loop      one direction: its steps forward, and back through time
autograd  what autograd sees of it: `unroll`
pair      both directions of a layer by one loop
"""

from collections.abc import Sequence

import torch

from ..stack import Direction, Results, Stack
from ..stack import layer as one_by_one
from . import pair
from .autograd import differentiate, plain, unroll
from .kernels import KERNELS
from .loop import Loop, new_tape

__all__ = ["DTYPES", "KERNELS", "Loop", "differentiate", "layer", "new_tape", "pays", "plain", "unroll"]

DTYPES = (torch.float32, torch.float64)


def layer(directions: Sequence[Direction]) -> Results:
    """Run a layer by its directions, both at once where that pays."""
    return pair.run(directions, unroll) if pair.pays(directions) else one_by_one(unroll)(directions)


def pays(stack: Stack | Direction) -> bool:
    """Say whether so many steps take less time by this path than by the readable one, or are to take it anyway."""
    graph = torch.is_grad_enabled()
    return (
        stack.path == "always fast" or stack.length >= KERNELS[stack.equation.step].pays_from[stack.input.dtype][graph]
    )
