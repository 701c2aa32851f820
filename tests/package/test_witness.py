"""torch.nn and rnnkit alike against the witness in NumPy, gate by gate; and the witness against itself."""

import itertools

import numpy as np
import pytest
import torch
from helpers import (
    CELLS,
    FORMS,
    KINDS,
    LENGTHS,
    MODES,
    H,
    L,
    N,
    arguments,
    arrays,
    as_list,
    named,
    pack,
    pair,
    product,
    randn,
)
from torch.nn.utils.rnn import pad_packed_sequence
from witness import GATES, cell, layers

GRID = product(num_layers=[1, 3], bias=[True, False], bidirectional=[False, True], batch_first=[False, True])
BLOCKS = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
ROUNDING = 1e-14  # of float64, over some hundred operations on numbers near 1


def assert_near(seen, expected, where):
    for k, (got, wanted) in enumerate(zip(seen, expected, strict=True)):
        np.testing.assert_allclose(got.detach().numpy(), wanted, rtol=0, atol=ROUNDING, err_msg=f"{where}, tensor {k}")


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("options", GRID, ids=named)
@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_the_equations_of_each_sequence(kind, options, form, hx):
    lengths = {"unbatched": [L], "padded": [L] * N, "packed": sorted(LENGTHS, reverse=True), "unsorted": LENGTHS}[form]

    def batch_first(sequences):  # (N, L, features)
        if form == "unbatched":
            return sequences.unsqueeze(0)
        return sequences if options["batch_first"] else sequences.transpose(0, 1)

    def batched(states):  # each (D*num_layers, N, features)
        return [state.unsqueeze(1) if form == "unbatched" else state for state in as_list(states)]

    def run(module):
        output, final = module(pack(module, input, form), state)
        if form in ("packed", "unsorted"):
            output, _ = pad_packed_sequence(output, batch_first=module.batch_first)
        return batch_first(output), batched(final)

    native, kit = pair(kind, **options)
    input, state = arguments(native, form, hx)
    results = {"torch.nn": run(native), "rnnkit": run(kit)}
    starts = batched(state) if hx else [torch.zeros_like(s) for s in results["torch.nn"][1]]
    for n, length in enumerate(lengths):
        expected = layers(
            MODES[kind],
            arrays(native),
            batch_first(input)[n, :length].detach().numpy(),
            *(s[:, n].detach().numpy() for s in starts),
            num_layers=options["num_layers"],
            bidirectional=options["bidirectional"],
        )
        for library, (outputs, finals) in results.items():
            assert_near([outputs[n, :length], *(s[:, n] for s in finals)], expected, f"{library}, sequence {n}")


@pytest.mark.parametrize("hx", [True, False], ids=["hx", "zeros"])
@pytest.mark.parametrize("form", FORMS[:2])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", CELLS)
def test_cells_are_the_equations_of_each_row(kind, bias, form, hx):
    for module in pair(kind, cell=True, bias=bias):
        input, state = arguments(module, form, hx)
        final = as_list(module(input, state))
        starts = as_list(state) if hx else [torch.zeros_like(s) for s in final]
        rows = [[t.reshape(-1, t.shape[-1]).detach() for t in ts] for ts in ([input], starts, final)]
        for n in range(len(rows[0][0])):
            x, h_c, seen = ([t[n] for t in ts] for ts in rows)
            expected, _ = cell(MODES[kind], arrays(module), *(t.numpy() for t in (*x, *h_c)))
            assert_near(seen, expected, type(module).__module__)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("kind", "gate"), [(kind, gate) for kind in CELLS for gate in GATES[MODES[kind]]])
def test_each_gate_has_its_own_rows(kind, gate, block):
    """Doubling one gate's block moves torch.nn, rnnkit and the witness alike, and moves them."""
    k = GATES[MODES[kind]].index(gate)
    for module in pair(kind, cell=True):
        input, state = arguments(module, "unbatched")
        before = as_list(module(input, state))
        with torch.no_grad():
            getattr(module, block)[k * H : (k + 1) * H] *= 2
        after = as_list(module(input, state))
        moved = max((a - b).abs().max() for a, b in zip(after, before, strict=True))
        assert moved > 1e-3, f"{type(module).__module__} ignores {block} of {gate}"
        expected, _ = cell(MODES[kind], arrays(module), *(t.detach().numpy() for t in (input, *as_list(state))))
        assert_near(after, expected, type(module).__module__)


@pytest.mark.parametrize(
    ("kind", "order"),
    [
        (kind, order)
        for kind in ("LSTM", "GRU")
        for order in itertools.permutations(GATES[kind])
        if order != tuple(GATES[kind])
    ],
    ids=lambda value: "".join(value),
)
def test_the_witness_notices_swapped_gates(kind, order):
    """Weights whose gates stand in another order, in any of the four blocks, give something else."""
    for module in pair(kind, cell=True):
        input, state = arguments(module, "unbatched")
        seen = as_list(module(input, state))
        rows = np.concatenate([np.arange(H) + GATES[kind].index(gate) * H for gate in order])
        for block in BLOCKS:
            swapped = arrays(module)
            swapped[block] = swapped[block][rows]
            wrong, _ = cell(kind, swapped, *(t.detach().numpy() for t in (input, *as_list(state))))
            assert max(np.abs(a.detach().numpy() - b).max() for a, b in zip(seen, wrong, strict=True)) > 1e-3


@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_the_equations_derivatives(kind, bidirectional):
    """Autograd's gradient of input, states and every parameter is the derivative by complex step, which is exact."""
    options = {"num_layers": 2, "bidirectional": bidirectional}
    native, kit = pair(kind, **options)
    input, state = arguments(native, "unbatched", steps=3)
    start = dict(zip(("h_0", "c_0"), as_list(state), strict=False))
    values = {name: t.detach().numpy() for name, t in ({"input": input} | start).items()} | arrays(native)
    weightings = []  # of the outputs, to make a loss

    def derivative(name, index, step=1e-100):
        moved = values | {name: values[name].astype(complex)}
        moved[name][index] += 1j * step
        outputs = layers(MODES[kind], moved, moved["input"], *(moved[name] for name in start), **options)
        return sum((w * t).sum() for w, t in zip(weightings, outputs, strict=True)).imag / step

    expected = {}
    for module in (native, kit):
        output, final = module(input, state)
        outputs = [output, *as_list(final)]
        weightings = [randn(*t.shape, seed=50 + k).numpy() for k, t in enumerate(outputs)]
        leaves = {"input": input} | start | dict(module.named_parameters())
        loss = sum((torch.from_numpy(w) * t).sum() for w, t in zip(weightings, outputs, strict=True))
        grads = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
        for name, grad in grads.items():
            if name not in expected:
                expected[name] = [derivative(name, index) for index in np.ndindex(grad.shape)]
                assert np.abs(expected[name]).max() > 1e-3, f"no derivative by {name}"
            where = f"{type(module).__module__}, {name}"
            np.testing.assert_allclose(grad.numpy().ravel(), expected[name], rtol=0, atol=1e-13, err_msg=where)
