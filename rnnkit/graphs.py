"""CUDA graphs for sequences of any length: blocks of steps are captured once, and replayed along a sequence.

A captured graph has fixed sizes and addresses. Its cost is the copies in and out: of a block's input, its output, and,
with a graph for autograd, of what backward reads. A length is made up of blocks of `block` steps and of powers of two
below that, so a handful of graphs serves all lengths.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.autograd import Function

from . import checks, fast, paths, stack
from .equations import State
from .layers import RNNBase
from .stack import Direction, Results, Stack
from .untraced import untraced

Replay: TypeAlias = Callable[[], None]
DEVICES = ("cuda",)  # where graphs can be captured


def capture(function: Callable[[], None]) -> Replay:
    """Capture what `function` launches on the current device as a CUDA graph and return what replays it."""
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # once ahead: libraries set themselves up at a first call
        function()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=side):
        function()
    return graph.replay


class Block:
    """Some steps of one direction, captured, with the static tensors that a replay reads and writes.

    forward   from `direction` (its input and state) to `output`, `after` and the tape
    backward  from those, `dy` and `dstate`, the gradients of the output and of the state after, to `grads`: that of the
              input is written anew at each replay, those of the weights are added up over replays; that of the state
              before is written to `dstate`, where the replay of the block before finds it
    """

    def __init__(self, direction: Direction, steps: int, needed: Sequence[bool] | None) -> None:
        direction = direction.given([t if t is None else t.detach() for t in direction.tensors])
        input, self.steps = direction.input, steps
        own = input.new_zeros(steps, *input.shape[1:])
        state = tuple(s.clone() for s in direction.state)
        self.direction = direction._replace(input=own, state=state)
        self.after = tuple(torch.zeros_like(s) for s in state)
        self.output = input.new_zeros(steps, input.size(1), state[0].size(1))
        self.tape = None if needed is None else fast.new_tape(self.direction)
        with torch.cuda.device_of(input):  # type: ignore[no-untyped-call]
            self.replay_forward = capture(self._forward)
        if needed is None:
            return
        self.needed = needed
        self.dy, self.dstate = torch.zeros_like(self.output), tuple(torch.zeros_like(s) for s in state)
        tensors = zip(self.direction.tensors, needed, strict=True)
        self.grads = [torch.zeros_like(t) if need and t is not None else None for t, need in tensors]
        with torch.cuda.device_of(input):  # type: ignore[no-untyped-call]
            self.replay_backward = capture(self._backward)

    def _forward(self) -> None:
        output, final = fast.Loop(self.direction).forward(self.tape)
        copy((self.output, *self.after), (output, *final))

    def _backward(self) -> None:
        states, tape = len(self.dstate), self.tape or []
        found = fast.Loop(self.direction).backward(self.output, tape, (self.dy, *self.dstate), self.needed)
        copy(self.dstate, found[-states:])
        copy(self.grads[:1], found[:1])
        for total, grad in zip(self.grads[1:-states], found[1:-states], strict=True):
            if total is not None and grad is not None:
                total.add_(grad)


def copy(into: Sequence[Tensor | None], values: Sequence[Tensor | None]) -> None:
    """Copy those values for which there is a place."""
    for place, value in zip(into, values, strict=True):
        if place is not None and value is not None:
            place.copy_(value)


def pieces(blocks: Sequence[Block], direction: Direction) -> list[tuple[Block, int]]:
    """Cut a direction's steps into blocks, in the order in which it takes them: each with its first step in time."""
    cut, start = [], 0
    for block in blocks:
        while start + block.steps <= direction.length:
            first = direction.length - start - block.steps if direction.reverse else start
            cut.append((block, first))
            start += block.steps
    return cut


def replay(blocks: Sequence[Block], direction: Direction, keep: bool) -> tuple[Tensor, State, list[Tensor]]:
    """Take a direction forward by its blocks. Return its output, its last state and, if kept, all tapes."""
    output = direction.input.new_empty(*direction.input.shape[:2], direction.state[0].size(1))
    state, kept = direction.state, list[Tensor]()
    for block, first in pieces(blocks, direction):
        copy(block.direction.state, state)
        block.direction.input.copy_(direction.input.narrow(0, first, block.steps))
        if keep:
            kept += [s.clone() for s in block.direction.state]
        block.replay_forward()
        output.narrow(0, first, block.steps).copy_(block.output)
        state = block.after
        if keep:
            kept += [t.clone() for t in block.tape or []]
    return output, tuple(s.clone() for s in state), kept


class ReplayThroughTime(Function):
    """A direction by its blocks, with its tensors for autograd to see."""

    @staticmethod
    def forward(ctx: Any, blocks: Sequence[Block], direction: Direction, *tensors: Tensor | None) -> Any:
        output, state, kept = replay(blocks, direction, keep=True)
        ctx.blocks = blocks
        fast.keep(ctx, direction, tensors, output, *kept)
        return output, *state

    @staticmethod
    @untraced
    def backward(ctx: Any, *grads: Tensor | None) -> Any:
        return None, None, *fast.go_back(ctx, partial(replay_back, ctx.blocks), grads, ctx.needs_input_grad[2:])


