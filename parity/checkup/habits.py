"""What a module does from call to call, in training, over long sequences, at other sizes and on unusual numbers.

None of it shows in one forward and backward at a small size. Each function yields what it found; what raises is not
offered, which is said elsewhere.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..grid.cases import Case
from ..grid.run import Draw, Sizes, build, draw, observe
from .diagnose import Doctor
from .probes import BASE, EXACT, Probe, after_input, example_of, values
from .search import Finding
from .subjects import MappedSubject
from .substitution import CLEAR
from .traces import DRAWN, KEPT

NEAR = 1e-9
TRUE = 1e-7  # of the largest number: more than rounding does to any of these
SINGLE = 1e-4  # more than float32 does, where something is known to pass through it


def habits(doctor: Doctor) -> Iterator[Finding]:
    """Look at everything, as long as the subject returns its states."""
    by_numbers = any(one.probe.startswith("large") for one in doctor.diagnosis.unexplained)
    of_numbers = () if by_numbers else (modes, large, sizes)  # which would take that for a matter of sizes
    long = (reach,) if by_numbers else (late, reach)  # or of time
    everything = (shared, stale, overwritten, *of_numbers, rows, blanks, layouts, dtypes, masks, *long)
    for look in (shared,) if doctor.extras_matter else everything:
        doctor.progress(look.__name__)
        found = False
        with contextlib.suppress(Exception):  # whatever a subject raises here is said where it is asked for
            for finding in look(doctor):
                yield finding
                found = True
        if found and look in (overwritten, modes, late):
            return  # what it does then shows in all that follows


# Help -----------------------------------------------------------------------------------------------------------------


def made(doctor: Doctor, case: Case, drawn: Draw, training: bool = True) -> nn.Module:
    return build(doctor.subject.namespace, case, drawn, EXACT).train(training)


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """Seed torch, then return the module."""
    torch.default_generator.manual_seed(seed)
    return module


def called(module: nn.Module, drawn: Draw, input: Tensor | None = None) -> list[Tensor]:
    """Call it on fresh copies of the numbers; return all tensors of its result."""
    hx = tuple(state.clone() for state in drawn.hx)
    return shown(module, (drawn.input if input is None else input).clone(), hx)


def shown(module: nn.Module, input: Tensor, states: tuple[Tensor, ...]) -> list[Tensor]:
    """Call it on these tensors themselves; return all tensors of its result."""
    return [leaf for leaf in tree_leaves(module(input, *after_input(states))) if isinstance(leaf, Tensor)]


def far(a: list[Tensor], b: list[Tensor], most: float = NEAR) -> bool:
    return any(not torch.allclose(x, y, rtol=0, atol=most, equal_nan=True) for x, y in zip(a, b, strict=True))


def allowed(doctor: Doctor, usual: float) -> float:
    """Say by how much numbers may differ; by more than usual where a narrower dtype was found to take part."""
    return usual if doctor.exact else SINGLE


def wrong(doctor: Doctor, case: Case, drawn: Draw) -> str:
    """Name the result that differs from torch.nn's, or from what was found out so far; "" if none does."""
    ours = observe(doctor.subject.namespace, case, drawn, EXACT)
    theirs = doctor.base.run(example_of(case, drawn, gradients=bool(drawn.cotangents)))
    for name, expected in theirs.items():
        seen = ours.tensors.get(name)
        if seen is None and name.startswith("grad of") and not expected.any():
            continue
        if ours.tensors and not ours.error and (seen is None or seen.shape != expected.shape):
            return name
        scale = expected[expected.isfinite()].abs().max().item() if expected.isfinite().any() else 1.0
        most = allowed(doctor, TRUE) * max(scale, 1e-3)
        if seen is not None and not torch.allclose(seen, expected, rtol=0, atol=most, equal_nan=True):
            return name
    return ""


def bare(drawn: Draw) -> Draw:
    """Return the problem without a backward."""
    return replace(drawn, cotangents={})


# From call to call ----------------------------------------------------------------------------------------------------


