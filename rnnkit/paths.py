"""Which path a call takes, and why.

    readable  the equation in plain torch operations, its loop in Python; autograd records every step
    fast      kernels in place, differentiated by hand
    fused     for what is captured as a CUDA graph: the equation, compiled
    compiled  one operator for torch.compile, a `scan` for torch.export

A batch with lengths or resets is packed first, where these can be read (see `packs`), and takes the path that its
packed rows take. Where they can't, as on a GPU, rows that end take all steps, and are shut once they are through;
resets, and all within a transform, are masks that the readable path computes with.

`RULES` is the whole decision: the first rule that applies names the path. A module's attribute `path` is a wish that
they look at. `explain` asks them for a call.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import checks, compiler, fast, ragged, recurrence
from .stack import Layer, Results, Stack, layer
from .stack import run as run_by


class Choice(NamedTuple):
    """A path, and why a call takes it."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class Rule(NamedTuple):
    """The path of the calls that it applies to, and the reason, in which {steps} and the like are the call's."""

    path: str
    reason: str
    applies: Callable[[Stack], bool]


#: What each path runs a layer by.
LAYERS: dict[str, Layer] = {
    "readable": layer(recurrence.unroll),
    "fast": fast.layer,
    "fused": layer(fast.fused.unroll),
    "compiled": compiler.layer,
}

_functorch = torch._C._functorch
#: What tells of tracers and transforms is torch's own. Should it go, so does the fast path, and nothing else.
TELLING = all(
    hasattr(owner, name)
    for owner, names in {
        torch._C: ("_is_tracing", "_len_torch_dispatch_stack"),
        _functorch: ("peek_interpreter_stack",),
        forward_ad: ("_current_level",),
    }.items()
    for name in names
)


def without_kernel(reason: str, applies: Callable[[Stack], bool]) -> Rule:
    """Return a rule for what no kernel serves. The path "fused" compiles the equation itself, and needs none."""
    return Rule("readable", reason, lambda stack: stack.path != "fused" and applies(stack))


RULES = (
    Rule("compiled", "torch.compile or torch.export traces it", lambda stack: torch.compiler.is_compiling()),
    Rule("readable", "this torch doesn't tell which transforms are active", lambda stack: not TELLING),
    Rule("readable", "torch.jit.trace is active", lambda stack: torch._C._is_tracing()),
    Rule("readable", "the attribute `path` is 'readable'", lambda stack: stack.path == "readable"),
    # Early, for it is a call of few steps that feels each further rule.
    without_kernel("{steps} steps don't pay", lambda stack: fast.has_kernel(stack) and not fast.pays(stack)),
    Rule(
        "readable",
        "the equation has parameters of its own, draws random numbers, or is not recurrent",
        lambda stack: bool(stack.equation.parameters) or stack.equation.random or not stack.equation.recurrent,
    ),
    without_kernel("the equation has no kernel", lambda stack: stack.equation.step not in fast.KERNELS),
    without_kernel("{dtype} has no kernels on {device}", lambda stack: not fast.serves(stack.input)),
    Rule("readable", "the input is empty", lambda stack: stack.input.numel() == 0),
    Rule("readable", "the packed rows have one dimension, which torch refuses", lambda stack: stack.input.dim() < 2),
    without_kernel(
        "only an LSTM's kernel projects",
        lambda stack: stack.weights[0].w_hr is not None and not fast.KERNELS[stack.equation.step].projects,
    ),
    Rule("readable", "a functorch transform is active", lambda stack: _functorch.peek_interpreter_stack() is not None),
    Rule("readable", "forward-mode differentiation is active", lambda stack: forward_ad._current_level >= 0),
    Rule("readable", "a dispatch mode is active", lambda stack: torch._C._len_torch_dispatch_stack() > 0),
    Rule("readable", "autocast is on", lambda stack: checks.autocasting(stack.input)),
    Rule(
        "readable",
        "input, state and weights are not all plain tensors of one dtype and device",
        lambda stack: not fast.plain(stack.tensors, stack.input),
    ),
    Rule(
        "readable",
        "a weight or bias has another size than torch.nn gives it",
        lambda stack: stack.equation.step in fast.KERNELS and not fast.fitting(stack),
    ),
    Rule("readable", "resets live on a device, for which nobody waits", lambda stack: stack.resets is not None),
    Rule(
        "readable",
        "lengths live on a device, with an equation without kernel, or states that are forgotten",
        lambda stack: stack.lengths is not None and not (fast.has_kernel(stack) and stack.checkpoint_every is None),
    ),
    Rule("fused", "the attribute `path` is 'fused'", lambda stack: stack.path == "fused"),
    Rule("fast", "{steps} steps", lambda stack: True),
)


def rule(stack: Stack) -> Rule:
    """Return the rule that decides about a stack here and now."""
    for rule in RULES:
        if rule.applies(stack):
            return rule
    raise AssertionError("the last rule applies to all")


def packs(stack: Stack) -> bool:
    """Say whether a stack has lengths or resets that can be read here and now, so that its rows are packed by them."""
    return (
        stack.ragged
        and not torch.compiler.is_compiling()
        and TELLING
        and not torch._C._is_tracing()
        and all(t is None or (type(t) is Tensor and t.is_cpu) for t in (stack.lengths, stack.resets))
        and _functorch.peek_interpreter_stack() is None
        and torch._C._len_torch_dispatch_stack() == 0
    )


def by_cudnn_in_float16(stack: Stack) -> bool:
    """Say whether torch.nn hands the call to cuDNN, which autocast has run in float16, whatever autocast's dtype."""
    return stack.input.is_cuda and torch.backends.cudnn.enabled and checks.autocasting(stack.input)


def choose(stack: Stack) -> Choice:
    """Return the path that a stack takes here and now, and why."""
    if by_cudnn_in_float16(stack):
        with torch.autocast("cuda", enabled=False):
            return choose(stack.lowered(torch.float16))
    if packs(stack):
        choice = choose(ragged.pack(stack)[0])
        return choice._replace(reason=choice.reason + ", packed by lengths and resets")
    path, reason, _ = rule(stack)
    return Choice(path, reason.format(steps=stack.length, dtype=stack.input.dtype, device=stack.input.device.type))


def run(stack: Stack) -> Results:
    """Run a stack by the path that it takes. The caller may write on the output: backward doesn't read that one."""
    if by_cudnn_in_float16(stack):
        with torch.autocast("cuda", enabled=False):
            return run(stack.lowered(torch.float16))
    if packs(stack):
        packed, sequences = ragged.pack(stack)
        return ragged.unpack(run_by(packed, LAYERS[rule(packed).path]), sequences, stack.bidirectional)
    path = rule(stack).path
    output, finals = run_by(stack, LAYERS[path])
    # Where there are two directions, they have been joined in a copy.
    if path == "fast" and output.requires_grad and not stack.bidirectional:
        output = output.clone()
    return output, finals
