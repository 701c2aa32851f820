"""A GPU as parity sees it. `cpu:0` is the CPU, and stands in for one: all that a device changes is run on it."""

import contextlib
import json
import types
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rnnkit
from parity.__main__ import main
from parity.bench import capabilities, matrix
from parity.checkup.examine import check
from parity.grid import compare
from parity.grid.cases import AUTOCAST_FLOAT16, CLASSES, Case, grid, quick
from parity.grid.compare import TF32_EPS, Yardstick, judge
from parity.grid.run import Precision, draw, observe, onednn, tf32
from parity.grid.verdict import Verdict, exit_code
from parity.report import terminal

STAND_IN = "cpu:0"
PLAIN = Case("LSTM", "float32", False, 2, True, False, True, "", "padded", True)
ON_GPU = replace(PLAIN, device=STAND_IN)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def spoilt(library=nn, *, before=lambda module, input, hx: None, after=lambda output: output):
    """The classes of `library`, with something done before each forward and to each output."""

    def derived(cls):
        def forward(self, input, hx=None):
            before(self, input, hx)
            result = cls.forward(self, input, hx)
            if isinstance(result, torch.Tensor):
                return after(result)
            output, states = result
            packed = isinstance(output, nn.utils.rnn.PackedSequence)
            return output._replace(data=after(output.data)) if packed else after(output), states

        return type(cls.__name__, (cls,), {"forward": forward})

    return types.SimpleNamespace(**{name: derived(getattr(library, name)) for name in CLASSES})


def noisy(size, seed=0):
    """An output that is never the same twice, as cuDNN's need not be."""
    generator = torch.Generator().manual_seed(seed)
    return lambda y: y * (1 + size * torch.randn(y.shape, generator=generator, dtype=torch.float64)).to(y.dtype)


def refuse_strided_states(module, input, hx):
    states = hx if isinstance(hx, tuple) else () if hx is None else (hx,)
    if not all(state.is_contiguous() for state in states):
        raise RuntimeError("rnn: hx is not contiguous")


# The cases ----------------------------------------------------------------------------------------------------------


def test_the_cases_of_a_gpu_are_those_of_the_cpu_with_tf32_in_place_of_onednn():
    here, there = grid(), grid("cuda")
    assert {case.device for case in there} == {"cuda"}
    assert not any(case.onednn for case in there)
    shared = {replace(case, device="cpu") for case in there if not case.tf32 and case.special != AUTOCAST_FLOAT16}
    assert shared == {case for case in here if not case.onednn}
    plain = {replace(case, tf32=False) for case in there if case.tf32}
    assert plain == {c for c in there if c.dtype == "float32" and not c.special.startswith("autocast") and not c.tf32}
    assert len({case.name for case in there}) == len(there)


def test_the_quick_cases_of_a_gpu_have_every_value_of_every_axis():
    there = grid("cuda")
    few = quick(there, strength=2)
    assert len(few) < 1000
    for axis in ("dtype", "tf32", "special", "form", "dropout"):
        assert {getattr(case, axis) for case in few} == {getattr(case, axis) for case in there}


def test_a_case_has_the_same_name_and_numbers_on_each_device():
    assert ON_GPU.name == PLAIN.name
    assert torch.equal(draw(ON_GPU, 0).input, draw(PLAIN, 0).input)


def test_where_masks_cannot_coincide_all_is_dropped():
    case = replace(PLAIN, dropout="dropout_train")
    assert draw(case, 0).arguments["dropout"] == 0.4
    assert draw(replace(case, device="cuda"), 0).arguments["dropout"] == 1.0
    assert draw(replace(case, device="cuda", dropout="dropout_eval"), 0).arguments["dropout"] == 0.4


