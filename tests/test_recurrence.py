"""What a recurrence is, as theorems about unroll, layer and stack: of values and of every gradient."""

import pytest
import torch
from helpers import H_IN, L, randn
from torch import Tensor

from rnnkit import EQUATIONS
from rnnkit.recurrence import Weights, layer, stack, unroll

H, P, N = 4, 2, 3
LENGTHS = [5, 3, 3]
BATCH_SIZES = [3, 3, 3, 1, 1]
KINDS = ["RNN_TANH", "RNN_RELU", "LSTM", "LSTM-proj", "GRU"]
ATOL = 1e-13  # float64's rounding over a sequence: products of other shapes may add in another order


class Net:
    """Weights and states for a stack, each of them a leaf."""

    def __init__(self, kind: str, layers: int = 1, directions: int = 1, seed: int = 0, bias: bool = True) -> None:
        self.equation = EQUATIONS[kind.removesuffix("-proj")]
        H_out = P if kind.endswith("proj") else H
        rows = len(self.equation.gates) * H
        seeds = iter(range(1000 * seed + 1, 1000 * seed + 999))

        def leaf(*shape: int) -> Tensor:
            return randn(*shape, seed=next(seeds)).requires_grad_()

        self.weights, self.states = [], []
        for k in range(layers):
            for _ in range(directions):
                w_ih, w_hh = leaf(rows, directions * H_out if k else H_IN), leaf(rows, H_out)
                b_ih, b_hh = (leaf(rows), leaf(rows)) if bias else (None, None)
                self.weights.append(Weights(w_ih, w_hh, b_ih, b_hh, leaf(P, H) if H_out == P else None))
                self.states.append(tuple(leaf(N, H if k else H_out) for k in range(len(self.equation.state))))
        self.input = leaf(L, N, H_IN)
        self.leaves = [self.input, *(t for group in (*self.weights, *self.states) for t in group if t is not None)]

    def packed(self) -> Tensor:
        """The rows of the input that are there, under BATCH_SIZES."""
        return torch.cat([step[:size] for step, size in zip(self.input, BATCH_SIZES, strict=True)])