def stale(doctor: Doctor) -> Iterator[Finding]:
    """Update the weights between two calls. Where the second goes on from the first, it says nothing."""
    if {KEPT, DRAWN} & set(doctor.diagnosis.names):
        return
    case, drawn = doctor.draw(BASE, 0)
    for training, grad in itertools.product((True, False), (True, False)):
        with torch.set_grad_enabled(grad):
            module = made(doctor, case, drawn, training)
            called(module, drawn)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(0.8)
            second = called(module, drawn)
            lighter = {name: 0.8 * weight for name, weight in drawn.weights.items()}
            anew = called(made(doctor, case, replace(drawn, weights=lighter), training), drawn)
        if far(second, anew):
            mode = f"{'in training' if training else 'in eval'}, {'with' if grad else 'without'} gradients"
            yield Finding(
                "weights are cached: an update between two calls goes unseen", "",
                "compute from the parameters at each call, or forget what is cached when they change", mode,
            )  # fmt: skip
            return


def overwritten(doctor: Doctor) -> Iterator[Finding]:
    """Look at the first result again after a second call, and at the weights after the first, large ones as well."""
    case, usual = doctor.draw(BASE, 0)
    for grad, scale in itertools.product((True, False), (1, 10)):
        drawn = replace(usual, weights={name: scale * weight for name, weight in usual.weights.items()})
        with torch.set_grad_enabled(grad):
            module = made(doctor, case, drawn)
            weights = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
            first = called(module, drawn)
            before = [leaf.detach().clone() for leaf in first]
            changed = [
                name for name, parameter in module.named_parameters() if not torch.equal(parameter, weights[name])
            ]
            called(module, drawn, -drawn.input)
        changed += module.written if isinstance(module, MappedSubject) else []
        if changed:
            what = f"a call changes the module's own weights ({', '.join(dict.fromkeys(changed))})"
            yield Finding(what, "", "work on a copy: torch.nn's forward writes to no parameter", "one call")
            return
        if far([leaf.detach() for leaf in first], before, 0.0):
            mode = "with gradients" if grad else "without gradients"
            yield Finding(
                "the result of a call is changed by the next: its buffer is used again", "",
                "return a tensor of its own at each call", f"two calls, {mode}",
            )  # fmt: skip
            return


