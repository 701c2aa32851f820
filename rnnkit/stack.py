"""The records that all paths take, and the order in which they run them.

Weights    the parameters of one direction of one layer
Direction  one direction of one layer with the tensors of one call: a path unrolls it over time
Stack      the layers with the tensors of one call
run        layer by layer, with dropout between them
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


class Direction(NamedTuple):
    """One direction of one layer, and what it is to be unrolled over."""

    equation: Equation
    input: Tensor  # (L, N, H_in), or packed rows (S, H_in)
    state: State  # before the step taken first: h (N, H_out), and for an LSTM c (N, H_cell)
    weights: Weights
    batch_sizes: Tensor | None = None  # of packed rows: step t has the next batch_sizes[t] of them
    reverse: bool = False  # from the last step to the first
    path: str = "fast"  # as the module wants it
    checkpoint_every: int | None = None  # steps
    lengths: Tensor | None = None  # (N,): the steps of each row of a padded batch, beyond which its state stays
    resets: Tensor | None = None  # (L, N), booleans: before this step the state becomes reset_to
    reset_to: State = ()  # as `state`
    own: tuple[Tensor, ...] = ()  # the equation's own parameters
    training: bool = False  # which an equation that draws random numbers wants to know
    pair: bool = False  # both directions of a layer side by side, with weights that are zero between them
    joined: tuple[Tensor, ...] = ()  # in a pair, the tensors of both

    @property
    def ragged(self) -> bool:
        """Whether a padded batch has rows that end before L, or begin anew."""
        return self.lengths is not None or self.resets is not None

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

    def split(self, rows: Tensor) -> Sequence[Tensor]:
        """Return the rows of each step, of those (L, N, F) or (S, F) of all steps, in the order of time."""
        return rows.unbind(0) if self.batch_sizes is None else rows.split_with_sizes(self.step_sizes)

    def join(self, steps: Sequence[Tensor]) -> Tensor:
        """Return the rows of all steps, (L, N, F) or (S, F), of those of each."""
        return torch.stack([*steps]) if self.batch_sizes is None else torch.cat([*steps])

    @property
    def tensors(self) -> list[Tensor | None]:
        """All that a gradient may be asked for: input, weights, the equation's own, state, and what it is reset to."""
        return [self.input, *self.weights, *self.own, *self.state, *self.reset_to]

    def given(self, tensors: Sequence[Any]) -> "Direction":
        """Return the same direction with other `tensors`."""
        input, w_ih, w_hh, b_ih, b_hh, w_hr, *others = tensors
        weights = Weights(w_ih, w_hh, b_ih, b_hh, w_hr)
        first = len(self.equation.parameters)
        last = first + len(self.equation.state)
        own, state, reset_to = tuple(others[:first]), tuple(others[first:last]), tuple(others[last:])
        return self._replace(input=input, weights=weights, own=own, state=state, reset_to=reset_to)


class Stack(NamedTuple):
    """Layers on top of each other.

    `states` and `weights` have an entry for each layer and direction, in the order of h_n's first dimension: layer by
    layer, in each the forward direction first.
    """

    equation: Equation
    input: Tensor  # (L, N, H_in), or packed rows (S, H_in)
    states: Sequence[State]
    weights: Sequence[Weights]
    batch_sizes: Tensor | None = None
    bidirectional: bool = False
    dropout: float = 0.0  # on what one layer hands to the next; 0 where the module doesn't train
    path: str = "fast"
    checkpoint_every: int | None = None
    lengths: Tensor | None = None
    resets: Tensor | None = None
    reset_to: Sequence[State] = ()  # an entry for each of `states`
    own: Sequence[tuple[Tensor, ...]] = ()  # likewise; empty where the equation has no parameters of its own
    training: bool = False

    @property
    def ragged(self) -> bool:
        """Whether a padded batch has rows that end before L, or begin anew."""
        return self.lengths is not None or self.resets is not None

    @property
    def length(self) -> int:
        """L: the number of steps."""
        return (self.input if self.batch_sizes is None else self.batch_sizes).size(0)

    @property
    def tensors(self) -> list[Tensor | None]:
        """All tensors that are computed with."""
        groups = *self.weights, *self.own, *self.states, *self.reset_to
        return [self.input, *(tensor for group in groups for tensor in group)]

    def lowered(self, dtype: torch.dtype) -> "Stack":
        """Return the same stack in `dtype`, as autocast lowers tensors: float64 stays."""

        def group(tensors: Any) -> Any:
            return [None if t is None else t if t.dtype == torch.float64 else t.to(dtype) for t in tensors]

        input, *_ = group([self.input])
        others = self.states, self.reset_to, self.own
        states, reset_to, own = ([tuple(group(tensors)) for tensors in each] for each in others)
        weights = [Weights(*group(w)) for w in self.weights]
        return self._replace(input=input, states=states, weights=weights, reset_to=reset_to, own=own)

    def direction(self, k: int, input: Tensor, reverse: bool) -> Direction:
        """Return the entry `k` of states and weights as a direction over `input`."""
        return Direction(
            self.equation,
            input,
            self.states[k],
            self.weights[k],
            self.batch_sizes,
            reverse,
            self.path,
            self.checkpoint_every,
            self.lengths,
            self.resets,
            self.reset_to[k] if self.reset_to else (),
            self.own[k] if self.own else (),
            self.training,
        )


Results: TypeAlias = tuple[Tensor, list[State]]  # output (L, N, D*H_out) or (S, D*H_out), and the state after all steps
Unroll: TypeAlias = Callable[
    [Direction], tuple[Tensor, State]
]  # output (L, N, H_out) or (S, H_out), and its last state
Layer: TypeAlias = Callable[[Sequence[Direction]], Results]


def layer(unroll: Unroll) -> Layer:
    """Return the function that runs a layer, whose directions it takes, by `unroll`."""

    def layer(directions: Sequence[Direction]) -> Results:
        outputs, finals = zip(*map(unroll, directions), strict=True)
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs, -1), [*finals]

    return layer


def run(stack: Stack, layer: Layer) -> Results:
    """Run the layers of `stack` on top of each other, with dropout on what one hands to the next."""
    D = 2 if stack.bidirectional else 1
    output, finals = stack.input, []
    for k in range(0, len(stack.weights), D):
        if k and stack.dropout:
            output = F.dropout(output, stack.dropout)
        directions = [stack.direction(k + d, output, reverse=d == 1) for d in range(D)]
        output, final = named(layer, stack.equation, k // D)(directions)
        finals += final
    return output, finals


def named(layer: Layer, equation: Equation, k: int) -> Layer:
    """Return `layer`, which under a profiler goes by the name of layer `k`: lstm_l0, for one."""
    # torch keeps this flag for itself: should it go, so does the name, and nothing else.
    if not getattr(torch.autograd.profiler, "_is_profiler_enabled", False):
        return layer
    return torch.profiler.record_function(f"{equation.name}_l{k}")(layer)
