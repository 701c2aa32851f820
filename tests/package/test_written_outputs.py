"""What a caller writes on an output is his: gradients, and the states, are those of torch.nn whatever he writes."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import H_IN, KINDS, N, as_list, assert_equal_tensors, numbered, pair, randn
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import rnnkit


def _rows_of_two_steps(y: Tensor) -> None:
    y[0:2] = 0


#: By name. Of a packed output they write on its data.
WRITES: dict[str, Callable[[Tensor], Any]] = {
    "nothing": lambda y: None,
    "relu in place": lambda y: F.relu(y, inplace=True),
    "masked_fill_": lambda y: y.masked_fill_(y > 0.1, 0.5),
    "mul_": lambda y: y.mul_(3),
    "y[0:2] = 0": _rows_of_two_steps,
    "copy_": lambda y: y.copy_(y.detach().flip(0)),
    "detach().zero_()": lambda y: y.detach().zero_(),  # of these two autograd knows nothing
    "data.fill_(7)": lambda y: y.data.fill_(7),
}


def example(module: Any, form: str, steps: int) -> tuple[Any, Any, list[Tensor]]:
    """An input, a state, and both as leaves."""
    D, sizes = 1 + module.bidirectional, [module.proj_size or module.hidden_size, module.hidden_size]
    x = randn(steps, N, H_IN, seed=1).requires_grad_()
    states = [randn(D * module.num_layers, N, size, seed=2 + k).requires_grad_() for k, size in enumerate(sizes)]
    states = states[: 1 + (module.mode == "LSTM")]
    hx = tuple(states) if len(states) > 1 else states[0]
    packed = pack_padded_sequence(x, [steps, steps // 2 + 1, 1]) if form == "packed" else x
    return packed, hx, [x, *states]


def seen(module: Any, form: str, steps: int, write: str) -> dict[str, Tensor]:
    """What was written on, the states, and the gradients of all leaves and parameters."""
    x, hx, leaves = example(module, form, steps)
    output, state = module(x, hx)
    y = output.data if isinstance(output, PackedSequence) else output
    WRITES[write](y)
    ends = [y, *as_list(state)]
    loss = sum((end * randn(*end.shape, seed=9 + k)).sum() for k, end in enumerate(ends))
    grads = torch.autograd.grad(loss, [*leaves, *module.parameters()])
    names = ["input", *(f"hx[{k}]" for k in range(len(leaves) - 1)), *(name for name, _ in module.named_parameters())]
    return numbered("result", ends) | {f"grad of {name}": grad for name, grad in zip(names, grads, strict=True)}


@pytest.mark.parametrize("form", ["padded", "packed"])
@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("bidirectional", [False, True], ids=["one direction", "both"])
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_writing_on_an_output_changes_no_gradient_that_torch_nn_would_not_change(
    kind, layers, bidirectional, steps, form, native_kernels
):
    """By default and always fast, in float64: torch.nn allows all of these."""
    native, kit = pair(kind, num_layers=layers, bidirectional=bidirectional)
    for write in WRITES:
        expected = seen(native, form, steps, write)
        for path in ("fast", "always fast"):
            kit.path = path
            found = seen(kit, form, steps, write)
            for name, value in expected.items():
                case = f"{kind}, {layers} layers, {form}, {steps} steps, {write}, path {path!r}"
                tolerance = 1e-12 * max(1.0, value.abs().max().item())
                assert_equal_tensors({name: found[name]}, {name: value}, tolerance, case)


@pytest.mark.parametrize("write", [write for write in WRITES if write != "nothing"])
@pytest.mark.parametrize("steps", [3, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_writing_on_an_output_is_seen_by_who_reads_it_and_by_nobody_else(kind, steps, write):
    """A second output of the same call's graph, a state, has the values that it has when nothing is written."""
    module = pair(kind)[1]
    for module.path in ("fast", "always fast", "readable"):
        for form in ("padded", "packed"):
            with torch.no_grad():
                x, hx, given = example(module, form, steps)
                before = [t.clone() for t in (*given, *module.parameters())]
                output, state = module(x, hx)
                y = output.data if isinstance(output, PackedSequence) else output
                untouched, states = y.clone(), [s.clone() for s in as_list(state)]
                WRITES[write](y)
            case = f"{kind}, {form}, {steps} steps, {write}, path {module.path!r}"
            wrote = not torch.equal(y, untouched)
            assert wrote != (kind == "relu" and write == "relu in place"), f"{case}: wrote {wrote}"
            assert_equal_tensors(numbered("state", as_list(state)), numbered("state", states), 0.0, case)
            after = [*given, *module.parameters()]
            assert_equal_tensors(numbered("argument", after), numbered("argument", before), 0.0, case)


def test_the_fast_path_is_among_those_that_are_written_on():
    module = pair("LSTM")[1]
    ways = {}
    for module.path in ("fast", "always fast"):
        for steps in (3, 40):
            x, hx, _ = example(module, "padded", steps)
            ways[module.path, steps] = rnnkit.explain(module, x, hx).path
    assert ways == {
        ("fast", 3): "readable",
        ("fast", 40): "fast",
        ("always fast", 3): "fast",
        ("always fast", 40): "fast",
    }
