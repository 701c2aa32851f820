"""The fast path beside the readable one, and beside torch.nn."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from rnnkit import bptt, checks, joined, kernels, matmul, recurrence
from rnnkit.equations import EQUATIONS, Equation
from rnnkit.recurrence import Weights

MODES = list(EQUATIONS)
BATCH_SIZES = [4, 4, 3, 1, 1]


def by_onednn(faster, monkeypatch):
    """Say that oneDNN is faster for every size, or for none."""
    for name in ("WORTH_MEASURING", "WORTH_PACKING"):
        monkeypatch.setattr(matmul, name, -1)
    monkeypatch.setattr(matmul, "_onednn_is_faster", lambda *_: faster)


@pytest.fixture(autouse=True)
def _plans_are_made_anew():
    """They are kept by sizes, and tests change what else they depend on."""
    bptt.plans.cache_clear()
    yield
    bptt.plans.cache_clear()


@pytest.fixture(params=["small", "large", "oneDNN", "threads", "many spans"])
def product(request, monkeypatch):
    """Small as the tests are, take them through the ways that large sizes go."""
    if request.param == "oneDNN":
        by_onednn(True, monkeypatch)
    if request.param in ("oneDNN", "threads"):
        by = {"oneDNN": kernels.FAST, "threads": kernels.FEW._replace(tanh=kernels.in_one_piece(torch.tanh))}
        float32 = by[request.param]
        monkeypatch.setattr(bptt, "arithmetic", lambda dtype, *_: float32 if dtype == torch.float32 else kernels.EXACT)
    if request.param == "large":
        for name in ("WORTH_A_COPY", "MANY_ROWS", "LARGE"):
            monkeypatch.setattr(matmul, name, 0)
        monkeypatch.setattr(matmul, "BLOCK", 5)
        monkeypatch.setattr(kernels, "COPIED", 0)
    if request.param == "many spans":
        monkeypatch.setattr(bptt, "ELEMENTS", 5 * 4 * 6)
        monkeypatch.setattr(bptt, "WEIGHTS", 0)


class Case:
    """Arguments of a stack, and every tensor among them."""

    def __init__(
        self, mode="LSTM", layers=1, D=1, bias=True, proj=0, packed=False, dtype=torch.float64, L=5, N=4, H_in=3, H=6
    ):
        torch.manual_seed(1)
        self.equation = EQUATIONS[mode]
        G, H_out = len(self.equation.gates), proj or H
        self.batch_sizes = BATCH_SIZES if packed else None
        self.input = torch.randn((sum(BATCH_SIZES), H_in) if packed else (L, N, H_in), dtype=dtype)
        self.D = D
        self.states, self.weights = [], []
        for k in range(layers * D):
            h, c = torch.randn(N, H_out, dtype=dtype), torch.randn(N, H, dtype=dtype)
            self.states.append((h, c)[: len(self.equation.state)])
            shapes = [(G * H, H_in if k < D else D * H_out), (G * H, H_out), (G * H,), (G * H,), (H_out, H)]
            w_ih, w_hh, b_ih, b_hh, w_hr = (torch.randn(s, dtype=dtype) * H**-0.5 for s in shapes)
            self.weights.append(Weights(w_ih, w_hh, *((b_ih, b_hh) if bias else (None, None)), w_hr if proj else None))
        for tensor in self.tensors:
            tensor.requires_grad_()

    @property
    def tensors(self):
        groups = ((self.input,), *self.states, *self.weights)
        return [tensor for group in groups for tensor in group if tensor is not None]

    def run(self, stack=bptt.stack, dropout=0.0, **options):
        """All outputs, flat."""
        arguments = self.equation, self.input, self.states, self.weights, self.batch_sizes, dropout, self.D == 2
        output, finals = stack(*arguments, **options)
        return [output, *(s for state in finals for s in state)]

    def gradients(self, outputs, of=None):
        """Of a sum in which every element of every output has a weight of its own."""
        generator = torch.Generator().manual_seed(2)
        gs = [torch.randn(y.shape, generator=generator, dtype=torch.float64).to(y.dtype) for y in outputs]
        return torch.autograd.grad(outputs, of or self.tensors, gs, allow_unused=True, materialize_grads=True)


def every_option():
    for mode, layers, D, bias, packed in itertools.product(MODES, (1, 2), (1, 2), (True, False), (False, True)):
        options = {"mode": mode, "layers": layers, "D": D, "bias": bias, "packed": packed}
        yield options
        if mode == "LSTM":
            yield {**options, "proj": 2}


GRID = list(every_option())


def name(options):
    return "-".join(str(v) for v in options.values())


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    return bool((a - b).abs().max() <= tolerance * b.abs().max())


@pytest.mark.parametrize("options", GRID, ids=name)
def test_outputs_are_the_readable_path_s_to_the_bit_in_float64_and_gradients_to_rounding(options, product):
    case = Case(**options)
    fast, readable = case.run(), case.run(recurrence.stack)
    assert all(torch.equal(a, b) for a, b in zip(fast, readable, strict=True))
    for a, b in zip(case.gradients(fast), case.gradients(readable), strict=True):
        assert a.abs().sum() > 0
        assert close(a, b, 1e-13)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(case.run(), readable, strict=True))


@pytest.mark.parametrize("N", [1, 3, 5])
@pytest.mark.parametrize("H", [1, 5, 7, 13])
@pytest.mark.parametrize(
    "options", [options for options in GRID if options["layers"] == 1 and not options["packed"]], ids=name
)
def test_rows_may_begin_anywhere_in_memory(options, N, H):
    case = Case(**options, N=N, H=H, L=7)
    assert all(torch.equal(a, b) for a, b in zip(case.run(), case.run(recurrence.stack), strict=True))


@pytest.mark.parametrize("options", [options for options in GRID if not options["packed"]], ids=name)
def test_the_batch_may_come_first(options):
    case = Case(**options, N=5, H=7, L=7)
    case.input = torch.randn(5, 7, 3, dtype=torch.float64).transpose(0, 1).requires_grad_()
    fast, readable = case.run(), case.run(recurrence.stack)
    assert all(torch.equal(a, b) for a, b in zip(fast, readable, strict=True))
    assert all(close(a, b, 1e-13) for a, b in zip(case.gradients(fast), case.gradients(readable), strict=True))


@pytest.mark.parametrize("options", GRID, ids=name)
def test_float32_is_the_readable_path_to_rounding(options, product):
    case = Case(**options, dtype=torch.float32)
    fast, readable = case.run(), case.run(recurrence.stack)
    assert all(close(a, b, 2e-6) for a, b in zip(fast, readable, strict=True))
    assert all(close(a, b, 5e-6) for a, b in zip(case.gradients(fast), case.gradients(readable), strict=True))
    with torch.no_grad():
        assert all(close(a, b, 2e-6) for a, b in zip(case.run(), readable, strict=True))


@pytest.mark.parametrize("graded", [False, True])
def test_an_rnn_s_igates_become_its_output(graded, monkeypatch):
    case, igates, affine = Case("RNN_TANH", dtype=torch.float32), [], matmul.affine

    def watched(*args):
        product = affine(*args)
        return lambda x, room: (igates.append(product(x, room)), igates[-1])[1]

    monkeypatch.setattr(matmul, "affine", watched)
    with torch.set_grad_enabled(graded):
        output, *_ = case.run()
    assert [t.data_ptr() for t in igates] == [output.data_ptr()]


KINDS = {
    "RNN": lambda H_in, H: nn.RNN(H_in, H),
    "relu": lambda H_in, H: nn.RNN(H_in, H, nonlinearity="relu"),
    "GRU": lambda H_in, H: nn.GRU(H_in, H),
    "LSTM": lambda H_in, H: nn.LSTM(H_in, H),
    "projection": lambda H_in, H: nn.LSTM(H_in, H, proj_size=H // 2),
    "two layers, both directions": lambda H_in, H: nn.LSTM(H_in, H, 2, bidirectional=True),
}


def outputs_and_gradients(module, x, stack=None):
    """By torch.nn, or with its weights by `stack`; all in float64."""
    parameters = [x, *module.parameters()]
    if stack is None:
        output, hx = module(x)
        results = [output, *(hx if isinstance(hx, tuple) else (hx,))]
    else:
        fields = {"weight_ih": "w_ih", "weight_hh": "w_hh", "bias_ih": "b_ih", "bias_hh": "b_hh", "weight_hr": "w_hr"}
        weights = [
            Weights(**{field: getattr(module, n) for n in names for key, field in fields.items() if n.startswith(key)})
            for names in module._all_weights
        ]
        sizes = [module.proj_size or module.hidden_size, module.hidden_size]
        states = len(EQUATIONS[module.mode].state)
        zeros = [tuple(x.new_zeros(x.size(1), size) for size in sizes[:states])] * len(weights)
        output, finals = stack(EQUATIONS[module.mode], x, zeros, weights, None, 0.0, module.bidirectional)
        results = [output, *(torch.stack(s) for s in zip(*finals, strict=True))]
    generator = torch.Generator().manual_seed(3)
    gs = [torch.randn(y.shape, generator=generator).to(y.dtype) for y in results]
    return [t.detach().double() for t in (*results, *torch.autograd.grad(results, parameters, gs))]


def spread_of(errors: Tensor) -> Tensor:
    """Their root mean square: the largest one says little, it being another draw each time."""
    return errors.square().mean().sqrt()


@pytest.mark.parametrize("scale", [1e-3, 1.0])
@pytest.mark.parametrize("size", [(5, 3, 10, 20), (20, 32, 64, 128), (6, 64, 128, 256)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_float32_is_within_twice_torch_nn_s_error_against_float64(kind, size, scale):
    L, N, H_in, H = size
    torch.manual_seed(4)
    module, x = KINDS[kind](H_in, H), (torch.randn(L, N, H_in) * scale).requires_grad_()
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.startswith("bias"):
                parameter.mul_(scale)  # with the small inputs: gates near zero, where tanh has to be right relatively
    fast, theirs = outputs_and_gradients(module, x, bptt.stack), outputs_and_gradients(module, x)
    exact = outputs_and_gradients(module.double(), x.detach().double().requires_grad_())
    for a, b, e in zip(fast, theirs, exact, strict=True):
        assert spread_of(a - e) <= 2 * spread_of(b - e) + 2**-25 * e.abs().max()
        assert (a - e).abs().max() <= 2**-19 * e.abs().max()


def test_tanh_by_expm1_is_right_for_every_kind_of_float():
    a = torch.cat([torch.logspace(-44, 38.5, 200_001), torch.linspace(0, 20, 200_001)]).float()
    a = torch.cat([a, -a])
    exact = a.double().tanh()
    error = (kernels.tanh_by_expm1(a, out=torch.empty_like(a)).double() - exact).abs()
    assert (error <= exact.abs() * 3 * 2**-24 + 2**-149).all()
    odd = torch.tensor([float("inf"), -float("inf"), float("nan"), 0.0, -0.0])
    result = kernels.tanh_by_expm1(odd, out=torch.empty_like(odd))
    assert result[:2].tolist() == [1, -1]
    assert result[2].isnan()
    assert torch.equal(result[3:].signbit(), odd[3:].signbit())


def test_tanh_in_one_piece_is_tanh_wherever_its_rows_stand():
    torch.manual_seed(7)
    for a, out in itertools.product((torch.randn(5, 12)[:, 4:8], torch.randn(5, 4)), repeat=2):
        result = torch.empty(5, 4) if out.is_contiguous() else torch.empty(5, 12)[:, 2:6]
        before = a.clone()
        assert kernels.in_one_piece(torch.tanh)(a, out=result) is result
        assert close(result, before.tanh(), 1e-6)
        assert torch.equal(a, before)
        assert kernels.in_one_piece(torch.tanh)(a, out=a) is a  # in place, too
        assert close(a, before.tanh(), 1e-6)
        a.copy_(before)


@pytest.mark.parametrize("every", [1, 2, 3, 100])
@pytest.mark.parametrize("options", GRID, ids=name)
def test_checkpointing_changes_no_value(options, every):
    case = Case(**options)
    plain, checkpointed = case.run(), case.run(checkpoint_every=every)
    assert all(close(a, b, 1e-14) for a, b in zip(plain, checkpointed, strict=True))
    for a, b in zip(case.gradients(checkpointed), case.gradients(plain), strict=True):
        assert close(a, b, 1e-13)


def saved_bytes(case, **options):
    """In memory of their own: not the arguments, nor the output, which are there anyway."""
    storages = {}

    def pack(tensor):
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = case.run(**options)[0]
    for tensor in (*case.tensors, output):
        storages.pop(tensor.untyped_storage().data_ptr(), None)
    return sum(storages.values())


@pytest.mark.parametrize("mode", ["LSTM", "GRU"])
def test_checkpointing_keeps_one_state_every_so_many_steps(mode):
    L, N, H = 64, 4, 6
    case = Case(mode, L=L, N=N, H=H)
    state = len(case.equation.state) * N * H * 8
    assert saved_bytes(case) >= 4 * L * N * H * 8
    for every in (4, 8, 16):
        assert saved_bytes(case, checkpoint_every=every) == (L // every - 1) * state  # the first is an argument


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("mode", MODES)
def test_rows_that_take_no_step_keep_their_state(mode, D, dtype):
    case = Case(mode, D=D, dtype=dtype, L=12, N=2)
    for k, state in enumerate(case.states):
        case.states[k] = tuple(torch.randn(5, s.size(1), dtype=dtype, requires_grad=True) for s in state)
    case.input, case.batch_sizes = case.input.detach().flatten(0, 1).requires_grad_(), [2] * 12
    fast, readable = case.run(), case.run(recurrence.stack)
    assert all(close(a, b, 1e-5) for a, b in zip(fast, readable, strict=True))
    assert all(torch.equal(a[2:], s[2:]) for a, s in zip(fast[1:], itertools.chain(*case.states), strict=True))
    assert all(close(a, b, 1e-5) for a, b in zip(case.gradients(fast), case.gradients(readable), strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_an_output_left_out_counts_for_nothing(mode):
    case = Case(mode, D=2)
    for k in range(len(case.run())):
        fast, readable = (case.gradients(case.run(stack)[k : k + 1]) for stack in (bptt.stack, recurrence.stack))
        assert all(close(a, b, 1e-13) for a, b in zip(fast, readable, strict=True))


@pytest.mark.parametrize("options", [{"mode": mode} for mode in MODES] + [{"proj": 2}], ids=name)
def test_only_the_gradients_that_are_needed_are_formed(options, monkeypatch):
    formed = []

    def counted(dy):
        return lambda x, total: formed.append(x) or gradient(dy)(x, total)

    gradient, total = matmul.gradient, bptt.Direction.sum
    monkeypatch.setattr(matmul, "gradient", counted)
    monkeypatch.setattr(bptt.Direction, "sum", lambda self, dy: formed.append(dy) or total(self, dy))
    case = Case(**options)
    expected = case.gradients(case.run(recurrence.stack))
    for k, tensor in enumerate(case.tensors):
        for other in case.tensors:
            other.requires_grad_(other is tensor)
        formed.clear()
        (found,) = case.gradients(case.run(), of=[tensor])
        assert close(found, expected[k], 1e-13)
        assert len(formed) == any(tensor is w for w in case.weights[0])


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_gradients_are_those_of_the_readable_path(mode):
    case = Case(mode, D=2, layers=2, packed=True)

    def second(stack):
        gradients = torch.autograd.grad(case.run(stack)[0].sin().sum(), case.tensors, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in gradients), case.tensors)

    for a, b in zip(second(bptt.stack), second(recurrence.stack), strict=True):
        assert a.abs().sum() > 0
        assert close(a, b, 1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_can_be_asked_for_in_batches(mode):
    case = Case(mode, D=2)
    output = case.run()[0]
    rows = torch.eye(output.numel(), dtype=output.dtype)[:3].view(3, *output.shape)
    batched = torch.autograd.grad(output, case.tensors, rows, retain_graph=True, is_grads_batched=True)
    single = [torch.autograd.grad(output, case.tensors, row, retain_graph=True) for row in rows]
    assert all(close(a, torch.stack(b), 1e-13) for a, b in zip(batched, zip(*single, strict=True), strict=True))


def test_backward_computes_in_the_dtype_of_forward_whatever_autocast_says():
    case = Case(dtype=torch.float32)
    outputs = case.run()
    plain = torch.autograd.grad(outputs[0].sum(), case.tensors, retain_graph=True)
    with torch.autocast("cpu"):
        inside = torch.autograd.grad(outputs[0].sum(), case.tensors)
    assert all(torch.equal(a, b) for a, b in zip(inside, plain, strict=True))


def test_a_checkpoint_every_no_steps_is_refused():
    for every in (0, -1):
        with pytest.raises(ValueError, match="checkpoint_every must be None or a positive number"):
            Case().run(checkpoint_every=every)


@pytest.mark.parametrize("options", [{"mode": mode} for mode in MODES if mode != "RNN_RELU"] + [{"proj": 2}], ids=name)
def test_gradients_are_the_differences_of_values(options):
    case = Case(**options, D=2, packed=True, H=3)

    def run(*tensors):
        parts = iter(tensors)
        case.input = next(parts)
        case.states = [tuple(next(parts) for _ in state) for state in case.states]
        case.weights = [Weights(*(None if w is None else next(parts) for w in weights)) for weights in case.weights]
        return tuple(case.run())

    assert torch.autograd.gradcheck(run, case.tensors, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, case.tensors, fast_mode=True)


def test_dropout_makes_the_same_draws():
    case = Case(layers=3, D=2)
    runs = []
    for stack in (bptt.stack, recurrence.stack):
        torch.manual_seed(5)
        runs.append([*case.run(stack, dropout=0.5), torch.rand(1)])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not torch.equal(case.run()[0], runs[0][0])


def test_one_tensor_in_two_places_has_the_sum_of_two_gradients():
    fast, readable = [], []
    for stack, gradients in ((bptt.stack, fast), (recurrence.stack, readable)):
        case = Case(D=2)
        first = case.weights[0]
        first = first._replace(b_hh=first.b_ih)
        case.weights, case.states = [first, first], [case.states[0]] * 2
        unique = list({id(t): t for t in case.tensors}.values())
        outputs = case.run(stack)
        gradients += torch.autograd.grad([y.sum() for y in outputs], unique, retain_graph=True)
        graph = torch.autograd.grad([y.sum() for y in outputs], unique, create_graph=True)
        gradients += torch.autograd.grad([g.sum() for g in graph], unique)
    assert all(close(a, b, 1e-12) for a, b in zip(fast, readable, strict=True))


def test_gradients_share_no_memory():
    case = Case()
    gradients = case.gradients(case.run())
    assert len({g.untyped_storage().data_ptr() for g in gradients}) == len(gradients)


def spread(tensor):
    """The same values, in every second place of each dimension."""
    result = tensor.new_zeros([2 * n for n in tensor.shape])[tuple(slice(None, None, 2) for _ in tensor.shape)]
    return result.copy_(tensor)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_strides_do_not_matter(mode, packed, product):
    case, other = (Case(mode, D=2, packed=packed) for _ in range(2))
    with torch.no_grad():
        other.input = spread(other.input)
        other.states = [tuple(spread(s) for s in state) for state in other.states]
        other.weights = [Weights(*(None if w is None else spread(w) for w in weights)) for weights in other.weights]
    for tensor in other.tensors:
        tensor.requires_grad_()
    ours, theirs = case.run(), other.run()
    assert all(close(a, b, 1e-14) for a, b in zip(ours, theirs, strict=True))
    assert all(close(a, b, 1e-13) for a, b in zip(case.gradients(ours), other.gradients(theirs), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("D", [1, 2])
def test_expanded_states_and_gradients_will_do(D, dtype):
    case = Case(D=D, dtype=dtype)
    rows = [torch.randn(1, 6, dtype=dtype, requires_grad=True) for _ in range(2 * D)]
    case.states = [tuple(row.expand(4, 6) for row in rows[2 * d : 2 * d + 2]) for d in range(D)]
    case.input = torch.randn(1, 1, 3, dtype=dtype, requires_grad=True)
    leaves, case.input = [case.input, *rows], case.input.expand(5, 4, 3)
    fast, readable = (torch.autograd.grad(case.run(stack)[0].sum(), leaves) for stack in (bptt.stack, recurrence.stack))
    assert all(close(a, b, 100 * torch.finfo(dtype).eps) for a, b in zip(fast, readable, strict=True))


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_any_step_keeps_its_state(mode):
    case = Case(mode, D=2, packed=True)
    with torch.no_grad():
        case.states = [tuple(torch.cat((s, s[:2] + 1)).requires_grad_() for s in state) for state in case.states]
    fast, readable = case.run(), case.run(recurrence.stack)
    assert all(torch.equal(a, b) for a, b in zip(fast, readable, strict=True))
    assert all(close(a, b, 1e-13) for a, b in zip(case.gradients(fast), case.gradients(readable), strict=True))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_arguments_are_not_written_and_results_share_no_memory(mode, packed):
    case = Case(mode, layers=2, D=2, packed=packed)
    before = [(t.clone(), t._version) for t in case.tensors]
    outputs = case.run()
    gs = [torch.ones_like(y) for y in outputs]
    torch.autograd.grad(outputs, case.tensors, gs)
    with torch.no_grad():
        outputs += case.run()
    assert all(
        torch.equal(t, value) and t._version == version
        for t, (value, version) in zip(case.tensors, before, strict=True)
    )
    assert all((g == 1).all() for g in gs)
    memories = [t.untyped_storage().data_ptr() for t in (*case.tensors, *outputs)]
    assert len(set(memories)) == len(memories)


def test_backward_twice_is_refused_and_retain_graph_allows_it():
    case = Case()
    loss = sum(y.sum() for y in case.run())
    first = torch.autograd.grad(loss, case.tensors, retain_graph=True)
    second = torch.autograd.grad(loss, case.tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, case.tensors)


def test_changing_a_saved_tensor_in_place_is_noticed():
    for k in range(len(Case().tensors)):
        case = Case()
        outputs = case.run()
        with torch.no_grad():
            case.tensors[k].mul_(2)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            case.gradients(outputs)
    case = Case()
    outputs = case.run()
    state = outputs[0] * 1
    outputs[0].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        torch.autograd.grad(state.sum(), case.tensors)


@pytest.mark.parametrize("every", [None, 2])
def test_hooks_on_saved_tensors_see_all_of_them(every):
    case = Case(proj=2)
    plain = case.gradients(case.run(checkpoint_every=every))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: t.numpy(force=True).copy(), lambda t: torch.from_numpy(t)):
        outputs = case.run(checkpoint_every=every)
    assert all(torch.equal(a, b) for a, b in zip(case.gradients(outputs), plain, strict=True))


def test_equal_calls_give_equal_bits(product):
    case = Case(dtype=torch.float32, D=2, layers=2)
    first, second = case.run(), case.run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(case.gradients(first), case.gradients(second), strict=True))


def test_results_under_no_grad_can_be_trained_on():
    case = Case(packed=True)
    with torch.no_grad():
        output, *state = case.run()
    case.states = [tuple(state)]
    outputs = case.run()
    assert all(g.abs().sum() > 0 for g in torch.autograd.grad(outputs[0].sum() + output.sum(), [case.input]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 1), (7, 16), (33, 48), (100, 512), (650, 1030)])
def test_rows_of_a_large_weight_take_an_odd_number_of_cache_lines(shape, dtype, monkeypatch):
    torch.manual_seed(7)
    w = torch.randn(shape, dtype=dtype)
    assert torch.equal(matmul.transposed(w), w.t())
    assert torch.equal(matmul.for_many(matmul.MANY_ROWS, w), w)
    assert matmul.for_many(matmul.MANY_ROWS - 1, w) is w
    monkeypatch.setattr(matmul, "LARGE", 0)
    assert torch.equal(matmul.transposed(w), w.t())
    for spread in matmul.transposed(w), matmul.transposed(w.t()), matmul.for_many(matmul.MANY_ROWS, w):
        lines, rest = divmod(spread.stride(0) * w.element_size(), 64)
        assert (rest, lines % 2, spread.stride(1)) == (0, 1, 1)


@pytest.mark.parametrize("rows", [1, 8, 64])
def test_both_libraries_form_the_same_products(rows, monkeypatch):
    torch.manual_seed(6)
    x, w, b, dy = torch.randn(rows, 48), torch.randn(32, 48), torch.randn(32), torch.randn(rows, 32)
    product, moved = x @ w.t(), torch.ones(32, rows).t()
    exact = [dy @ w, *[product, product + b] * 6, product + 1, product, product, product + 2]
    exact += [dy.t() @ x, dy.t() @ (2 * x + 1)]
    for onednn in (False, True):
        by_onednn(onednn, monkeypatch)
        results = [matmul.linear(dy, w.t())]
        for total in (1, 10**6):  # the weight as it is, or spread
            for stride in (None, 1, 2):
                for bias in (None, b):
                    out = None if stride is None else torch.empty(rows, 64)[:, : 32 * stride : stride]
                    results.append(matmul.affine(total, rows, w, bias)(x, lambda _, out=out: out))
                    assert out is None or (results[-1] is out) == (rows == 1 or not onednn)
        for times in (1, 100):
            repeated = matmul.repeated(times, rows, w.t())
            out = moved.clone()
            assert repeated.addmm(moved, x, repeated.w, out=out) is out
            assert (repeated.addmm is torch.addmm) == (rows == 1 or not onednn)
            results += [out, repeated.mm(x, repeated.w)] if times == 1 else []
        repeated.mm(x, repeated.w, out=out)
        results += [out, repeated.addmm(out, x, repeated.w, out=out.clone()) - out + 2]
        gradient = matmul.gradient(dy)
        results += [gradient(x, None), gradient(x + 1, gradient(x, None))]
        assert len(results) == len(exact)
        for ours, theirs in zip(results, exact, strict=True):
            assert close(ours.double(), theirs.double(), 2e-6)


@pytest.mark.parametrize("gone", range(3))
def test_without_one_of_the_operators_mkl_forms_all_products(gone, monkeypatch):
    assert all(hasattr(getattr(torch.ops, library), name) for library, name in matmul.OPERATORS)
    library, _ = matmul.OPERATORS[gone]
    monkeypatch.setattr(matmul, "OPERATORS", [*matmul.OPERATORS, (library, "gone")])
    by_onednn(True, monkeypatch)
    matmul._available.cache_clear()
    assert not matmul.by_onednn("added", 10**6, (10**3, 10**3), torch.float32)
    matmul._available.cache_clear()


@pytest.mark.parametrize("use", ["alone", "added", "gradient"])
def test_libraries_are_compared_once_for_a_size(use, monkeypatch):
    faster = matmul._onednn_is_faster
    times = iter([[3.0, 2.0], [2.0, 3.0], [2.0, 1.99]])  # of MKL and of oneDNN, which is to be clearly faster
    measure = matmul.seconds

    def seconds(*functions):
        assert all(time > 0 for time in measure(*functions))
        return next(times)

    monkeypatch.setattr(matmul, "seconds", seconds)
    faster.cache_clear()
    with torch.device("meta"):
        first = [faster(use, 1, rows, 48, 32) for rows in (8, 16, 32)]
    assert first == [True, False, False] == [faster(use, 1, rows, 48, 32) for rows in (8, 16, 32)]
    faster.cache_clear()


def test_deterministic_algorithms_do_not_depend_on_a_time(monkeypatch):
    monkeypatch.setattr(matmul, "WORTH_MEASURING", -1)
    for owner, name in ((matmul, "_onednn_is_faster"), (kernels, "_expm1_pays")):
        monkeypatch.setattr(owner, name, lambda *_: pytest.fail("measured"))
    case = Case(dtype=torch.float32, N=64, H=64)
    torch.use_deterministic_algorithms(True)
    try:
        case.gradients(case.run())
    finally:
        torch.use_deterministic_algorithms(False)
    with pytest.raises(pytest.fail.Exception, match="measured"):
        case.run()


@pytest.fixture
def way(monkeypatch):
    """The function that tells which way a case takes."""
    monkeypatch.setattr(bptt, "stack", lambda *_: "by hand")
    monkeypatch.setattr(recurrence, "stack", lambda *args: "joined" if joined.unroll in args else "readable")

    def way(case, path="always fast"):
        plain = checks.plain(case.tensors, case.input.dtype)
        arguments = case.equation, case.input, case.states, case.weights, case.batch_sizes, 0.0, case.D == 2, None
        return bptt.stack_by(path, plain, *arguments)

    return way


FLOATS = (torch.float32, torch.float64)


def test_by_hand_go_plain_tensors_of_torch_nn_s_equations(way):
    assert all(way(Case(mode, dtype=dtype)) == "by hand" for mode in MODES for dtype in FLOATS)
    assert way(Case(packed=True, proj=2, bias=False)) == "by hand"
    assert all(way(Case(dtype=dtype)) == "readable" for dtype in (torch.float16, torch.bfloat16, torch.complex64))
    own = Case()
    own.equation = Equation(lambda i, h, s: (s, ()), ("i",) * 4, ("h", "c"))
    assert way(own) == "readable"
    empty = Case()
    empty.input = torch.empty(0, 4, 3, dtype=torch.float64)
    assert way(empty) == "readable"
    mixed = Case()
    mixed.states = [tuple(s.float() for s in state) for state in mixed.states]
    assert way(mixed) == "readable"


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_a_few_small_steps_are_joined_where_gates_see_a_sum_and_bits_may_differ(mode, packed, way, monkeypatch):
    monkeypatch.setattr(bptt, "pays", lambda *_: False)
    ways = {dtype: way(Case(mode, dtype=dtype, packed=packed), "fast") for dtype in (*FLOATS, torch.bfloat16)}
    float32 = "readable" if mode == "GRU" else "joined"
    assert ways == {torch.float32: float32, torch.float64: "readable", torch.bfloat16: "readable"}
    assert all(way(Case(mode, dtype=dtype), "readable") == "readable" for dtype in FLOATS)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", MODES)
def test_pays_for_many_steps_and_in_training_for_large_ones(mode, dtype):
    def pays(case, *steps):
        return [bptt.pays(kernels.KERNELS[case.equation.step], n, case.states, case.weights) for n in steps]

    small, large = Case(mode, dtype=dtype), Case(mode, dtype=dtype, N=1024, H=128)
    assert pays(small, 2, 14) == [False, True]
    assert pays(large, 2, 3) == [False, True]
    with torch.no_grad():
        assert pays(large, 2, 3) == [False, False]
        # In float64 an RNN has the same operations either way.
        assert pays(large, 18) == [not (mode.startswith("RNN") and dtype == torch.float64)]


@pytest.mark.parametrize("mode", MODES)
def test_one_or_two_steps_are_torch_nn_s_to_the_bit(mode, way):
    assert all(way(Case(mode, dtype=dtype, L=L, H=1024), "fast") == "readable" for dtype in FLOATS for L in (1, 2))


@pytest.mark.parametrize("path", ["fast", "always fast"])
def test_whoever_looks_into_the_operations_sees_the_readable_path(path, way, monkeypatch):
    monkeypatch.setattr(bptt, "pays", lambda *_: False)
    case = Case(dtype=torch.float32)
    seen = []

    def served():
        seen.append(way(case, path) != "readable")
        return seen[-1]

    assert served()
    with torch.autocast("cpu"):
        assert not served()
    with torch.autograd.forward_ad.dual_level():
        assert not served()
    torch.func.vmap(lambda x: served() or x)(torch.zeros(2))
    torch.func.grad(lambda x: served() or x.sum())(torch.zeros(2))
    torch.jit.trace(lambda x: x * (1 + served()), torch.zeros(2), check_trace=False)
    with FlopCounterMode(display=False):
        assert not served()
    assert not any(seen[1:])

    class Subclass(Tensor):
        pass

    case.input = case.input.detach().as_subclass(Subclass)
    assert not served()
