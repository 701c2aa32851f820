"""The fast path: an equation's kernel over time, in place, differentiated by hand.

products  which library forms a product, and how a weight lies in memory for it
cublas    the same products on a GPU
kernels   the equations in place, each with its derivative
timeline  when rows take their steps
loop      one direction: its steps forward, and back through time
autograd  what autograd sees of it: `unroll`
pair      both directions of a layer by one loop
ends      rows that end where only a device knows
fused     for a GPU: the equation compiled in place of a kernel
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..equations import Equation, State
from ..stack import Direction, Results, Stack, Weights
from ..stack import layer as one_by_one
from . import fused, pair
from .autograd import aliased, go_back, keep, plain, recording, unroll
from .kernels import KERNELS
from .loop import Loop, new_tape

__all__ = [
    "DTYPES",
    "KERNELS",
    "Loop",
    "aliased",
    "fits",
    "fitting",
    "fused",
    "go_back",
    "has_kernel",
    "keep",
    "layer",
    "new_tape",
    "pays",
    "plain",
    "recording",
    "serves",
    "unroll",
]

DTYPES = (torch.float32, torch.float64)
#: On a GPU a product of 16-bit numbers is summed in float32; on `meta` a call shows that it asks nothing of the data.
DTYPES_ON: dict[str, tuple[torch.dtype, ...]] = {"cpu": DTYPES} | dict.fromkeys(
    ("cuda", "meta"), (*DTYPES, torch.float16, torch.bfloat16)
)
#: Steps, on a GPU, fewer of which take less time by the readable path.
PAYS_ON_GPU = 2


def serves(input: Tensor) -> bool:
    """Say whether there are kernels for the dtype of `input` where it lives."""
    return input.dtype in DTYPES_ON.get(input.device.type, ())


def layer(directions: Sequence[Direction]) -> Results:
    """Run a layer by its directions, both at once where that pays."""
    if pair.pays(directions):
        output, finals = pair.run(directions, unroll)
        # An infinity of one, times the zeros between the two, is a NaN in the other.
        if pair.finite([output, *(c for _, *others in finals for c in others)]):
            return output, finals
    return one_by_one(unroll)(directions)


def has_kernel(stack: Stack) -> bool:
    """Say whether there is a kernel for the equation, for the dtype of the input where it lives."""
    return stack.equation.step in KERNELS and serves(stack.input)


def fits(equation: Equation, features: int, weights: Weights, state: State) -> bool:
    """Say whether weights are as large as kernels, which write in place, count on. The readable path broadcasts a bias,
    and refuses what doesn't fit, as torch.nn does."""
    w_ih, w_hh, b_ih, b_hh, w_hr = weights
    H_out, H = state[0].size(1), state[-1].size(1)
    rows = len(equation.gates) * H
    return (
        w_ih.shape == (rows, features)
        and w_hh.shape == (rows, H_out)
        and (b_ih is None or b_ih.shape == (rows,))
        and (b_hh is None or b_hh.shape == (rows,))
        and (w_hr is None or w_hr.shape == (H_out, H))
    )


def fitting(stack: Stack) -> bool:
    """Say whether all weights of a stack are as large as that."""
    D = 2 if stack.bidirectional else 1
    for k, (weights, state) in enumerate(zip(stack.weights, stack.states, strict=True)):
        features = stack.input.size(-1) if k < D else D * state[0].size(1)
        if not fits(stack.equation, features, weights, state):
            return False
    return True


def pays(stack: Stack | Direction) -> bool:
    """Say whether so many steps take less time by this path than by the readable one, or are to take it anyway."""
    if stack.path == "always fast":
        return True
    table, graph = KERNELS[stack.equation.step].pays_from, recording()
    return stack.length >= (table[stack.input.dtype][graph] if stack.input.is_cpu else PAYS_ON_GPU)
