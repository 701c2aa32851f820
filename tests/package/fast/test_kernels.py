"""Each kernel against its equation: a few steps of equally many rows, by either arithmetic, gate by gate."""

import math

import pytest
import torch
from cases import assert_alive, assert_near, onednn_is_faster
from helpers import MODES, randn
from torch import Tensor

from rnnkit import EQUATIONS
from rnnkit.fast import DTYPES, KERNELS, kernels, products
from rnnkit.fast.kernels import EXACT, FEW

N, H, P, STEPS = 3, 5, 2, 4
modes = pytest.mark.parametrize("mode", EQUATIONS)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
arithmetics = pytest.mark.parametrize("by", [EXACT, FEW], ids=["exact", "few"])
KINDS = ["tanh", "relu", "LSTM", "LSTM-proj", "GRU"]


class Steps:
    """Igates, a state and weights of some steps on end, and what kernel and equation make of them."""

    def __init__(self, kind: str, dtype: torch.dtype, shift: float = 0.0) -> None:
        self.equation = EQUATIONS[MODES[kind]]
        self.kernel = KERNELS[self.equation.step]
        G, H_out = len(self.equation.gates), P if kind == "LSTM-proj" else H
        self.igates = (randn(STEPS, N, G * H, seed=1) + shift).to(dtype).requires_grad_()
        widths = (H_out, H)[: len(self.equation.state)]
        self.state = tuple(randn(N, w, seed=2 + k).to(dtype).requires_grad_() for k, w in enumerate(widths))
        self.w_hh = randn(G * H, H_out, seed=4).to(dtype)
        self.w_hr = randn(P, H, seed=5).to(dtype) if kind == "LSTM-proj" else None
        self.dy = randn(STEPS, N, H_out, seed=6).to(dtype)
        self.dstate = tuple(randn(N, w, seed=7 + k).to(dtype) for k, w in enumerate(widths))

    def by_equation(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The states, and the gradients of each gate's igates and hgates and of the first state, of all steps."""
        state, outputs, hgates = self.state, [], []
        for x in self.igates:
            hgates.append(state[0] @ self.w_hh.t())
            hgates[-1].retain_grad()
            state, _ = self.equation.step(x, hgates[-1], state)
            state = state if self.w_hr is None else (state[0] @ self.w_hr.t(), *state[1:])
            outputs.append(state[0])
        results = dict(zip(("h", "c"), state, strict=False)) | {"output": torch.stack(outputs)}
        grads = torch.autograd.grad(
            [results["output"], *state], [self.igates, *hgates, *self.state], [self.dy, *self.dstate]
        )
        of_igates, of_hgates, of_state = grads[0], torch.stack(grads[1 : 1 + STEPS]), grads[1 + STEPS :]
        return results, self.named(of_igates, of_hgates, of_state)

    def named(self, of_igates, of_hgates, of_state):
        """Gradients by the letters of what they are of."""
        found = {}
        for source, grad in (("igates", of_igates), ("hgates", of_hgates)):
            parts = grad.reshape(STEPS, N, -1).chunk(len(self.equation.gates), -1)
            found |= {f"d{source}.{gate}": part for gate, part in zip(self.equation.gates, parts, strict=True)}
        return found | {f"d{letter}": grad for letter, grad in zip(self.equation.state, of_state, strict=True)}

    @torch.no_grad()
    def by_kernel(self, by: kernels.Arithmetic) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The same."""
        kernel, rows = self.kernel, STEPS * N
        x = self.igates.detach().clone().flatten(0, 1)
        exact = self.igates.dtype == torch.float64

        def product(w):
            return products.exact(w) if exact else products.repeated(STEPS, N, w.t())

        output = x.new_empty(rows, self.state[0].size(1))
        a = x if kernel.tapeless else torch.empty_like(x)
        tape = [*kernel.tape(a, rows)]
        m = output if self.w_hr is None else x.new_empty(rows, H)
        views = [output, m, *kernel.prepare(x, tape, None, by)]
        steps = zip(*(view.split(N) for view in views), strict=True)
        project = None if self.w_hr is None else product(self.w_hr)
        state = kernel.forward(tuple(s.clone() for s in self.state), steps, product(self.w_hh), project, by)
        results = dict(zip(("h", "c"), (s.clone() for s in state), strict=False))
        results |= {"output": output.clone().view(STEPS, N, -1)}

        after = kernel.after(output, tape)
        before = tuple(torch.cat((s, rows[:-N])) for s, rows in zip(self.state, after, strict=True))
        space = x.new_empty(rows, kernel.derived * H)
        da, views = kernel.derivatives(tape, m, before, space)
        dy = self.dy.clone()
        d, *others = (s.clone() for s in self.dstate)
        d = dy[-1].add_(d) if self.w_hr is not None else d.add_(dy[-1])
        arriving = [*dy[:-1].flip(0), torch.zeros_like(d)] if self.w_hr is None else [*dy[:-1].unbind()[::-1]]
        arriving += [torch.zeros_like(d)] if self.w_hr is not None else []
        back = zip(arriving, *(view.split(N)[::-1] for view in views), strict=True)
        unproject = None if self.w_hr is None else products.repeated(STEPS, N, self.w_hr)
        dstate = kernel.backward((d, *others), back, products.repeated(STEPS, N, self.w_hh), unproject)
        of_hgates = kernel.dhgates(da).clone()
        return results, self.named(kernel.digates(da).clone(), of_hgates, dstate)


@pytest.mark.parametrize("onednn", [False, True], ids=["MKL", "oneDNN"])
@arithmetics
@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_a_kernel_is_its_equation_and_its_derivative_the_equations(kind, dtype, by, onednn, monkeypatch):
    onednn_is_faster(onednn, monkeypatch)
    steps = Steps(kind, dtype)
    states, grads = steps.by_equation()
    found, found_grads = steps.by_kernel(by)
    tolerance = 1e-14 if dtype == torch.float64 else 2e-6
    assert_near(found, states, tolerance, (kind, dtype))
    assert_alive(grads)
    assert_near(found_grads, grads, 10 * tolerance, (kind, dtype))


@pytest.mark.parametrize("kind", KINDS)
def test_exact_arithmetic_is_the_equations_to_the_bit(kind):
    """Of a product in ATen's order, too: the equation's own is taken."""
    steps = Steps(kind, torch.float64)
    states, _ = steps.by_equation()
    found, _ = steps.by_kernel(EXACT)
    state = steps.state
    outputs = []
    for x in steps.igates:
        state, _ = steps.equation.step(x, torch.nn.functional.linear(state[0], steps.w_hh), state)
        state = state if steps.w_hr is None else (torch.nn.functional.linear(state[0], steps.w_hr), *state[1:])
        outputs.append(state[0])
    expected = dict(zip(("h", "c"), state, strict=False)) | {"output": torch.stack(outputs)}
    assert_near(found, expected, 0.0, kind)
    assert list(states) == list(expected)


@pytest.mark.parametrize("shift", [-200.0, -30.0, 30.0, 200.0])
@arithmetics
@dtypes
@pytest.mark.parametrize("kind", KINDS)
def test_saturated_gates_have_the_equations_numbers(kind, dtype, by, shift):
    """Where every sigmoid is 0 or 1, nothing overflows on the way and nothing is lost of what is left."""
    steps = Steps(kind, dtype, shift)
    states, grads = steps.by_equation()
    found, found_grads = steps.by_kernel(by)
    assert all(tensor.isfinite().all() for tensor in (*found.values(), *found_grads.values()))
    tolerance = 1e-14 if dtype == torch.float64 else 2e-6
    assert_near(found, states, tolerance, (kind, dtype, shift))
    allowed = max(grad.abs().max().item() for grad in grads.values()) * 100 * tolerance
    for name, grad in grads.items():
        gap = (found_grads[name] - grad).abs().max().item()
        assert gap <= allowed, f"{kind}, {dtype}, shift {shift}: {name} is off by {gap:.2e}"


@dtypes
def test_relu_has_no_gradient_at_exactly_0(dtype):
    steps = Steps("relu", dtype)
    steps.igates = torch.zeros_like(steps.igates).requires_grad_()
    steps.state = (torch.zeros_like(steps.state[0]).requires_grad_(),)
    for _, grads in (steps.by_equation(), steps.by_kernel(EXACT), steps.by_kernel(FEW)):
        assert not any(grad.any() for grad in grads.values())


@dtypes
@modes
def test_biases_are_the_sum_of_both_where_gates_see_one(mode, dtype):
    """Of a GRU's n the state's bias is behind the reset gate: `prepare` lays it there."""
    kernel, G = KERNELS[EQUATIONS[mode].step], len(EQUATIONS[mode].gates)
    b_ih, b_hh = randn(G * H, seed=1).to(dtype), randn(G * H, seed=2).to(dtype)
    copies = b_ih.clone(), b_hh.clone()
    bias = kernel.bias(b_ih, b_hh)
    rest = b_ih + b_hh - bias
    expected = torch.cat((torch.zeros(2 * H), b_hh[2 * H :])) if mode == "GRU" else torch.zeros(G * H)
    assert_near({"rest": rest}, {"rest": expected.to(dtype)}, 1e-6)
    assert torch.equal(b_ih, copies[0])
    assert torch.equal(b_hh, copies[1])
    assert bias.data_ptr() not in (b_ih.data_ptr(), b_hh.data_ptr())


@modes
def test_every_kernel_knows_from_how_many_steps_it_pays(mode):
    kernel = KERNELS[EQUATIONS[mode].step]
    assert list(kernel.pays_from) == [*DTYPES]
    assert all(3 <= steps <= 16 or steps == math.inf for pair in kernel.pays_from.values() for steps in pair)
    assert all(graded <= 16 for _, graded in kernel.pays_from.values())


def test_there_is_a_kernel_for_each_of_torchs_equations_and_one_projects():
    assert list(KERNELS) == [equation.step for equation in EQUATIONS.values()]
    assert [mode for mode in EQUATIONS if KERNELS[EQUATIONS[mode].step].projects] == ["LSTM"]


@pytest.mark.parametrize("name", ["sigmoid_backward", "tanh_backward", "threshold_backward"])
def test_torchs_derivatives_are_called_without_the_python_around_them_if_torch_has_them_so(name):
    operator = getattr(torch.ops.aten, name).grad_input
    direct = kernels._direct(operator)
    assert callable(direct)
    assert direct is not operator
    assert kernels._direct(abs) is abs
