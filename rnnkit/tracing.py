"""What a call computes on its way, for whoever wants to see it: gates and states of every step, by their letters."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from . import recurrence, stack
from .cells import RNNCellBase
from .convert import PAIRS, share
from .equations import Gates, State
from .layers import RNNBase
from .stack import Direction, Results, Stack


class Trace(NamedTuple):
    """The results of a call, and all that was seen on the way.

    output, hx  as the layer returns them: hx is h_n, or (h_n, c_n); of a cell both are its new state
    seen        by layer and direction, "l0", "l0_reverse", "l1", as in the names of the parameters: each gate and each
                state by its letter, as in the equation, (L, N, H) for a batch, (L, H) unbatched. h is what the layer
                hands on, (L, N, H_out) with a projection. Of a cell there is "cell" alone, (N, H) or (H)
    """

    output: Any
    hx: Any
    seen: dict[str, dict[str, Tensor]]


def trace(module: nn.Module, input: Any, hx: Any = None, **same: Any) -> Trace:
    """Run a layer or a cell, and return its results with every step's gates and states.

    module           of rnnkit, or of torch.nn: then the numbers are those of its parameters in rnnkit's equations
    input, hx, same  as for a call of the module
    returns          a Trace: (output, hx, seen). Everything in it can be differentiated

    A step of time t is at place t in both directions. Rows stand in the caller's order; what lies beyond a row's end,
    where rows are packed or have lengths, is 0. The steps are taken by the readable path; a batch with lengths or
    resets is not packed for it, so that dropout draws other masks than the call does. Raises TypeError for any other
    module, and what the call raises for its arguments.

    >>> output, h_n, seen = trace(torch.nn.GRU(3, 4), torch.randn(5, 2, 3))
    >>> z = seen["l0"]["z"]  # (5, 2, 4)
    """
    for native, kit in PAIRS:
        if type(module) is native:
            module = share(module, kit)
    if isinstance(module, RNNCellBase):
        return _of_cell(module, input, hx, **same)
    if not isinstance(module, RNNBase):
        raise TypeError(f"module should be a layer or a cell of rnnkit or torch.nn, got: {type(module).__name__}")
    form, record = module.record(input, hx, **same)
    seen: dict[str, dict[str, Tensor]] = {}

    def rows_as_given(rows: Tensor) -> Tensor:
        """Return (L, N, F), (S, F) or (L, 1, F) as the caller sees a batch, steps first."""
        if form.packed is not None:
            return pad_packed_sequence(PackedSequence(rows, *form.packed[1:]))[0]
        return rows if form.batched else rows.squeeze(1)

    def run(record: Stack) -> Results:
        D = 2 if record.bidirectional else 1

        def unroll(direction: Direction) -> tuple[Tensor, State]:
            name = f"l{len(seen) // D}" + "_reverse" * direction.reverse
            output, final, steps = watched(direction)
            seen[name] = {letter: rows_as_given(rows) for letter, rows in steps.items()}
            return output, final

        output, finals = stack.run(record, stack.layer(unroll))
        return output.clone(), finals  # the form of the call is put upon it in place, and `seen` has it as it is

    output, last = module._results(form, record, run)
    return Trace(output, last, seen)


def watched(direction: Direction) -> tuple[Tensor, State, dict[str, Tensor]]:
    """Unroll a direction by the readable path. Return its results, and each gate and state as rows of all steps."""
    equation, taken = direction.equation, list[tuple[State, Gates]]()
    output, final = recurrence.unroll(direction._replace(equation=equation.watched(taken.append)))
    if not direction.length:  # nothing to join
        H = direction.weights.w_ih.size(0) // len(equation.gates)
        nothing = direction.input.new_zeros(*direction.input.shape[:-1], H)
        letters = *equation.gates, *equation.state[1:]
        return output, final, dict.fromkeys(letters, nothing) | {equation.state[0]: output}
    steps = taken[::-1] if direction.reverse else taken
    rows = {letter: direction.join([gates[k] for _, gates in steps]) for k, letter in enumerate(equation.gates)}
    states = enumerate(equation.state[1:], 1)
    rows |= {letter: direction.join([state[k] for state, _ in steps]) for k, letter in states}
    if direction.ragged:  # rows that are through take steps all the same, and leave them
        there = recurrence.masks(direction).there
        rows = {letter: torch.where(there, each, 0) for letter, each in rows.items()}
    return output, final, rows | {equation.state[0]: output}


def _of_cell(cell: RNNCellBase, input: Tensor, hx: Any, **same: Any) -> Trace:
    """Trace one step."""
    taken: list[tuple[State, Gates]] = []
    state = cell.watched(input, hx, taken.append, **same)
    (_, gates), states = taken[0], state if isinstance(state, tuple) else (state,)
    equation = cell.equation
    shaped = [gate if input.dim() == 2 else gate.squeeze(0) for gate in gates]
    seen = dict(zip(equation.gates, shaped, strict=True)) | dict(zip(equation.state[::-1], states[::-1], strict=True))
    return Trace(state, state, {"cell": seen})