def assert_equal_functions(net: Net, left: list[Tensor], right: list[Tensor]) -> None:
    """Equal values, and under one random loss equal gradients of every leaf."""
    grads = []
    for values in (left, right):
        loss = sum((value * randn(*value.shape, seed=7 + k)).sum() for k, value in enumerate(values))
        grads.append(torch.autograd.grad(loss, net.leaves, materialize_grads=True))
    assert len(left) == len(right)
    for a, b in zip((*left, *grads[0]), (*right, *grads[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=ATOL)
    assert sum(grad.abs().max() > 1e-6 for grad in grads[0]) > len(grads[0]) // 2


@pytest.mark.parametrize("kind", KINDS)
def test_an_unroll_is_its_steps(kind):
    net = Net(kind)
    output, final = unroll(net.equation, net.input, net.states[0], net.weights[0], None, reverse=False)
    (w_ih, w_hh, b_ih, b_hh, w_hr), state, outputs = net.weights[0], net.states[0], []
    for x in net.input:
        state, _ = net.equation.step(x @ w_ih.T + b_ih, state[0] @ w_hh.T + b_hh, state)
        if w_hr is not None:
            state = (state[0] @ w_hr.T, *state[1:])
        outputs.append(state[0])
    assert_equal_functions(net, [output, *final], [torch.stack(outputs), *state])


@pytest.mark.parametrize("kind", KINDS)
def test_reverse_is_flip(kind):
    net = Net(kind)
    output, final = unroll(net.equation, net.input, net.states[0], net.weights[0], None, reverse=True)
    mirror, last = unroll(net.equation, net.input.flip(0), net.states[0], net.weights[0], None, reverse=False)
    assert_equal_functions(net, [output, *final], [mirror.flip(0), *last])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_is_each_sequence_alone(kind, reverse):
    net = Net(kind)
    output, final = unroll(net.equation, net.packed(), net.states[0], net.weights[0], BATCH_SIZES, reverse)
    alone = [
        unroll(
            net.equation,
            net.input[:length, n : n + 1],
            tuple(s[n : n + 1] for s in net.states[0]),
            net.weights[0],
            None,
            reverse,
        )
        for n, length in enumerate(LENGTHS)
    ]
    rows = [alone[n][0][t, 0] for t, size in enumerate(BATCH_SIZES) for n in range(size)]
    lasts = [torch.cat(states) for states in zip(*(state for _, state in alone), strict=True)]
    assert_equal_functions(net, [output, *final], [torch.stack(rows), *lasts])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_batch_is_its_rows_alone(kind, reverse):
    net = Net(kind)
    output, final = unroll(net.equation, net.input, net.states[0], net.weights[0], None, reverse)
    alone = [
        unroll(
            net.equation,
            net.input[:, n : n + 1],
            tuple(s[n : n + 1] for s in net.states[0]),
            net.weights[0],
            None,
            reverse,
        )
        for n in range(N)
    ]
    lasts = [torch.cat(states) for states in zip(*(state for _, state in alone), strict=True)]
    assert_equal_functions(net, [output, *final], [torch.cat([out for out, _ in alone], 1), *lasts])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_packed_with_equal_lengths_is_padded(kind, reverse):
    net = Net(kind)
    padded, final = unroll(net.equation, net.input, net.states[0], net.weights[0], None, reverse)
    packed, last = unroll(net.equation, net.input.flatten(0, 1), net.states[0], net.weights[0], [N] * L, reverse)
    assert_equal_functions(net, [packed, *last], [padded.flatten(0, 1), *final])


@pytest.mark.parametrize("at", range(1, L))
@pytest.mark.parametrize("kind", KINDS)
def test_split_in_time_and_carried_state_is_the_whole(kind, at):
    net = Net(kind)
    whole, final = unroll(net.equation, net.input, net.states[0], net.weights[0], None, reverse=False)
    first, state = unroll(net.equation, net.input[:at], net.states[0], net.weights[0], None, reverse=False)
    second, last = unroll(net.equation, net.input[at:], state, net.weights[0], None, reverse=False)
    assert_equal_functions(net, [whole, *final], [torch.cat([first, second]), *last])


@pytest.mark.parametrize("kind", KINDS)
def test_what_comes_later_is_not_known(kind):
    """The output of a step depends on no later input; in reverse on no earlier one."""
    net = Net(kind)
    for reverse in (False, True):
        output, _ = unroll(net.equation, net.input, net.states[0], net.weights[0], None, reverse)
        for t in range(L):
            (grad,) = torch.autograd.grad(output[t].sum(), net.input, retain_graph=True)
            seen = {step for step in range(L) if grad[step].abs().max() > 0}
            assert seen == set(range(t, L) if reverse else range(t + 1))


@pytest.mark.parametrize("sizes", [None, BATCH_SIZES], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_bidirectional_is_two_directions_concatenated(kind, sizes):
    net = Net(kind, directions=2)
    input = net.input if sizes is None else net.packed()
    output, finals = layer(net.equation, input, net.states, net.weights, sizes)
    there, back = (unroll(net.equation, input, net.states[k], net.weights[k], sizes, reverse=bool(k)) for k in range(2))
    concatenated = [torch.cat([there[0], back[0]], -1), *there[1], *back[1]]
    assert_equal_functions(net, [output, *finals[0], *finals[1]], concatenated)


@pytest.mark.parametrize("directions", [1, 2])
@pytest.mark.parametrize("sizes", [None, BATCH_SIZES], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_three_layers_are_one_after_the_other(kind, sizes, directions):
    net = Net(kind, layers=3, directions=directions)
    input = net.input if sizes is None else net.packed()
    output, finals = stack(net.equation, input, net.states, net.weights, sizes, 0.0, directions == 2)
    above, last = input, []
    for k in range(0, 3 * directions, directions):
        own = slice(k, k + directions)
        above, states = layer(net.equation, above, net.states[own], net.weights[own], sizes)
        last += states
    flat = [s for state in finals for s in state]
    assert_equal_functions(net, [output, *flat], [above, *(s for state in last for s in state)])


@pytest.mark.parametrize("sizes", [None, BATCH_SIZES], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_dropout_is_between_layers_only(kind, sizes):
    """As if torch.dropout stood by hand on what each layer hands to the next, and nowhere else."""
    net = Net(kind, layers=3, directions=2)
    input = net.input if sizes is None else net.packed()
    torch.manual_seed(3)
    output, finals = stack(net.equation, input, net.states, net.weights, sizes, 0.5, bidirectional=True)
    torch.manual_seed(3)
    above, last = input, []
    for k in (0, 2, 4):
        above = torch.dropout(above, 0.5, train=True) if k else above
        above, states = layer(net.equation, above, net.states[k : k + 2], net.weights[k : k + 2], sizes)
        last += states
    flat = [s for state in finals for s in state]
    assert_equal_functions(net, [output, *flat], [above, *(s for state in last for s in state)])
    dry, _ = stack(net.equation, input, net.states, net.weights, sizes, 0.0, bidirectional=True)
    assert not torch.equal(output, dry)


@pytest.mark.parametrize("kind", KINDS)
def test_no_bias_is_a_bias_of_zero(kind):
    net = Net(kind, bias=False)
    zeros = torch.zeros(len(net.equation.gates) * H, dtype=torch.float64)
    with_zeros = net.weights[0]._replace(b_ih=zeros, b_hh=zeros)
    left = unroll(net.equation, net.input, net.states[0], net.weights[0], None, reverse=False)
    right = unroll(net.equation, net.input, net.states[0], with_zeros, None, reverse=False)
    assert_equal_functions(net, [left[0], *left[1]], [right[0], *right[1]])


@pytest.mark.parametrize("sizes", [None, BATCH_SIZES], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_given_is_written(kind, sizes):
    net = Net(kind, layers=2, directions=2)
    input = net.input if sizes is None else net.packed()
    given = [input, *net.leaves]
    copies, versions = [t.detach().clone() for t in given], [t._version for t in given]
    stack(net.equation, input, net.states, net.weights, sizes, 0.5, bidirectional=True)
    assert versions == [t._version for t in given]
    assert all(torch.equal(t, copy) for t, copy in zip(given, copies, strict=True))
