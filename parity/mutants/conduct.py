"""Mistakes in a module's conduct: what it keeps, writes, warns of and refuses. Diagnosis has no names for them."""

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


def conduct(name: str, level: str, initials: str, look: str = "") -> Callable[[type], type]:
    """A mutant that is a class, derived from `Planted`."""

    def register(mixin: type) -> type:
        CONDUCT.append(Mutant(name, level, initials, look=look, mixin=mixin))
        return mixin

    return register


def numbers(input: Any) -> Tensor:
    """The tensor of an input."""
    tensor: Tensor = input.data if isinstance(input, PackedSequence) else input
    return tensor


# In the numbers, from one call to the next ----------------------------------------------------------------------------


@conduct("states kept from one call to the next", "stack", EVERYWHERE, "second_call")
class KeepsStates(Planted):
    kept: Any = None

    def run(self, input: Any, hx: Any = None) -> Any:
        result = super().run(input, self.kept if hx is None else hx)
        states = result if isinstance(self, nn.RNNCellBase) else result[1]
        self.kept = tuple(s.detach() for s in states) if isinstance(states, tuple) else states.detach()
        return result


@conduct("weights remembered from the first call", "memory", EVERYWHERE, "second_call")
class RemembersWeights(Planted):
    def run(self, input: Any, hx: Any = None) -> Any:
        module: Any = self
        if not hasattr(module, "first"):
            module.first = {name: p.detach().clone() for name, p in module.named_parameters()}

        def remembered(w: Weights, slot: str, example: Example) -> Weights:
            return w._replace(w_hh=w.w_hh + (module.first["weight_hh" + slot] - w.w_hh).detach())

        self.definition = Definition(read=remembered)
        return super().run(input, hx)


@conduct("2-D input taken as a batch of one step", "batch", LAYERS)
class TakesRowsForABatch(Planted):
    def run(self, input: Any, hx: Any = None) -> Any:
        if isinstance(input, Tensor) and input.dim() == 2 and hx is None:
            return super().run(input.unsqueeze(1 if getattr(self, "batch_first", False) else 0))
        return super().run(input, hx)


@conduct("output forgets the order of its sequences", "batch", LAYERS)
class ForgetsOrder(Planted):
    def wrap(self, input: Any, output: Tensor) -> Any:
        wrapped = super().wrap(input, output)
        return PackedSequence(*wrapped[:2]) if isinstance(wrapped, PackedSequence) else wrapped


# In memory ------------------------------------------------------------------------------------------------------------


