"""The record that every path takes: the layers of one call, and the rows that go through them.

    Weights   the parameters of one direction of one layer
    Stack     the layers, what one call gives them, and how they are to be run
    run       layer by layer, with dropout between them
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional as F

from .equations import Equation, State


class Weights(NamedTuple):
    """The parameters of one direction of one layer, under torch's names and in torch's order."""

    w_ih: Tensor  # (G*H_cell, H_in)
    w_hh: Tensor  # (G*H_cell, H_out)
    b_ih: Tensor | None = None  # (G*H_cell)
    b_hh: Tensor | None = None  # (G*H_cell)
    w_hr: Tensor | None = None  # (H_out, H_cell)


class Stack(NamedTuple):
    """Layers on top of each other with the tensors of one call.

    `states` and `weights` have an entry for each layer and direction, in the order of h_n's first dimension: layer by
    layer, in each the forward direction first. One layer is a stack, too: what runs a layer takes the same record.
    """

    equation: Equation
    input: Tensor  # (L, N, H_in), or packed rows (S, H_in)
    states: Sequence[State]  # h (N, H_out), and for an LSTM c (N, H_cell)
    weights: Sequence[Weights]
    batch_sizes: Tensor | None = None  # of packed rows: step t has the next batch_sizes[t] of them
    bidirectional: bool = False
    dropout: float = 0.0  # on what one layer hands to the next; 0 where the module doesn't train
    path: str = "fast"
    checkpoint_every: int | None = None  # steps

    @property
    def directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @property
    def length(self) -> int:
        """L: the number of steps."""
        return (self.input if self.batch_sizes is None else self.batch_sizes).size(0)

    @property
    def step_sizes(self) -> list[int]:
        """The number of rows of each step: N for all steps of a padded batch."""
        if self.batch_sizes is None:
            return [self.input.size(1)] * self.input.size(0)
        sizes: list[int] = self.batch_sizes.tolist()
        return sizes

    @property
    def tensors(self) -> list[Tensor | None]:
        """All that a gradient may be asked for: the input, and for each layer and direction its Weights and its state."""
        groups = zip(self.weights, self.states, strict=True)
        return [self.input, *(tensor for weights, state in groups for tensor in (*weights, *state))]

    def given(self, tensors: Sequence[Tensor | None]) -> "Stack":
        """Return the same stack with other `tensors`, or with none."""
        fields = len(Weights._fields)
        width = fields + len(self.equation.state)
        groups: list[Any] = [tensors[k : k + width] for k in range(1, len(tensors), width)]
        input: Any = tensors[0] if tensors else None
        states, weights = [tuple(group[fields:]) for group in groups], [Weights(*group[:fields]) for group in groups]
        return self._replace(input=input, states=states, weights=weights)

    def layer(self, k: int, input: Tensor) -> "Stack":
        """Return layer `k` alone, with another input."""
        own = slice(k * self.directions, (k + 1) * self.directions)
        return self._replace(input=input, states=self.states[own], weights=self.weights[own], dropout=0.0)


Results: TypeAlias = tuple[Tensor, list[State]]  # output (L, N, D*H_out) or (S, D*H_out), and the state after all steps
Run: TypeAlias = Callable[[Stack], Results]


def run(stack: Stack, run_layer: Run) -> Results:
    """Run the layers of `stack` on top of each other, each by `run_layer`, with dropout on what one hands to the next."""
    layers = len(stack.weights) // stack.directions
    if layers == 1:
        return named(run_layer, stack.equation, 0)(stack)
    output, finals = stack.input, []
    for k in range(layers):
        if k and stack.dropout:
            output = F.dropout(output, stack.dropout)
        output, final = named(run_layer, stack.equation, k)(stack.layer(k, output))
        finals += final
    return output, finals


def named(run_layer: Run, equation: Equation, k: int) -> Run:
    """Return `run_layer`, which under a profiler goes by the name of layer `k`: lstm_l0, for one."""
    # torch keeps this flag for itself: should it go, so does the name, and nothing else.
    if not getattr(torch.autograd.profiler, "_is_profiler_enabled", False):
        return run_layer
    return torch.profiler.record_function(f"{equation.step.__name__}_l{k}")(run_layer)
