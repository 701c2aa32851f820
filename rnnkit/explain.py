"""Which path a call takes, and why, for whoever asks."""

from typing import Any

import torch
from torch import nn

from . import paths
from .cells import RNNCellBase
from .layers import RNNBase
from .paths import Choice


def explain(
    module: nn.Module, input: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, reset_to: Any = None
) -> Choice:
    """Return the path that `module(input, hx)` takes here and now, and the reason. A layer is not run for it.

    module     a layer or a cell of rnnkit
    input, hx  as for a call, and lengths, resets, reset_to as for a layer's
    returns    (path, reason), strings that print as "fast: 50 steps"

    Raises TypeError for any other module, and for arguments that the call would refuse what that would raise.

    >>> print(explain(rnnkit.GRU(3, 4), torch.randn(50, 2, 3)))
    fast: 50 steps
    """
    ragged = {"lengths": lengths, "resets": resets, "reset_to": reset_to}
    if isinstance(module, RNNCellBase):
        given = {name: value for name, value in ragged.items() if value is not None}
        with torch.no_grad():
            module.forward(input, hx, **given)  # to raise what the call raises
        return Choice("readable", "a cell takes one step")
    if not isinstance(module, RNNBase):
        raise TypeError(f"module should be a layer or a cell of rnnkit, got: {type(module).__name__}")
    _, stack = module.record(input, hx, **ragged)
    return paths.choose(stack)