def shared(doctor: Doctor) -> Iterator[Finding]:
    """Find parameters that layers or directions have in common."""
    reader = doctor.subject.reader
    if reader is None or doctor.subject.is_cell or "num_layers" not in reader.options:
        return
    more = {"bidirectional": True} if "bidirectional" in reader.options else {}
    module = reader.construct({**CLEAR, "num_layers": 4, **more})
    names: dict[int, list[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    twice = next((same for same in names.values() if len(same) > 1), None)
    if twice:
        fix = "construct each layer's own: [make() for _ in range(n)], not [make()] * n"
        yield Finding("layers share their weights", "", fix, f"{' and '.join(twice)} are one parameter")


# Other sizes, other numbers -------------------------------------------------------------------------------------------


def large(doctor: Doctor) -> Iterator[Finding]:
    """Take large inputs, then large weights, with which gates are shut and open to the last bit, and gradients."""
    case, drawn = doctor.draw(BASE, 0)
    if not doctor.exact or wrong(doctor, case, drawn):
        return
    for scale, which in itertools.product((1e2, 1e3, 1e4, 1e10), ("input", "weights")):
        weights = {name: scale * weight for name, weight in drawn.weights.items()}
        more = replace(drawn, input=scale * drawn.input) if which == "input" else replace(drawn, weights=weights)
        if name := wrong(doctor, case, more):
            seen = observe(doctor.subject.namespace, case, more, EXACT).tensors.get(name)
            lost = seen is not None and not bool(seen.isfinite().all())
            yield Finding(
                "large numbers become NaN or infinite" if lost else "wrong for large numbers", "",
                "use torch.sigmoid, torch.tanh and their derivatives: they don't overflow, whatever they are given",
                f"{name} {'is not finite' if lost else 'differs'} where the {which} is {scale:g} times as large",
            )  # fmt: skip
            return


def sizes(doctor: Doctor) -> Iterator[Finding]:
    """Take large sizes: a kernel may be for small ones."""
    case, _ = doctor.draw(BASE, 0)

    def fails(hidden: int, inputs: int = 5, batch: int = 3) -> str:
        lengths = (1,) if case.is_cell else (4,) * batch
        return wrong(doctor, case, bare(draw(case, doctor.seed, Sizes(inputs, hidden, 3, batch, lengths))))

    if fails(4):
        return
    for what, attempts in (
        ("hidden sizes", [(hidden, 5, 3) for hidden in (8, 16, 17, 32, 33, 64, 65, 70, 128, 130)]),
        ("input sizes", [(4, inputs, 3) for inputs in (8, 16, 17, 32, 33, 40, 64, 65, 130)]),
        ("batches", [(4, 5, batch) for batch in (1, 2, 8, 33)]),
    ):
        place = {"hidden sizes": 0, "input sizes": 1, "batches": 2}[what]
        right = (4, 5, 3)[place]
        for attempt in attempts:
            if name := fails(*attempt):
                at = attempt[place]
                above = f"{what} above {right}" if at > right else f"{what} of {at}"
                yield Finding(f"wrong for {above}", "", "nothing may depend on the size", f"{name} differs at {at}")
                break
            right = attempt[place]


#: Problems in which sizes are equal that else never are: what asks whether two shapes are the same takes another way.
EQUAL = (
    ("", Sizes(5, 4, 3, 3, (6, 6, 6))),
    ("as many features as units", Sizes(5, 5, 3, 3, (6, 6, 6))),
    ("as many rows as units", Sizes(5, 4, 3, 4, (6, 6, 6, 6))),
    ("as many rows as features", Sizes(5, 4, 3, 5, (6,) * 5)),
    ("as many steps as rows", Sizes(5, 4, 3, 6, (6,) * 6)),
    ("as many steps as features", Sizes(6, 4, 3, 3, (6, 6, 6))),
    ("as many steps as units", Sizes(5, 6, 3, 3, (6, 6, 6))),
)
WAYS = {
    f"in {'training' if training else 'eval'} mode {'with' if grad else 'without'} gradients": (training, grad)
    for training, grad in itertools.product((True, False), (True, False))
}


def modes(doctor: Doctor) -> Iterator[Finding]:
    """Call it in training and in eval mode, with gradients and without, at unequal sizes and at equal ones."""
    case, _ = doctor.draw(BASE, 0)
    of_cell = tuple(deviation for deviation in doctor.base.deviations if deviation.level != "stack")
    known = {doctor.base, replace(doctor.base, deviations=of_cell)}  # what is between layers may spare the first

    def failures(chosen: Sizes, seed: int) -> dict[str, list[str]]:
        """Return by what is wrong the ways in which it is, with the numbers of this seed."""
        drawn = bare(draw(case, seed, chosen._replace(lengths=(1,)) if case.is_cell else chosen))
        expected = [[*variant.run(example_of(case, drawn)).values()] for variant in known]
        failed: dict[str, list[str]] = {}
        for way, (training, grad) in WAYS.items():
            input, states = drawn.input.clone(), tuple(state.clone() for state in drawn.hx)
            with torch.set_grad_enabled(grad):
                seen = [leaf.detach() for leaf in shown(made(doctor, case, drawn, training), input, states)]
            if all(far(seen, numbers[: len(seen)], allowed(doctor, TRUE)) for numbers in expected):
                failed.setdefault("wrong", []).append(way)
            if far([input, *states], [drawn.input, *drawn.hx], 0.0):
                failed.setdefault("it writes on what it is given", []).append(way)
        return failed

    for equal, chosen in EQUAL:
        failed = failures(chosen, doctor.seed)
        if not failed or not all(failures(chosen, doctor.seed + k) for k in (1, 2)):
            continue  # what fails with some numbers alone is no matter of modes and sizes
        fix = "take the same way whatever the mode and the sizes"
        for what, bad in failed.items():
            if equal or len(bad) < len(WAYS):
                where = f" with {equal}" * bool(equal) + f" {' and '.join(bad)}" * (len(bad) < len(WAYS))
                yield Finding(what + where, "", fix, "one layer")
        always = [what for what, bad in failed.items() if len(bad) == len(WAYS) and not equal]
        if always and BASE.name in doctor.diagnosis.passed:  # there the input wants a gradient
            yield Finding(f"{always[-1]} where the input wants no gradient", "", fix, "one layer")
        return


def rows(doctor: Doctor) -> Iterator[Finding]:
    """Put a NaN or an infinity into one row: the others must not notice, and it must show there as in torch.nn."""
    case, drawn = doctor.draw(BASE, 0)
    for value, name in ((math.nan, "a NaN"), (math.inf, "an infinity")):
        input = drawn.input.clone()
        input[..., 0, 0] = value
        odd = replace(bare(drawn), input=input)
        with torch.no_grad():
            usual, spoiled = called(made(doctor, case, drawn), drawn), called(made(doctor, case, drawn), odd)
        if far([leaf[..., 1:, :] for leaf in usual], [leaf[..., 1:, :] for leaf in spoiled]):
            yield Finding(f"{name} in one row of the batch spreads to others", "", "keep rows apart", "one layer")
            return
        finite = replace(bare(drawn), input=1e10 * drawn.input)
        if not wrong(doctor, case, finite) and (differing := wrong(doctor, case, odd)):
            fix = "compute with the numbers that are given: torch.nn hides none"
            yield Finding(f"{name} in the input has another effect than in torch.nn", "", fix, f"{differing} differs")
            return


def blanks(doctor: Doctor) -> Iterator[Finding]:
    """Let one row's input be all zero, in a step amid the others and in the last: they are steps like any other."""
    case, drawn = doctor.draw(BASE, 0)
    steps = len(drawn.input)

    def holding(value: float, place: tuple[int, ...]) -> Draw:
        input = drawn.input.clone()
        input[place] = value
        return replace(bare(drawn), input=input)

    for place, where in (((0,), ""),) if case.is_cell else (((steps // 2, 0), ""), ((steps - 1, 0), " at the end")):
        name = wrong(doctor, case, holding(0.0, place))
        if name and not wrong(doctor, case, holding(1e-3, place)):
            shown = values(observe(doctor.subject.namespace, case, holding(0.0, place), EXACT))
            if case.is_cell:
                h, before = shown["h_1"][0], drawn.hx[0][0]
            else:
                h, before = shown["output"][place], shown["output"][place[0] - 1, 0]
            skipped = torch.equal(h, before) or not h.any()
            yield Finding(
                f"steps{where} whose input is all zero are {'skipped' if skipped else 'computed otherwise'}",
                "Keras' Masking and mask_zero" if skipped else "",
                "take zeros for numbers: what is padding, a PackedSequence tells", f"{name} differs",
            )  # fmt: skip
            return


def layouts(doctor: Doctor) -> Iterator[Finding]:
    """Take strided input and states, each in a new module: what one call leaves must not count."""
    case, drawn = doctor.draw(BASE, 0)

    def strided(tensor: Tensor) -> Tensor:
        return torch.stack([tensor, tensor.flip(0)], -1)[..., 0]

    hx = tuple(state.clone() for state in drawn.hx)
    with torch.no_grad():
        usual = called(seeded(made(doctor, case, drawn), 1), drawn)
        for name, input, states in (
            ("input", strided(drawn.input), tuple(state.clone() for state in hx)),
            ("input", drawn.input.mT.contiguous().mT, tuple(state.clone() for state in hx)),
            ("initial state", drawn.input.clone(), tuple(map(strided, hx))),
        ):
            if far(shown(seeded(made(doctor, case, drawn), 1), input, states), usual, allowed(doctor, NEAR)):
                fix = "call .contiguous() before as_strided, or use reshape"
                yield Finding(f"it takes its {name} for contiguous", "", fix, "a strided view of the same numbers")
                return


def dtypes(doctor: Doctor) -> Iterator[Finding]:
    """Run in bfloat16: the dtype must stay, and the numbers be near."""
    case, drawn = doctor.draw(BASE, 0)
    place = {"dtype": torch.bfloat16}
    module = doctor.subject.make(**drawn.arguments, **place)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(drawn.weights[name])
        seen = called(module, replace(drawn, hx=tuple(h.bfloat16() for h in drawn.hx)), drawn.input.bfloat16())
        exact = called(made(doctor, case, drawn), drawn)
    if any(leaf.dtype != torch.bfloat16 for leaf in seen):
        yield Finding("its result is not of bfloat16 where all that is given is", "", "follow the input's dtype", "")
    elif far([leaf.double() for leaf in seen], exact, 0.5):
        yield Finding("wrong in bfloat16", "", "follow the input's dtype", "")


# Long sequences -------------------------------------------------------------------------------------------------------


def lengthened(doctor: Doctor, steps: int, number: int = 0) -> tuple[Case, Draw]:
    """Draw a problem of many steps, with weights too small for chaos and growth; another `number` draws others."""
    case, _ = doctor.draw(BASE, 0)
    long = draw(case, doctor.seed + number, Sizes(5, 4, 3, 2, (steps, steps)))
    return case, replace(long, weights={name: 0.5 * weight for name, weight in long.weights.items()})


def late(doctor: Doctor) -> Iterator[Finding]:
    """Compare the values of a long sequence, and say from which step on they are wrong."""
    case, drawn = doctor.draw(BASE, 0)
    if case.is_cell or not doctor.exact or wrong(doctor, case, bare(drawn)):
        return
    steps = 260

    def first_wrong(number: int) -> int | None:
        """Return the first step that is wrong, counted as its direction runs; `steps` where the states alone are."""
        case, long = lengthened(doctor, steps, number)
        seen = observe(doctor.subject.namespace, case, bare(long), EXACT)
        if seen.error:
            doctor.diagnosis.not_offered[f"{steps} steps"] = seen.error
            return None
        shown, expected = values(seen), doctor.base.run(example_of(case, bare(long)))
        most = TRUE * max(1.0, *(y.abs().max().item() for y in expected.values()))
        if not far([shown[name] for name in expected], [*expected.values()], most):
            return None
        apart = ~torch.isclose(shown["output"], expected["output"], rtol=0, atol=most, equal_nan=True)
        ahead, *back = apart.chunk(2 if case.bidirectional else 1, -1)
        bad = torch.cat([ahead, *(half.flip(0) for half in back)], -1).flatten(1).any(1).nonzero()
        return int(bad[0]) if len(bad) else steps

    first = first_wrong(0)
    if first is None:
        return
    others = {first_wrong(1), first_wrong(2)} - {first, None}
    if others and any("large numbers" in name for name in doctor.diagnosis.names):
        return  # the state has grown
    what = f"wrong from step {first} on" if first < steps else f"its final state is wrong after {steps} steps"
    evidence = f"a sequence of {steps} steps, where a few are right"
    evidence += "; with other numbers from another step on" * bool(others)
    yield Finding(what, "", "count no steps: each is the same function of input and state", evidence)


def reach(doctor: Doctor) -> Iterator[Finding]:
    """Follow the gradient of late outputs back to early inputs, then compare all gradients of a long sequence."""
    case, drawn = doctor.draw(BASE, 0)
    if case.is_cell or not doctor.exact or BASE.name in doctor.backward_errors:
        return
    if any("gradient" in name or "detached" in name for name in doctor.diagnosis.names):
        return
    steps = 70
    case, long = lengthened(doctor, steps)

    def silent(end: int) -> list[int]:
        """List the steps whose input has no gradient of the output at step `end`, though it has one in torch.nn."""
        cotangent = torch.zeros_like(long.cotangents["output"])
        cotangent[end] = long.cotangents["output"][end]
        one = replace(long, cotangents={"output": cotangent})
        grad = observe(doctor.subject.namespace, case, one, EXACT).tensors["grad of input"]
        found = [] if grad is None else [t for t in range(end + 1) if not grad[t].any()]
        true = doctor.base.run(example_of(case, one, True))["grad of input"] if found else long.input
        return [t for t in found if true[t].any()]

    unheard = {end: silent(end) for end in (steps - 1, steps - 2, steps // 2, steps // 3)}
    if any(unheard.values()):
        yield cut(unheard, silent)
    elif not doctor.diagnosis.unexplained and not wrong(doctor, case, drawn) and (name := wrong(doctor, case, long)):
        fix = "compare with torch.autograd.gradcheck on a long sequence"
        yield Finding("gradients of a long sequence are wrong", "", fix, f"{name} differs over {steps} steps")


def cut(unheard: dict[int, list[int]], silent: Callable[[int], list[int]]) -> Finding:
    """Say what is detached, from the steps that the last outputs' gradients don't reach."""
    last = max(unheard)
    steps = unheard[last]
    evidence = f"the output at step {last} has no gradient with respect to the input at {len(steps)} steps"
    if last in steps and len(steps) == last + 1:
        first = next(end for end in range(last + 1) if len(silent(end)) == end + 1)
        return Finding(f"the output is detached from step {first} on", "", "return it as it is", evidence)
    if steps and steps[-1] in silent(steps[-1]):
        return Finding(f"the input is detached from step {steps[0]} on", "", "use it as it is", evidence)
    lags = {end - len(earlier) for end, earlier in unheard.items() if earlier}
    if len(lags) == 1 and min(lags) > 0:
        what = f"gradients reach back {min(lags)} steps only"
    else:
        cuts = [len(steps)]
        while start := len(silent(cuts[-1] - 1)):
            cuts.append(start)
        periods = {later - earlier for later, earlier in itertools.pairwise(cuts)}
        where = f"at step {' and '.join(map(str, reversed(cuts)))}"
        if len(periods) == 1:
            (period,) = periods
            where = "at each step" if period == 1 else f"every {period} steps"
            where += f" from step {cuts[-1]} on" * (cuts[-1] > period)
        what = f"gradients are cut {where}: the state is detached there"
    return Finding(what, "truncated backpropagation in the module", "leave the detach() to the training loop", evidence)


# Dropout --------------------------------------------------------------------------------------------------------------


def memoryless(doctor: Doctor, case: Case, drawn: Draw) -> Draw:
    """Return weights with which layer 0 gives one number at each step, and layer 1 shows its input, squashed."""
    weights = {name: torch.zeros_like(weight) for name, weight in drawn.weights.items()}
    H = drawn.arguments["hidden_size"]
    open_gates = {"LSTM": [50.0, -50.0, 0.0, 50.0], "GRU": [0.0, -50.0, 0.0], "RNN": [0.0]}[doctor.subject.kind]
    at = {"LSTM": 2, "GRU": 2, "RNN": 0}[doctor.subject.kind]
    for layer in (0, 1):
        bias = torch.tensor(open_gates, dtype=torch.float64).repeat_interleave(H)
        if layer == 0:
            bias[at * H : (at + 1) * H] = 1.0
        weights[f"bias_ih_l{layer}"] = bias
    weights["weight_ih_l1"][at * H : (at + 1) * H] = 0.01 * torch.eye(H, dtype=torch.float64)
    return replace(drawn, weights=weights)


def masks(doctor: Doctor) -> Iterator[Finding]:
    """Make the masks of dropout visible: how often, how much, the same at each step?"""
    if "dropout, two layers" not in doctor.diagnosis.passed or not doctor.always.get("bias", True):
        return
    p = 0.4
    case, _ = doctor.draw(Probe("", (), {"layers": 2, "dropout": "dropout_train", "hx": False}), 0)
    drawn = draw(case, doctor.seed, Sizes(5, 16, 3, 12, (10,) * 12))
    drawn = memoryless(doctor, case, replace(drawn, arguments={**drawn.arguments, "dropout": p}))
    module = made(doctor, case, drawn)
    with torch.no_grad():
        shown, again = (called(seeded(module, 1), drawn)[0] for _ in range(2))
        if far([shown], [again]):
            fix = "draw with torch's generator: F.dropout, torch.rand"
            yield Finding("dropout doesn't follow torch's seed", "", fix, "two results under torch.manual_seed(1)")
            return
        undropped = replace(drawn, arguments={**drawn.arguments, "dropout": 0.0})
        constant = called(made(doctor, case, undropped, training=False), drawn)[0]  # some drop in eval mode too
    squashed = (lambda y: torch.atanh(torch.atanh(y))) if doctor.subject.kind == "LSTM" else torch.atanh
    kept: Tensor = squashed(shown) / squashed(constant)
    if not kept.isfinite().all():
        return
    dropped = kept.abs() < 0.01
    scale = kept[~dropped].mean().item() if not dropped.all() else 0.0
    share = dropped.double().mean().item()
    fix = "F.dropout(output, p, self.training) on the output of every layer but the last"
    evidence = f"p = {p}: {share:.0%} dropped, the rest times {scale:.2f}"
    if abs(scale - 1 / (1 - p)) > 0.02:
        what = "dropout without 1 / (1 - p): what is kept is not scaled" if abs(scale - 1) < 0.02 else (
            "dropout scales what it keeps by another factor than 1 / (1 - p)"
        )  # fmt: skip
        if abs(scale - 1 / p) < 0.02 and abs(share - (1 - p)) < 0.1:
            what = "dropout keeps p and drops 1 - p"
        yield Finding(what, "", fix, evidence)
    elif abs(share - p) > 0.1 and not bool((dropped == dropped[:1]).all()):
        yield Finding("dropout drops another share than p", "", fix, evidence)
    for axis, name in ((0, "step"), (1, "row of the batch"), (2, "unit")):
        if bool((dropped == dropped.narrow(axis, 0, 1)).all()) and dropped.any():
            where = "variational dropout" if axis == 0 else ""
            yield Finding(f"the same dropout mask at every {name}", where, fix, evidence)
