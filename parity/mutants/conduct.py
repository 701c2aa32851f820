"""Mistakes in a module's conduct: what it keeps, writes, warns of and refuses. Diagnosis has no names for them.

Each is a method of `Planted` written anew; `parent(self)` has the inherited one.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .definition import Definition, Example, Weights
from .module import Planted
from .mutant import EVERYWHERE, LAYERS, Mutant

CONDUCT: list[Mutant] = []


def conduct(method: str, name: str, level: str, initials: str, look: str = "") -> Callable[[Any], None]:
    """Register a mutant that does otherwise in one method."""

    def register(written: Any) -> None:
        written.__qualname__ = f"Planted.{method}"  # as a refusal of its arguments names it
        CONDUCT.append(Mutant(name, level, initials, look=look, mixin=type("", (Planted,), {method: written})))

    return register


def parent(module: Any) -> Any:
    """Return the module as one without the mutant that it is made of."""
    return super(type(module).__mro__[1], module)


def numbers(input: Any) -> Tensor:
    """Return the tensor of an input."""
    tensor: Tensor = input.data if isinstance(input, PackedSequence) else input
    return tensor


# In the numbers, from one call to the next ----------------------------------------------------------------------------


@conduct("run", "states kept from one call to the next", "stack", EVERYWHERE, "second_call")
def _(self: Any, input: Any, hx: Any = None) -> Any:
    result = parent(self).run(input, getattr(self, "kept", None) if hx is None else hx)
    states = result if isinstance(self, nn.RNNCellBase) else result[1]
    self.kept = tuple(s.detach() for s in states) if isinstance(states, tuple) else states.detach()
    return result


@conduct("run", "weights remembered from the first call", "memory", EVERYWHERE, "second_call")
def _(self: Any, input: Any, hx: Any = None) -> Any:
    if not hasattr(self, "first"):
        self.first = {name: p.detach().clone() for name, p in self.named_parameters()}

    def remembered(w: Weights, slot: str, example: Example) -> Weights:
        return w._replace(w_hh=w.w_hh + (self.first["weight_hh" + slot] - w.w_hh).detach())

    self.definition = Definition(read=remembered)
    return parent(self).run(input, hx)


@conduct("run", "2-D input taken as a batch of one step", "batch", LAYERS)
def _(self: Any, input: Any, hx: Any = None) -> Any:
    if isinstance(input, Tensor) and input.dim() == 2 and hx is None:
        return parent(self).run(input.unsqueeze(1 if self.batch_first else 0))
    return parent(self).run(input, hx)


@conduct("wrap", "output forgets the order of its sequences", "batch", LAYERS)
def _(self: Any, input: Any, output: Tensor) -> Any:
    wrapped = parent(self).wrap(input, output)
    return PackedSequence(*wrapped[:2]) if isinstance(wrapped, PackedSequence) else wrapped


# In memory ------------------------------------------------------------------------------------------------------------


@conduct("run", "the backward overwrites the input", "memory", EVERYWHERE)
def _(self: Any, input: Any, hx: Any = None) -> Any:
    if not numbers(input).requires_grad:
        return parent(self).run(input, hx)
    spent = numbers(input).view_as(numbers(input))

    def overwrite(grad: Tensor) -> None:
        spent.data.zero_()

    spent.register_hook(overwrite)  # type: ignore[no-untyped-call]
    return parent(self).run(input._replace(data=spent) if isinstance(input, PackedSequence) else spent, hx)


@conduct("forward", "input written in place", "memory", EVERYWHERE)
def _(self: Any, input: Any, hx: Any = None) -> Any:
    result = parent(self).forward(input, hx)
    with torch.no_grad():
        numbers(input).clamp_(-0.5, 0.5)
    return result


@conduct("forward", "a weight normalised in place", "memory", EVERYWHERE)
def _(self: Any, input: Any, hx: Any = None) -> Any:
    result = parent(self).forward(input, hx)
    with torch.no_grad():
        next(iter(self.parameters())).mul_(0.99)
    return result


@conduct("run", "memory of the input read as if contiguous", "memory", LAYERS, "noncontiguous or expanded")
def _(self: Any, input: Any, hx: Any = None) -> Any:
    if isinstance(input, Tensor) and not input.is_contiguous():
        strides = torch.empty(input.shape, device="meta").stride()
        size = input.untyped_storage().nbytes() // input.itemsize
        input = input.as_strided(input.shape, strides) if size >= input.numel() else input.flip(0)
    return parent(self).run(input, hx)


@conduct("state_dtype", "no c of the lower precision under autocast", "dtype", "L", "autocast and LSTM")
def _(self: Any, input: Any) -> None:
    return None


@conduct("check", "the generator seeded anew at each call", "memory", EVERYWHERE)
def _(self: Any, input: Any, hx: Any) -> None:
    parent(self).check(input, hx)
    torch.manual_seed(0)


@conduct("forward", "a warning where gradients are off", "memory", EVERYWHERE, "no_grad or inference")
def _(self: Any, input: Any, hx: Any = None) -> Any:
    if not torch.is_grad_enabled():
        warnings.warn("gradients are off", stacklevel=2)
    return parent(self).forward(input, hx)


# In the contract: refusals --------------------------------------------------------------------------------------------


def refusing(
    name: str, raised: Callable[[str], Exception] | None, message: str = "", of: type[Exception] = Exception
) -> None:
    """Register a mutant that refuses with another exception, or not at all, what torch.nn refuses with this message."""

    def check(self: Any, input: Any, hx: Any) -> None:
        try:
            parent(self).check(input, hx)
        except of as error:
            if message not in str(error):
                raise
            if raised is not None:
                raise raised(str(error)) from None

    conduct("check", name, "contract", EVERYWHERE, "contract")(check)


refusing("another message", lambda said: RuntimeError(f"{said}."), of=RuntimeError)
refusing("ValueError where torch.nn raises RuntimeError", ValueError, of=RuntimeError)
refusing("TypeError for a wrong rank", TypeError, "D")
refusing("no error for an input of another size", None, "input")


@conduct("check", "no error for an hx of another size", "contract", EVERYWHERE, "contract")
def _(self: Any, input: Any, hx: Any) -> None:
    parent(self).check(input, None)


@conduct("check", "the caller's hx changed before it is refused", "contract", EVERYWHERE, "contract")
def _(self: Any, input: Any, hx: Any) -> None:
    try:
        parent(self).check(input, hx)
    except Exception:
        for h in hx if isinstance(hx, tuple) else (hx,):
            if isinstance(h, Tensor):
                h.zero_()
        raise


# In the contract: what is constructed ---------------------------------------------------------------------------------


@conduct("__init__", "no warning for dropout on one layer", "contract", LAYERS)
def _(self: Any, *args: Any, **kwargs: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        parent(self).__init__(*args, **kwargs)


@conduct("__init__", "state_dict keys in another order", "contract", EVERYWHERE, "contract")
def _(self: Any, *args: Any, **kwargs: Any) -> None:
    parent(self).__init__(*args, **kwargs)
    name = next(iter(self._parameters))
    self._parameters[name] = self._parameters.pop(name)


@conduct("__init__", "a buffer more", "contract", EVERYWHERE, "contract")
def _(self: Any, *args: Any, **kwargs: Any) -> None:
    parent(self).__init__(*args, **kwargs)
    self.register_buffer("seen", torch.zeros(()))


def taking(name: str, initials: str, change: Callable[[tuple[Any, ...], dict[str, Any]], dict[str, Any]]) -> None:
    """Register a mutant whose constructor changes the options that it is given."""

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        parent(self).__init__(*args, **kwargs | change(args, kwargs))

    conduct("__init__", name, "contract", initials, "contract")(init)


taking("dtype argument ignored", EVERYWHERE, lambda args, options: {"dtype": None})
taking("another default of bias", EVERYWHERE,
       lambda args, options: {"bias": False} if len(args) < 3 and "bias" not in options else {})  # fmt: skip
taking("any dropout accepted", LAYERS,
       lambda args, options: {"dropout": 0.5} if options.get("dropout") in (2, -0.1) else {})  # fmt: skip
taking("any nonlinearity accepted", "R",
       lambda args, options: {} if options.get("nonlinearity") in (None, "tanh", "relu") else {"nonlinearity": "tanh"},
       )  # fmt: skip


@conduct("reset_parameters", "other initial weights under one seed", "contract", EVERYWHERE, "contract")
def _(self: Any) -> None:
    for parameter in reversed(list(self.parameters())):
        bound = max(self.hidden_size, 1) ** -0.5
        nn.init.uniform_(parameter, -bound, bound)


@conduct("reset_parameters", "bias of zeros", "contract", EVERYWHERE, "contract")
def _(self: Any) -> None:
    parent(self).reset_parameters()
    for name, parameter in self.named_parameters():
        if name.startswith("bias"):
            nn.init.zeros_(parameter)


# In the contract: what is shown ---------------------------------------------------------------------------------------


@conduct("extra_repr", "another repr", "contract", EVERYWHERE, "contract")
def _(self: Any) -> str:
    return f"{parent(self).extra_repr()}, fast=True"


@conduct("forward", "a call leaves its mark on the module", "contract", EVERYWHERE, "contract")
def _(self: Any, input: Any, hx: Any = None) -> Any:
    self.calls = getattr(self, "calls", 0) + 1
    return parent(self).forward(input, hx)


@conduct("forward", "another name for forward's first argument", "contract", EVERYWHERE, "contract")
def _(self: Any, x: Any, hx: Any = None) -> Any:
    return parent(self).forward(x, hx)