# Verdicts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", [rnnkit, nn], ids=["rnnkit", "torch.nn"])
def test_a_stand_in_for_a_gpu_finds_what_the_cpu_finds(subject):
    cases = grid(STAND_IN)[7::1000]
    there = [judge(case, subject) for case in cases]
    assert {result.case.device for result in there} == {STAND_IN}
    assert all(result.verdict in (Verdict.BITWISE, Verdict.ROUNDING) for result in there)
    if subject is nn:
        assert {result.verdict for result in there} == {Verdict.BITWISE}


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_what_torch_nn_itself_varies_by_is_not_blamed_on_the_subject(dtype):
    case = replace(ON_GPU, dtype=dtype)
    size = 200 * torch.finfo(getattr(torch, dtype)).eps if dtype != "bfloat16" else 0.02
    unsteady = spoilt(after=noisy(size))
    subject = spoilt(after=noisy(size / 4, seed=1))
    assert judge(case, subject, unsteady).verdict is Verdict.ROUNDING
    assert judge(case, subject, nn).verdict is (Verdict.ROUNDING if dtype == "bfloat16" else Verdict.DIFFERENT)


def test_the_mistakes_of_a_subject_are_found_beside_an_unsteady_torch_nn():
    unsteady = spoilt(after=noisy(1e-6))
    result = judge(ON_GPU, spoilt(after=lambda y: y * 1.001), unsteady)
    assert result.verdict is Verdict.DIFFERENT
    assert "output" in {one.name for one in result.differences if one.verdict is Verdict.DIFFERENT}


def test_what_torch_nn_refuses_on_a_gpu_is_no_fault_of_a_subject_that_runs():
    case = replace(ON_GPU, special="noncontiguous")
    refusing = spoilt(before=refuse_strided_states)

    def only_there(module, input, hx):  # on the CPU, that is for the case whose device is just "cpu", torch.nn runs
        if module.there:
            refuse_strided_states(module, input, hx)

    assert judge(case, rnnkit, refusing).verdict is Verdict.ERROR  # it refuses on the CPU as well: a case of no use
    refusing = built_there(spoilt(before=only_there))
    result = judge(case, rnnkit, refusing)
    assert result.verdict is Verdict.REFUSED
    assert exit_code([result]) == 0
    (refusal,) = [one for one in result.differences if one.verdict is Verdict.REFUSED]
    assert refusal.name.endswith(compare.RUNS)
    assert "not contiguous" in refusal.note
    wrong = judge(case, spoilt(after=lambda y: y * 1.001), refusing)
    assert wrong.verdict is Verdict.DIFFERENT
    both = judge(case, refusing, refusing)
    assert both.verdict is Verdict.REFUSED
    assert both.differences[0].name.endswith(compare.REFUSES_TOO)


def built_there(namespace):
    """Classes whose modules know whether a device was named when they were built, as it is for a GPU alone."""

    def derived(cls):
        def init(self, *args, device=None, **options):
            cls.__init__(self, *args, device=device, **options)
            self.there = device is not None

        return type(cls.__name__, (cls,), {"__init__": init})

    return types.SimpleNamespace(**{name: derived(cls) for name, cls in vars(namespace).items()})


def test_a_subject_that_alone_refuses_is_an_error_on_a_gpu_too():
    case = replace(ON_GPU, special="noncontiguous")
    assert judge(case, spoilt(before=refuse_strided_states)).verdict is Verdict.ERROR


def test_a_backward_that_torch_nn_refuses_is_judged_by_the_cpu():
    """As cuDNN does in eval mode: the forward ran, so a subject's gradients alone would go unseen."""

    class Refuses(torch.autograd.Function):
        @staticmethod
        def forward(ctx, y):
            return y.clone()

        @staticmethod
        def backward(ctx, grad):
            raise RuntimeError("cudnn RNN backward can only be called in training mode")

    def refusing(cls):
        def forward(self, input, hx=None):
            output, states = cls.forward(self, input, hx)
            return (output if self.training or not self.there else Refuses.apply(output)), states

        return type(cls.__name__, (cls,), {"forward": forward})

    reference = types.SimpleNamespace(GRU=refusing(built_there(types.SimpleNamespace(GRU=nn.GRU)).GRU))
    case = replace(ON_GPU, kind="GRU", dropout="dropout_eval")
    assert judge(case, nn, reference).verdict is Verdict.REFUSED
    half = spoilt(after=lambda y: y.detach() + 0 * y)
    assert judge(case, half, reference).verdict is Verdict.DIFFERENT


