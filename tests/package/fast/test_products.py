"""Who forms a product, and that whoever does, it is that product."""

import pytest
import torch
from cases import FAST, assert_near, gradients, leaves, make_stack, onednn_is_faster, results, threads
from helpers import KINDS

from rnnkit import fast
from rnnkit.fast import products

USES = ["alone", "added", "gradient"]


@pytest.fixture
def measured(monkeypatch):
    """The pairs of times that are taken. What was known before is forgotten, and after."""
    seen, measure = [], products.seconds
    monkeypatch.setattr(products, "seconds", lambda function: seen.append(function) or measure(function))
    products._onednn_is_faster.cache_clear()
    yield seen
    products._onednn_is_faster.cache_clear()


# Choice by time -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("use", USES)
def test_onednn_is_to_be_clearly_faster(use, monkeypatch):
    """Each library is tried, and each choice has its own."""
    functions, times = [], iter([2.0, 3.0, 3.0, 2.0, 1.99, 2.0])  # oneDNN's and MKL's, in turns
    seconds = products.seconds

    def of(function):
        functions.append(function)
        assert seconds(function) > 0
        return next(times)

    monkeypatch.setattr(products, "seconds", of)
    measure = products._onednn_is_faster.__wrapped__
    with torch.device("meta"):  # whatever the caller's default
        assert [measure(use, 1, rows, 48, 32) for rows in (8, 16, 32)] == [True, False, False]
    assert len(functions) == 6


@pytest.mark.parametrize("use", USES)
def test_each_size_is_measured_once_and_a_change_of_any_is_another(use, measured):
    key = (use, 1, 8, 48, 32)
    changes = [("gradient" if use == "alone" else "alone", *key[1:]), (use, 2, *key[2:]), (use, 1, 16, 48, 32)]
    changes += [(use, 1, 8, 32, 32), (use, 1, 8, 48, 48), (use, 1, 8, 32, 48)]
    for k, asked in enumerate((key, *changes), start=1):
        products._onednn_is_faster(*asked)
        assert len(measured) == 2 * k, f"{asked} is taken for another size"
    for asked in (key, *changes):
        products._onednn_is_faster(*asked)
    assert len(measured) == 2 * (1 + len(changes)), "a size is measured twice"


def test_what_is_known_by_sizes_is_bounded():
    for cached in (products._onednn_is_faster, products._available):
        assert 0 < cached.cache_info().maxsize <= 1024


def asked(monkeypatch, **options):
    """With which key by_onednn asks, if it does."""
    keys = []
    monkeypatch.setattr(products, "_onednn_is_faster", lambda *key: keys.append(key) or True)
    arguments = {"use": "added", "rows": 64, "shape": (512, 256), "dtype": torch.float32} | options
    assert products.by_onednn(**arguments) == bool(keys)
    return keys


@pytest.mark.skipif(not products._available(), reason="this torch has no oneDNN")
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("use", USES)
def test_sizes_and_threads_are_the_key_and_rows_count_by_powers_of_two(use, count, monkeypatch):
    with threads(count):
        for rows, stands_for in ((5, 8), (8, 8), (9, 16), (512, 512), (513, 512), (10**6, 512)):
            assert asked(monkeypatch, use=use, rows=rows) == [(use, count, stands_for, 512, 256)]
        assert asked(monkeypatch, use=use, shape=(256, 512)) == [(use, count, 64, 256, 512)]


@pytest.mark.skipif(not products._available(), reason="this torch has no oneDNN")
def test_small_products_single_rows_and_other_dtypes_are_mkls_unasked(monkeypatch):
    rows = products.WORTH_MEASURING // (512 * 256)
    assert asked(monkeypatch, rows=rows) == []
    assert asked(monkeypatch, rows=rows + 1) != []
    assert asked(monkeypatch, rows=1, shape=(2**11, 2**11)) == []
    assert asked(monkeypatch, dtype=torch.float64) == []
    with torch.backends.mkldnn.flags(enabled=False):
        assert asked(monkeypatch) == []


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("use", USES)
def test_deterministic_algorithms_ask_for_no_time(use, monkeypatch):
    assert asked(monkeypatch, use=use) == []


def run_all(kind, D, packed):
    """Everything that a layer of this size forms a product for."""
    stack = make_stack(kind, D=D, packed=packed, dtype=torch.float32, L=20, N=64, H_in=96, H=96)
    for every in (None, 3):
        stack = stack._replace(checkpoint_every=every)
        gradients(results(stack, FAST), leaves(stack))
    with torch.no_grad():
        results(stack, FAST)