class Spent(torch.autograd.Function):
    """The identity, whose backward takes the memory of its argument for itself."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        ctx.memory = tensor.detach()
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        ctx.memory.data.zero_()
        return grad


@conduct("the backward overwrites the input", "memory", EVERYWHERE)
class OverwritesInBackward(Planted):
    def run(self, input: Any, hx: Any = None) -> Any:
        if not numbers(input).requires_grad:
            return super().run(input, hx)
        spent = Spent.apply(numbers(input))  # type: ignore[no-untyped-call]
        return super().run(input._replace(data=spent) if isinstance(input, PackedSequence) else spent, hx)


@conduct("input written in place", "memory", EVERYWHERE)
class WritesInput(Planted):
    def forward(self, input: Any, hx: Any = None) -> Any:
        result = super().forward(input, hx)
        with torch.no_grad():
            numbers(input).clamp_(-0.5, 0.5)
        return result


@conduct("a weight normalised in place", "memory", EVERYWHERE)
class NormalisesWeight(Planted):
    def forward(self, input: Any, hx: Any = None) -> Any:
        module: Any = self
        result = super().forward(input, hx)
        with torch.no_grad():
            next(iter(module.parameters())).mul_(0.99)
        return result


@conduct("memory of the input read as if contiguous", "memory", LAYERS, "noncontiguous or expanded")
class ReadsAsContiguous(Planted):
    def run(self, input: Any, hx: Any = None) -> Any:
        if isinstance(input, Tensor) and not input.is_contiguous():
            strides = torch.empty(input.shape, device="meta").stride()
            size = input.untyped_storage().nbytes() // input.itemsize
            input = input.as_strided(input.shape, strides) if size >= input.numel() else input.flip(0)
        return super().run(input, hx)


@conduct("no c of the lower precision under autocast", "dtype", "L", "autocast and LSTM")
class KeepsPrecision(Planted):
    def state_dtype(self, input: Any) -> torch.dtype | None:
        return None


@conduct("the generator seeded anew at each call", "memory", EVERYWHERE)
class SeedsAnew(Planted):
    def check(self, input: Any, hx: Any) -> None:
        super().check(input, hx)
        torch.manual_seed(0)


@conduct("a warning where gradients are off", "memory", EVERYWHERE, "no_grad or inference")
class Warns(Planted):
    def forward(self, input: Any, hx: Any = None) -> Any:
        if not torch.is_grad_enabled():
            warnings.warn("gradients are off", stacklevel=2)
        return super().forward(input, hx)


# In the contract ------------------------------------------------------------------------------------------------------


@conduct("no error for an hx of another size", "contract", EVERYWHERE, "contract")
class TakesAnyHx(Planted):
    def check(self, input: Any, hx: Any) -> None:
        super().check(input, None)


@conduct("another message", "contract", EVERYWHERE, "contract")
class SaysMore(Planted):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except RuntimeError as error:
            raise RuntimeError(f"{error}.") from None


@conduct("ValueError where torch.nn raises RuntimeError", "contract", EVERYWHERE, "contract")
class RaisesValueError(Planted):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except RuntimeError as error:
            raise ValueError(str(error)) from None


@conduct("the caller's hx changed before it is refused", "contract", EVERYWHERE, "contract")
class ClearsHx(Planted):
    def check(self, input: Any, hx: Any) -> None:
        try:
            super().check(input, hx)
        except Exception:
            for h in hx if isinstance(hx, tuple) else (hx,):
                if isinstance(h, Tensor):
                    h.zero_()
            raise


@conduct("no warning for dropout on one layer", "contract", LAYERS)
class IsSilent(Planted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            super().__init__(*args, **kwargs)


@conduct("other initial weights under one seed", "contract", EVERYWHERE, "contract")
class DrawsBackwards(Planted):
    def reset_parameters(self) -> None:
        for parameter in reversed(list(self.parameters())):
            bound = max(self.hidden_size, 1) ** -0.5
            nn.init.uniform_(parameter, -bound, bound)


@conduct("another repr", "contract", EVERYWHERE, "contract")
class ShowsMore(Planted):
    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, fast=True"


@conduct("state_dict keys in another order", "contract", EVERYWHERE, "contract")
class OrdersKeys(Planted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        name = next(iter(self._parameters))
        self._parameters[name] = self._parameters.pop(name)


@conduct("dtype argument ignored", "contract", EVERYWHERE, "contract")
class IgnoresDtype(Planted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "dtype": None})


@conduct("a buffer more", "contract", EVERYWHERE, "contract")
class HasABuffer(Planted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("seen", torch.zeros(()))


@conduct("bias of zeros", "contract", EVERYWHERE, "contract")
class BeginsWithoutBias(Planted):
    def reset_parameters(self) -> None:
        super().reset_parameters()
        for name, parameter in self.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)


@conduct("another default of bias", "contract", EVERYWHERE, "contract")
class DefaultsToNoBias(Planted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **({"bias": False} if len(args) < 3 else {}) | kwargs)


@conduct("any dropout accepted", "contract", LAYERS, "contract")
class TakesAnyDropout(Planted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        wrong = kwargs.get("dropout") in (2, -0.1)
        super().__init__(*args, **(kwargs | {"dropout": 0.5} if wrong else kwargs))


@conduct("any nonlinearity accepted", "contract", "R", "contract")
class TakesAnyNonlinearity(Planted):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        wrong = kwargs.get("nonlinearity") not in (None, "tanh", "relu")
        super().__init__(*args, **(kwargs | {"nonlinearity": "tanh"} if wrong else kwargs))


@conduct("a call leaves its mark on the module", "contract", EVERYWHERE, "contract")
class Counts(Planted):
    def forward(self, input: Any, hx: Any = None) -> Any:
        self.calls = getattr(self, "calls", 0) + 1
        return super().forward(input, hx)


@conduct("another name for forward's first argument", "contract", EVERYWHERE, "contract")
class RenamesInput(Planted):
    def forward(self, x: Any, hx: Any = None) -> Any:
        return super().forward(x, hx)


def refusing(name: str, message: str, raised: type[Exception] | None = None, initials: str = EVERYWHERE) -> None:
    """What torch.nn refuses with this in its message is refused with another exception, or not at all."""

    def check(self: Any, input: Any, hx: Any) -> None:
        try:
            Planted.check(self, input, hx)
        except Exception as error:
            if message not in str(error):
                raise
            if raised is not None:
                raise raised(str(error)) from None

    conduct(name, "contract", initials, "contract")(type("", (Planted,), {"check": check}))


refusing("TypeError for a wrong rank", "D", TypeError)
refusing("no error for an input of another size", "input", None)