def test_tf32_is_on_in_the_cases_of_tf32_alone_and_off_again_after():
    seen = []
    watching = spoilt(
        before=lambda module, input, hx: seen.append(
            (input.dtype, torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
        )
    )
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    precision = Precision(torch.float32, torch.float32)
    for case in (ON_GPU, replace(ON_GPU, tf32=True), PLAIN):
        observe(watching, case, draw(case, 0), precision)
    assert [flags for _, *flags in seen] == [[False, False], [True, True], list(before)]
    assert (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32) == before


def test_tf32_is_judged_by_what_torch_nn_loses_to_it():
    """A product in TF32 keeps 10 bits; here the outputs are rounded to that where the switch is on."""

    def rounded(y):
        if not torch.backends.cuda.matmul.allow_tf32:
            return y
        return y * (1 + 2e-3 * torch.randn(y.shape, generator=torch.Generator().manual_seed(len(y)))).to(y.dtype)

    fast = spoilt(after=rounded)
    assert judge(replace(ON_GPU, tf32=True), fast).verdict is Verdict.ROUNDING
    assert judge(replace(ON_GPU, tf32=True), spoilt(after=lambda y: y * 1.3)).verdict is Verdict.DIFFERENT
    with tf32(True):
        assert judge(ON_GPU, fast).verdict is Verdict.BITWISE  # the switch is off in a case without TF32


class ProductsInTF32(TorchDispatchMode):
    """Round what is multiplied in float32 to the 10 bits of TF32, to the nearest, and add in float32 as a GPU does."""

    FIRST = {"mm": 0, "bmm": 0, "mv": 0, "dot": 0, "linear": 0, "matmul": 0, "addmm": 1, "addmv": 1, "baddbmm": 1}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        first = self.FIRST.get(func.overloadpacket.__name__.removesuffix("_"))
        if first is not None:
            args = (*args[:first], *map(self.rounded, args[first : first + 2]), *args[first + 2 :])
        return func(*args, **(kwargs or {}))

    @staticmethod
    def rounded(factor):
        if factor.dtype != torch.float32:
            return factor
        return ((factor.contiguous().view(torch.int32) + 0x1000) & ~0x1FFF).view(torch.float32)


@pytest.fixture
def subjects_in_tf32(monkeypatch):
    """Every product of a subject is in TF32, and none of torch.nn's: as where cuDNN doesn't take it for odd shapes."""

    def observed(namespace, case, drawn, precision):
        with contextlib.nullcontext() if namespace is nn else ProductsInTF32():
            return observe(namespace, case, drawn, precision)

    monkeypatch.setattr(compare, "observe", observed)


#: With a gradient that moves by more than 2 * TF32_EPS * sqrt(depth) when what is multiplied is rounded.
SENSITIVE = (
    "LSTM-proj-float32-tf32-layers3-nobias-batch_first-dropout_train-unbatched",
    "LSTM-proj-float32-tf32-layers2-bias-bidirectional-unbatched-hx",
    "RNN-relu-float32-tf32-layers3-nobias-unbatched",
    "RNN-tanh-float32-tf32-layers1-nobias-bidirectional-dropout_train-unbatched",
    "RNN-tanh-float32-tf32-layers3-nobias-padded-hx",
    "RNNCell-tanh-float32-tf32-bias-unbatched-expanded",
)
IN_TF32 = {case.name: case for case in grid(STAND_IN) if case.tf32}


def test_a_stand_in_for_tf32_keeps_ten_bits_forward_and_backward():
    x = torch.tensor([[1 + 2**-11, 1 - 2**-12]]).requires_grad_()  # halfway to the next of ten bits, which they become
    w = torch.tensor([[1 + 2**-12, 3.0]])
    with ProductsInTF32():
        y = nn.functional.linear(x, w)
        y.backward()
        z = torch.zeros(1, 1).addmm_(x.detach(), w.t())
    assert y.item() == z.item() == (1 + 2**-10) * 1.0 + 1.0 * 3.0
    assert x.grad.tolist() == [[1, 3]]


@pytest.mark.usefixtures("subjects_in_tf32")
@pytest.mark.parametrize("name", SENSITIVE)
def test_a_product_in_tf32_is_not_held_against_a_subject_where_cudnn_takes_none(name):
    result = judge(IN_TF32[name], rnnkit)
    assert result.verdict is Verdict.ROUNDING, result.worst
    if name == SENSITIVE[0]:  # on an H100 it is 0.01, where torch.nn loses 0.0009
        (grad,) = [one for one in result.differences if one.name == "grad of weight_hh_l0"]
        assert 0.008 < grad.error < 0.015


@pytest.mark.usefixtures("subjects_in_tf32")
def test_a_product_in_tf32_is_held_against_a_subject_that_was_not_asked_for_it():
    for name in SENSITIVE:
        assert judge(replace(IN_TF32[name], tf32=False), rnnkit).verdict is Verdict.DIFFERENT, name


@pytest.mark.usefixtures("subjects_in_tf32")
@pytest.mark.parametrize("kind", ["RNN-tanh", "RNN-relu", "LSTM", "LSTM-proj", "GRU"])
def test_an_output_three_hundredths_off_is_found_beside_products_in_tf32(kind):
    case = replace(ON_GPU, kind=kind, tf32=True)
    assert judge(case, rnnkit).verdict is Verdict.ROUNDING
    result = judge(case, spoilt(rnnkit, after=lambda y: y * 1.03))
    assert result.verdict is result.values_verdict is Verdict.DIFFERENT


@pytest.mark.parametrize("name", SENSITIVE)
def test_a_gradient_that_tf32_does_not_explain_is_found_where_one_is_sensitive_to_it(name):
    case = IN_TF32[name]
    drawn, exact = draw(case, 0), Precision(torch.float32, torch.float32)
    theirs = observe(nn, case, drawn, exact)
    measure = Yardstick(case, drawn, nn, theirs)
    for of, tensor in theirs.tensors.items():
        if tensor.any():
            found = measure.compare(of, tensor * 1.15)
            assert found.verdict is Verdict.DIFFERENT, found
            assert found.allowed <= TF32_EPS**0.25
    if name == SENSITIVE[0]:
        of = "grad of weight_hh_l0"
        assert measure.compare(of, theirs.tensors[of] * 1.03).verdict is Verdict.DIFFERENT


def test_autocast_runs_in_both_dtypes_on_the_device():
    case = replace(ON_GPU, kind="LSTM-proj", special="autocast")
    for special, dtype in (("autocast", torch.bfloat16), (AUTOCAST_FLOAT16, torch.float16)):
        case = replace(case, special=special)
        seen = observe(nn, case, draw(case, 0), Precision(torch.float32, torch.float32))
        assert seen.tensors["output"].dtype == dtype
        assert judge(case, rnnkit).verdict in (Verdict.BITWISE, Verdict.ROUNDING)


# Reports ------------------------------------------------------------------------------------------------------------


def test_the_report_counts_what_torch_nn_refuses_by_reason():
    refusal = compare.Difference(f"torch.nn refuses, {compare.RUNS}", Verdict.REFUSED, note="RuntimeError: no")
    cases = [replace(ON_GPU, layers=layers) for layers in (1, 2, 3)]
    results = [compare.Result(cases[0], 5, ()), *(compare.Result(case, 0, (refusal,)) for case in cases[1:])]
    text = terminal.text(results, [], 1.0, "again", 0)
    assert "2 torch.nn refuses, the subject runs: RuntimeError: no" in text
    assert "3 cases: 1 bitwise, 0 within rounding, 0 different, 2 refused by torch.nn on this device." in text
    assert "No difference" in text
    assert "With TF32 off" in text
    data = terminal.as_json(results, [], "rnnkit", 0, 1.0, STAND_IN)
    assert data["counts"]["refused"] == 2
    assert data["environment"]["device"] == STAND_IN


def test_the_command_names_the_device_and_repeats_it(capsys, tmp_path):
    few = ["--device", STAND_IN, "-k", "GRUCell and float32 and keywords", "--json", str(tmp_path / "report.json")]
    assert main(few) == 0
    out = capsys.readouterr().out
    assert f"on {STAND_IN}, seed 0" in out
    assert "float32 TF32" in out
    assert "Contract" not in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["environment"]["device"] == STAND_IN
    assert set(report["counts"]) == {"bitwise", "rounding", "different", "error"}  # no word of refusals: there are none


def test_a_failing_case_is_run_again_on_its_device(capsys, tmp_path, monkeypatch):
    (tmp_path / "wrong_there.py").write_text("from torch.nn import *\nclass GRUCell: pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert main(["--device", STAND_IN, "--subject", "wrong_there", "-k", "GRUCell and float32 and nobias"]) == 1
    assert f"--subject wrong_there --device {STAND_IN} -k GRUCell" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        ["--device", "no_device"],
        ["--device", STAND_IN, "--selftest"],
        ["--device", STAND_IN, "-k", "contract"],
    ],
)
def test_a_device_that_is_not_there_and_what_has_none_are_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err