@pytest.mark.parametrize("packed", [False, [64] * 9 + [33] * 8], ids=["padded", "packed"])
@pytest.mark.parametrize("D", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deterministic_layer_reads_no_clock_and_else_each_use_is_measured(kind, D, packed, monkeypatch):
    """At sizes of which every use would be measured."""
    monkeypatch.setattr(products, "seconds", lambda *_: pytest.fail("a time was taken"))
    keys = []
    torch.use_deterministic_algorithms(True)
    try:
        run_all(kind, D, packed)
    finally:
        torch.use_deterministic_algorithms(False)
    if products._available():
        monkeypatch.setattr(products, "_onednn_is_faster", lambda *key: keys.append(key) or False)
        run_all(kind, D, packed)
        assert {use for use, *_ in keys} == set(USES)


@pytest.mark.parametrize("gone", range(len(products.OPERATORS)))
def test_without_one_of_the_operators_mkl_forms_all_products(gone, monkeypatch):
    assert all(hasattr(getattr(torch.ops, library), name) for library, name in products.OPERATORS)
    library, _ = products.OPERATORS[gone]
    monkeypatch.setattr(products, "OPERATORS", [*products.OPERATORS, (library, "gone")])
    onednn_is_faster(True, monkeypatch)
    products._available.cache_clear()
    assert not products.by_onednn("added", 10**6, (10**3, 10**3), torch.float32)
    products._available.cache_clear()


# The products -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("library", ["MKL", "oneDNN"])
@pytest.mark.parametrize("rows", [1, 2, 8, 64])
def test_either_library_forms_the_same_products(rows, library, count, monkeypatch):
    torch.manual_seed(6)
    onednn_is_faster(library == "oneDNN", monkeypatch)
    by_onednn = library == "oneDNN" and rows > 1 and products._available()
    x, w, b, dy = torch.randn(rows, 48), torch.randn(32, 48), torch.randn(32), torch.randn(rows, 32)
    product, wide = (x.double() @ w.double().t()).float(), (dy.double().t() @ x.double()).float()
    found, expected = {}, {}
    with threads(count):
        for total in (1, 10**6):  # the weight as it is, or in odd lines
            for stride in (1, 2):
                for bias in (None, b):
                    out = torch.empty(rows, 64)[:, : 32 * stride : stride]
                    y = products.affine(total, rows, w, bias)(x, out)
                    assert (y is out) == (not by_onednn)
                    name = f"affine of {total}, stride {stride}, {'no ' * (bias is None)}bias"
                    found[name], expected[name] = y, product if bias is None else product + b
        for times in (1, 4, 16, 100):
            for moved in (torch.ones(32, rows).t(), torch.ones(rows, 32)):
                repeated = products.repeated(times, rows, w.t())
                assert (repeated.addmm is torch.addmm) == (not by_onednn)
                out = moved.clone()
                assert repeated.addmm(moved, x, repeated.w, out=out) is out
                own = f"repeated {times} times, {moved.stride()}"
                found[f"{own}, added"], expected[f"{own}, added"] = out, product + 1
                found[f"{own}, in place"] = repeated.addmm(out, x, repeated.w, out=out.clone()) - out
                found[f"{own}, alone"] = repeated.mm(x, repeated.w)
                found[f"{own}, out"] = repeated.mm(x, repeated.w, out=torch.empty_like(moved))
                expected |= dict.fromkeys((f"{own}, in place", f"{own}, alone", f"{own}, out"), product)
        gradient = products.gradient(dy)
        found["gradient"], expected["gradient"] = gradient(x, None), wide
        found["summed"] = gradient(x + 1, gradient(x, None))
        expected["summed"] = 2 * wide + dy.sum(0).unsqueeze(1)
    assert_near(found, {name: expected[name] for name in found}, 4e-6, (rows, library, count))


@pytest.mark.parametrize("bias", [False, True])
def test_an_exact_product_is_atens_to_the_bit_wherever_its_factor_begins(bias):
    torch.manual_seed(8)
    w, b = torch.randn(12, 7).double(), torch.randn(12).double() if bias else None
    product = products.exact(w, b)
    for start in range(5):
        x, a = torch.randn(3 + start, 7).double()[start:], torch.randn(3, 12).double()
        linear = torch.nn.functional.linear(x.clone(), w, b)
        found = {"mm": product.mm(x, product.w, out=a.clone()), "addmm": product.addmm(a, x, product.w, out=a.clone())}
        assert_near(found, {"mm": linear, "addmm": linear + a}, 0.0, f"start {start}")


# How a weight lies in memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", fast.DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (7, 16), (33, 48), (100, 512), (650, 1030)], ids=str)
def test_rows_of_a_large_weight_take_an_odd_number_of_cache_lines(shape, dtype, monkeypatch):
    torch.manual_seed(7)
    w = torch.randn(shape, dtype=dtype)
    assert torch.equal(products.transposed(w), w.t())
    monkeypatch.setattr(products, "LARGE", 0)
    for spread in products.transposed(w), products.transposed(w.t()).t(), products.new_rows(w, *shape):
        lines, rest = divmod(max(spread.stride()) * w.element_size(), 64)
        assert (rest, lines % 2, min(spread.stride())) == (0, 1, 1)
    assert_near({"transposed": products.transposed(w)}, {"transposed": w.t()}, 0.0, shape)
    assert products.new_rows(w, *shape).shape == w.shape