def replay_back(
    blocks: Sequence[Block],
    direction: Direction,
    kept: Sequence[Tensor],
    grads: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Take a direction back by its blocks. Return the gradients of `direction.tensors`, those that are needed."""
    output, *kept = kept
    states, dy = len(direction.state), grads[0]
    dstate: Sequence[Tensor | None] = grads[1:]
    tensors = zip(direction.tensors, needed, strict=True)
    totals = [torch.zeros_like(t) if need and t is not None else None for t, need in tensors]
    for block in blocks:
        for total in block.grads[1:-states]:
            if total is not None:
                total.zero_()
    for block, first in reversed(pieces(blocks, direction)):
        each = states + len(block.tape or [])
        kept, own = kept[:-each], kept[-each:]
        copy((*block.direction.state, *(block.tape or [])), own)
        block.direction.input.copy_(direction.input.narrow(0, first, block.steps))
        block.output.copy_(output.narrow(0, first, block.steps))
        fill(block.dy, None if dy is None else dy.narrow(0, first, block.steps))
        for place, value in zip(block.dstate, dstate, strict=True):
            fill(place, value)
        block.replay_backward()
        dstate = block.dstate
        if totals[0] is not None and block.grads[0] is not None:
            totals[0].narrow(0, first, block.steps).copy_(block.grads[0])
    for block in blocks:
        for total, grad in zip(totals[1:-states], block.grads[1:-states], strict=True):
            if total is not None and grad is not None:
                total.add_(grad)
    copy(totals[-states:], dstate)
    return totals


def fill(place: Tensor, value: Tensor | None) -> None:
    """Copy a value, or zeros where there is none. Where one block follows itself, the value is in its place."""
    if value is None:
        place.zero_()
    elif value is not place:
        place.copy_(value)


class Graphed:
    """A layer that is replayed; made by `graphed`."""

    def __init__(self, rnn: RNNBase, sample: Tensor, block: int) -> None:
        self.rnn, self.block = rnn, block
        self.blocks: dict[Any, list[Block]] = {}
        self.capturing = True
        try:
            self(sample)
            with torch.no_grad():
                self(sample)
        finally:
            self.capturing = False

    def __call__(self, input: Any, hx: Any = None) -> tuple[Any, Any]:
        """Run the layer as `rnn(input, hx)` does, by replays where its graphs serve, else as it is."""
        form, record = self.rnn.record(input, hx)
        served = form.packed is None and not checks.autocasting(record.input)
        if not served or paths.choose(record).path != "fast":
            return self.rnn._results(form, record)
        return self.rnn._results(form, record, self._run)

    def _run(self, record: Stack) -> Results:
        output, finals = stack.run(record, stack.layer(self.unroll))
        return output.clone() if output.requires_grad else output, finals  # which the caller may write on

    def unroll(self, direction: Direction) -> tuple[Tensor, State]:
        """Take one direction over all of its steps, as `recurrence.unroll` does."""
        graded = fast.recording()
        needed = [graded and t is not None and t.requires_grad for t in direction.tensors]
        weights = tuple(None if w is None else w.data_ptr() for w in direction.weights)
        key = weights, direction.reverse, direction.input.shape[1:], any(needed)
        blocks = self.blocks.get(key)
        if blocks is None and self.capturing:
            states = len(direction.state)
            wanted = [*needed[:-states], *[True] * states] if any(needed) else None
            sizes = [self.block >> k for k in range(self.block.bit_length())]
            blocks = self.blocks[key] = [Block(direction, steps, wanted) for steps in sizes]
        covered = blocks is not None and (
            not any(needed) or all(not need or has for need, has in zip(needed, blocks[0].needed, strict=True))
        )
        if blocks is None or not covered:
            return fast.unroll(direction)
        if not any(needed):
            output, state, _ = replay(blocks, direction, keep=False)
            return output, state
        direction = fast.aliased(direction)
        output, *last = ReplayThroughTime.apply(blocks, direction, *direction.tensors)  # type: ignore[no-untyped-call]
        return output, tuple(last)


def graphed(rnn: RNNBase, sample: Tensor, block: int = 32) -> Graphed:
    """Capture blocks of steps of a layer as CUDA graphs, and return a callable that replays them for any length.

    rnn     a layer of rnnkit on a CUDA device; its parameters are read where they lie, so steps of an optimizer count
    sample  an input (L, N, H_in), or (N, L, H_in) with batch_first, as calls will give it: N, the dtype, and whether
            the input wants a gradient, are fixed by it; L is free
    block   steps in the largest graph, a power of two; default: 32
    returns a callable (input, hx=None) with the results of `rnn`, gradients included; what its graphs don't serve
            (packed input, another N, autocast, moved parameters, transforms of torch.func) runs as `rnn` does

    Nothing is captured later. Raises TypeError for another module, ValueError for a sample that isn't a batch on a CUDA
    device, for a block that is no power of two, and for a layer whose attribute `path` is neither "fast" nor "always
    fast".
    """
    if not isinstance(rnn, RNNBase):
        raise TypeError(f"rnn should be a layer of rnnkit, got: {type(rnn).__name__}")
    if not isinstance(sample, Tensor) or sample.device.type not in DEVICES or sample.dim() != 3:
        raise ValueError("sample should be a batch, a tensor of three dimensions on a CUDA device")
    if rnn.path not in ("fast", "always fast"):
        raise ValueError(f"blocks are captured of the path 'fast', got a layer with the path {rnn.path!r}")
    if isinstance(block, bool) or not isinstance(block, int) or block < 1 or block & (block - 1):
        raise ValueError(f"block should be a power of two, got: {block!r}")
    return Graphed(rnn, sample, block)