def test_list_needs_no_gpu(capsys):
    assert main(["--device", "cuda", "--list"]) == 0
    assert capsys.readouterr().out.split() == [case.name for case in grid("cuda")]


def test_a_checkup_runs_where_it_is_told():
    places = set()
    watched = spoilt(rnnkit, before=lambda module, input, hx: places.add(module.place))

    class GRUCell(watched.GRUCell):
        def __init__(self, *args, device=None, **options):
            super().__init__(*args, **options)
            self.place = "moved by the checkup"

        def to(self, *args, **options):
            self.place = args[0]
            return super().to(*args, **options)

    checkup = check(GRUCell, device=STAND_IN, raises=False)
    assert checkup.same, str(checkup)
    assert places - {None} == {STAND_IN}  # but its parameters are read where it was made
    assert {row.case.device for row in checkup.rows} == {STAND_IN}
    assert f"on {STAND_IN}" in checkup.footer


# The matrix ---------------------------------------------------------------------------------------------------------

HERE = [row for row in capabilities.ON_GPU if not row.slow and row.name != "make_graphed_callables"]


@pytest.mark.parametrize("row", HERE, ids=lambda row: row.name)
@pytest.mark.parametrize("library", [nn, rnnkit], ids=["torch.nn", "rnnkit"])
def test_a_capability_of_a_gpu_is_sound(row, library):
    with onednn(False):  # whose LSTM has no float16 on some processors
        assert {capabilities.outcome(row, library, name, STAND_IN)[0] for name in CLASSES} <= {"works", "-"}


