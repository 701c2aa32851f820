"""The fast path: a stack by kernels, in place, differentiated by hand.

    products  which library forms a product, and how a weight lies in memory for it
    kernels   the equations in place, each with its derivative
    timeline  when rows take their steps
    maps      the products of one direction
    backprop  one direction, forward and back through time
    paired    both directions of a layer at once
    autograd  a layer, and what autograd sees of it
"""

import torch

from ..stack import Results, Stack, run
from .kernels import KERNELS
from .autograd import backward, differentiate, forward, layer, new_tape, plain

__all__ = ["DTYPES", "KERNELS", "backward", "differentiate", "forward", "layer", "new_tape", "pays", "plain", "projects", "stack"]

DTYPES = (torch.float32, torch.float64)


def stack(stack: Stack) -> Results:
    """Run a stack by the fast path: as the readable one, to rounding; in float64 to the bit."""
    return run(stack, layer)


def projects(stack: Stack) -> bool:
    """Say whether the equation's kernel has the projection, if the weights have one."""
    return stack.weights[0].w_hr is None or KERNELS[stack.equation.step].projects


def pays(stack: Stack) -> bool:
    """Say whether so many steps take less time by this path than by the readable one, or are to take it anyway."""
    graph = torch.is_grad_enabled()
    return stack.path == "always fast" or stack.length >= KERNELS[stack.equation.step].pays_from[stack.input.dtype][graph]