def test_dropout_elsewhere_or_at_another_rate_is_wrong():
    (row,) = [row for row in capabilities.ON_GPU if row.name.startswith("dropout")]
    also_last = spoilt(after=lambda y: nn.functional.dropout(y, 0.4))
    assert capabilities.outcome(row, also_last, "GRU")[0] == "wrong"

    class LSTM(nn.LSTM):
        def __init__(self, *args, dropout=0.0, **options):
            super().__init__(*args, dropout=dropout / 2, **options)

    assert capabilities.outcome(row, types.SimpleNamespace(LSTM=LSTM), "LSTM")[0] == "wrong"


def test_the_rows_of_a_gpu_are_in_its_table_alone(capsys):
    for device, there in (("cpu", False), (STAND_IN, True)):
        assert matrix.main(["--list", "--device", device]) == 0
        assert ("70,000 steps" in capsys.readouterr().out) == there
    assert matrix.main(["--quick", "--device", STAND_IN, "-k", "contiguous"]) == 0
    assert f"Both run on {STAND_IN}" in capsys.readouterr().out


def test_what_is_of_the_cpu_alone_is_not_run_on_a_gpu():
    (row,) = [row for row in capabilities.CAPABILITIES if row.name == "quantize_dynamic"]
    assert capabilities.outcome(row, nn, "GRU", "cuda") == ("-", "")


# On a GPU -----------------------------------------------------------------------------------------------------------


@needs_cuda
def test_torch_nn_is_torch_nn_on_a_gpu():
    results = [judge(case, nn) for case in quick(grid("cuda"))[::10]]
    assert [f"{result.case.name}: {result.worst}" for result in results if not result.verdict.passes] == []


@needs_cuda
def test_rnnkit_is_torch_nn_on_a_gpu():
    results = [judge(case, rnnkit) for case in quick(grid("cuda"))[::10]]
    assert [f"{result.case.name}: {result.worst}" for result in results if not result.verdict.passes] == []
