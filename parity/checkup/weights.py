"""The weight map: where a module keeps what torch.nn keeps in `weight_ih_l0`, `bias_hh_l1_reverse` and so on.

Shapes say most of it, at sizes of which no two are alike; the module is asked which layer and direction a parameter
belongs to; names and order are hints. What stays open makes several readings, the likeliest first, and all of them are
tried (see `diagnose`): the one under which the module computes torch.nn's numbers, or a known variant's, is right.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..mutants.definition import GATES

Shapes = dict[str, tuple[int, ...]]
#: Of a matrix as (gates, units, columns): how the axes lie in the module's own parameter.
TURNS = ((0, 1, 2), (2, 0, 1), (0, 2, 1), (1, 0, 2), (2, 1, 0))
SOURCES = {"ih": ("ih", "x2h", "i2h", "x", "i", "w", "in", "input"), "hh": ("hh", "h2h", "h", "u", "rec", "recurrent")}
WORDS = {
    "ifgo": {"i": "i", "f": "f", "g": "g", "c": "g", "a": "g", "m": "g", "n": "g", "o": "o", "u": "i"},
    "rzn": {"r": "r", "z": "z", "u": "z", "n": "n", "h": "n", "c": "n", "o": "n"},
    "h": {},
}
CANDIDATE = {"ifgo": "g", "rzn": "n"}  # the gate that stands apart where the others share a parameter
REVERSE = re.compile(r"(?<![a-z])(rev|reverse|reversed|backward|backwards|back|bw|bwd|rtl|r2l|right)(?![a-z])")
FORWARD = re.compile(r"(?<![a-z])(forward|forwards|fwd|fw|ltr|l2r|left)(?![a-z])")


class UnreadableError(Exception):
    """No reading of the module's parameters is plausible."""


@dataclass(frozen=True)
class Part:
    """One parameter of the module, made of torch.nn's weights."""

    name: str
    slot: str  # the layer and direction: _l0_reverse, or "" of a cell
    sources: tuple[str, ...]  # ih, hh: columns side by side; of a bias: added. hr: the projection
    gates: str  # of its rows, in its own order
    turn: tuple[int, int, int] = (0, 1, 2)
    bias: bool = False
    both: str = ""  # "cat" or "stack" where both biases are in one parameter, one behind the other
    alone: str = ""  # of a bias of two sources: the gates of which it has the first alone

    def take(self, weights: dict[str, Tensor], gates: str, shape: tuple[int, ...]) -> Tensor:
        stem = "bias_" if self.bias else "weight_"
        found = [weights[stem + source + self.slot] for source in self.sources if stem + source + self.slot in weights]
        if not found:
            return next(iter(weights.values())).new_zeros(shape)
        if self.alone:
            elsewhere = torch.tensor([[gate in self.alone] for gate in gates], device=found[0].device)
            found[1:] = [b.reshape(len(gates), -1).masked_fill(elsewhere, 0).flatten() for b in found[1:]]
        if self.bias:
            if self.both:
                return torch.cat(found).reshape(shape)
            whole = sum(found[1:], found[0]).unsqueeze(1)
        else:
            whole = torch.cat(found, 1)
        if not self.gates:
            blocks = whole.unsqueeze(0)
        else:
            blocks = whole.unflatten(0, (len(gates), -1))  # type: ignore[no-untyped-call]
            blocks = blocks if self.gates == gates else blocks[[gates.index(gate) for gate in self.gates]]
        return blocks.permute(self.turn).reshape(shape)

    def text(self, gates: str, slot: str) -> str:
        """Say what it is made of."""
        rows = "" if self.gates in ("", gates) else f"[gate{'s' * (len(self.gates) > 1)} {' '.join(self.gates)}]"
        stem = "bias" if self.bias else "weight"
        joined = (" + " if self.bias else ", ").join(f"{stem}_{source}{slot}{rows}" for source in self.sources)
        if self.both:
            return f"{self.both}([{joined.replace(' + ', ', ')}])"
        joined += f" (of {' '.join(self.alone)} {stem}_{self.sources[0]} alone)" * bool(self.alone)
        text = joined if self.bias or len(self.sources) == 1 else f"cat([{joined}], 1)"
        turned = not self.bias and self.turn in (TURNS[1], TURNS[2], TURNS[4])
        return text if not turned else f"{text}.T" if len(self.sources) == 1 else f"({text}).T"


@dataclass(frozen=True)
class Layout:
    """A reading of all parameters."""

    parts: tuple[Part, ...]
    gates: str
    extras: tuple[str, ...] = ()  # parameters that torch.nn has not
    fill: float | None = None  # what they are set to; None leaves them
    named: bool = False  # whether torch.nn's own letters or words say which gate is which
    style: tuple[Any, ...] = ()  # the choices that led here, to be made again for more layers
    how: str = ""  # how layers and directions were told apart

    def map(self, weights: dict[str, Tensor], shapes: Shapes) -> dict[str, Tensor]:
        return {part.name: part.take(weights, self.gates, shapes[part.name]) for part in self.parts}

    @property
    def split(self) -> bool:
        """Say whether each gate has a parameter of its own, so that gates have no order."""
        return all(part.gates != self.gates for part in self.parts if part.gates and not part.bias)

    @property
    def merged(self) -> bool:
        """Say whether a GRU has one bias where torch.nn has b_in and b_hn."""
        return "n" in self.gates and any(
            part.bias and "n" in part.gates and "n" not in part.alone and len(part.sources) > 1 and not part.both
            for part in self.parts
        )

    def relabelled(self, order: str) -> Layout:
        """Return the layout in which what was taken for the k-th gate is the k-th of `order`."""
        names = str.maketrans(self.gates, order)
        parts = tuple(replace(p, gates=p.gates.translate(names), alone=p.alone.translate(names)) for p in self.parts)
        return replace(self, parts=parts, style=(*self.style[:1], order, *self.style[2:]))

    def lines(self) -> Iterator[str]:
        several = len({part.slot for part in self.parts}) > 1
        for part in self.parts:
            yield f"{part.name} = {part.text(self.gates, part.slot if several else '')}"


def readings(own: Shapes, shapes: Shapes, kind: str, module: nn.Module | None = None) -> list[Layout]:
    """List plausible layouts of parameters of these shapes, the likeliest first. UnreadableError if there is none.

    own     the module's, by name        shapes  torch.nn's, by name
    module  is asked for layers and directions, if it is given
    """
    aside = () if module is None else tuple(normalising(module))
    found, problem = plausible({name: shape for name, shape in own.items() if name not in aside}, shapes, kind, module)
    if module is not None and (not found or found[0].extras) and (unused := idle(module, shapes)):
        others = {name: shape for name, shape in own.items() if name not in (*aside, *unused)}
        without, _ = plausible(others, shapes, kind, module)
        found, aside = (without, (*aside, *unused)) if without else (found, aside)
    if not found:
        raise UnreadableError(problem)
    fills = (0.0, 1.0, None) if found[0].extras and not aside else (None,)  # a normalisation by 0 leaves nothing
    found = [replace(layout, extras=layout.extras + aside) for layout in found]
    return [replace(layout, fill=fill) for fill in fills for layout in found]


def plausible(own: Shapes, shapes: Shapes, kind: str, module: nn.Module | None) -> tuple[list[Layout], str]:
    """Return what `readings` lists, and if that is nothing, why."""
    reader = Reader(own, shapes, kind)
    found: list[Layout] = []
    problem = "no parameters"
    for how, slots in reader.slots(module):
        for turned, joined, naming in itertools.product((False, True), (("ih", "hh"), ("hh", "ih")), (True, False)):
            try:
                layout = reader.layout(slots, how, turned, joined, naming)
            except UnreadableError as error:
                problem = str(error)
                continue
            known = [(other.parts, other.extras) for other in found]
            if (layout.parts, layout.extras) not in known:
                found.append(layout)
    return found, problem


def normalising(module: nn.Module) -> Iterator[str]:
    """Yield the names of the parameters of layers that normalise."""
    for name, child in module.named_modules():
        if name and "norm" in type(child).__name__.lower() and not list(child.children()):
            yield from (f"{name}.{own}" for own, _ in child.named_parameters())


def each_moved(
    module: nn.Module, names: Sequence[str], shapes: Shapes
) -> Iterator[tuple[str, list[Tensor], list[Tensor]]]:
    """Yield for each parameter its name and all tensors that the module returns, before and after it is moved."""
    first = next(name for name in shapes if name.startswith("weight_ih"))
    sizes = (8, 9, shapes[first][1]) if "_l0" in first else (9, shapes[first][1])
    dtype, generator = next(module.parameters()).dtype, torch.Generator().manual_seed(1)

    def drawn(*sizes: int) -> Tensor:
        return torch.randn(sizes, generator=generator, dtype=torch.float64).to(dtype)

    x = drawn(*sizes)
    usual = {name: 0.5 * drawn(*parameter.shape) for name, parameter in module.named_parameters()}

    def results(moved: dict[str, Tensor]) -> list[Tensor]:
        with torch.no_grad():
            result = torch.func.functional_call(module, moved, (x,))
        return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]

    before = results(usual)
    for name in names:
        yield name, before, results(usual | {name: usual[name] + 0.3})


def idle(module: nn.Module, shapes: Shapes) -> tuple[str, ...]:
    """Name the parameters that change nothing when they are moved; none if the module can't be asked."""
    names = [name for name, _ in module.named_parameters()]
    try:
        return tuple(
            name
            for name, *both in each_moved(module, names, shapes)
            if all(torch.equal(before, after) for before, after in zip(*both, strict=True))
        )
    except Exception:  # as in a call without a state
        return ()


def infer(own: Shapes, shapes: Shapes, kind: str) -> Layout:
    """Return the likeliest layout, from names and shapes alone."""
    return readings(own, shapes, kind)[0]


@dataclass
class Reader:
    """Reads parameters of these shapes."""

    own: Shapes
    shapes: Shapes
    kind: str
    names: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.gates = GATES[self.kind]
        self.suffixes = [name.removeprefix("weight_ih") for name in self.shapes if name.startswith("weight_ih")]
        self.D = 1 + any("reverse" in suffix for suffix in self.suffixes)
        first = self.suffixes[0]
        self.H = self.shapes["weight_hh" + first][0] // len(self.gates)
        self.P = self.shapes["weight_hh" + first][1]
        self.names = tuple(self.own)

    # Layers and directions

    def slots(self, module: nn.Module | None) -> Iterator[tuple[str, dict[str, int]]]:
        """Yield ways to tell layers and directions apart: (how, parameter -> place among torch.nn's)."""
        count = len(self.suffixes)
        if count == 1:
            yield "", dict.fromkeys(self.names, 0)
            return
        if module is not None and (asked := self._asked(module)):
            yield "by asking the module", asked
        if named := self._by_name():
            yield "by their names", named
        if len(self.names) % count == 0:
            size = len(self.names) // count
            yield "by their order", {name: k // size for k, name in enumerate(self.names)}

    def _asked(self, module: nn.Module) -> dict[str, int]:
        """Move one parameter at a time and see which final state answers first, of states by layer, or by direction.

        returns {} if that says nothing
        """
        count = len(self.suffixes)

        def states(tensors: list[Tensor]) -> list[Tensor]:
            return [t.movedim(t.shape.index(count), 0) for t in tensors if t.shape.count(count) == 1]

        answers: dict[str, set[int]] = {}
        try:
            for name, before, after in each_moved(module, self.names, self.shapes):
                pairs = list(zip(states(before), states(after), strict=True))
                answers[name] = {
                    k for k in range(count) if any(not torch.allclose(a[k], b[k], rtol=0, atol=1e-9) for a, b in pairs)
                }
        except Exception:  # whatever a module does that can't be asked: then its names must tell
            return {}
        layers = count // self.D
        for places in (
            list(range(count)),
            [layer * self.D + direction for direction in range(self.D) for layer in range(layers)],  # by direction
        ):
            first = {name: self._first([places[k] for k in of_name]) for name, of_name in answers.items()}
            if set(first.values()) == set(range(count)):
                return first
        return {}

    def _first(self, places: list[int]) -> int:
        """Return the one of these places, of layers and directions, that lies in the lowest layer; -1 if two do."""
        lowest = [place for place in places if place // self.D == min(places, default=0) // self.D]
        return lowest[0] if len(lowest) == 1 else -1

    def _by_name(self) -> dict[str, int]:
        """Read layer and direction off the names; {} if they don't say."""
        count, layers = len(self.suffixes), len(self.suffixes) // self.D
        groups: dict[tuple[str, int | None], list[str]] = {}
        for name in self.names:
            lower = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower().replace("_", " ")
            backwards = 1 if REVERSE.search(lower) else 0 if FORWARD.search(lower) else None
            plain = REVERSE.sub("", FORWARD.sub("", lower))
            groups.setdefault((re.sub(r"\d+", "#", plain), backwards), []).append(name)
        reverse_only = any(backwards == 1 for _, backwards in groups)
        slots = {}
        for (_, backwards), members in groups.items():
            members.sort(key=lambda name: [int(digits) for digits in re.findall(r"\d+", name)])
            direction = backwards if backwards is not None else 0 if self.D == 1 or reverse_only else None
            for rank, name in enumerate(members):
                if len(members) == layers and direction is not None:
                    slots[name] = rank * self.D + direction
                elif len(members) % count == 0:
                    slots[name] = rank // (len(members) // count)
                elif direction is not None and len(members) % layers == 0:
                    slots[name] = rank // (len(members) // layers) * self.D + direction
                else:
                    return {}
        return slots

    # Matrices and biases

    def fits(self, name: str, slot: int) -> list[tuple[tuple[str, ...], int, tuple[int, int, int]]]:
        """List what a matrix may be, by its shape: (sources, how many gates, turn)."""
        columns = self.shapes["weight_ih" + self.suffixes[slot]][1]
        wide = {("ih",): columns, ("hh",): self.P, ("ih", "hh"): columns + self.P}
        found = []
        for (sources, C), k, turn in itertools.product(wide.items(), range(1, len(self.gates) + 1), TURNS):
            if merges(self.own[name], [(k, self.H, C)[axis] for axis in turn], turn):
                found.append((sources, k, turn))
        if self.P != self.H:
            for turn in TURNS[:2]:
                if merges(self.own[name], [(1, self.P, self.H)[axis] for axis in turn], turn):
                    found.append((("hr",), 0, turn))
        return found

    def layout(self, slots: dict[str, int], how: str, turned: bool, joined: tuple[str, str], naming: bool) -> Layout:
        """Read all parameters in one of the ways that are open."""
        parts: dict[str, Part] = {}
        extras: list[str] = []
        roles: dict[str, tuple[str, ...]] = {}  # the sources of matrices of layers below, by name
        for slot, suffix in enumerate(self.suffixes):
            members = [name for name in self.names if slots[name] == slot]
            matrices = self._matrices(members, slot, turned, naming, roles)
            for name, (sources, k, turn) in matrices.items():
                roles[name] = sources
                parts[name] = Part(name, suffix, joined if sources == ("ih", "hh") else sources, "?" * k, turn)
            self._label(parts, [name for name in matrices if parts[name].gates], naming)
            held = "".join(p.gates for p in parts.values() if p.slot == suffix and "ih" in p.sources)
            also = "".join(p.gates for p in parts.values() if p.slot == suffix and "hh" in p.sources)
            if sorted(held) != sorted(self.gates) or sorted(also) != sorted(self.gates):
                listed = ", ".join(f"{name} {list(self.own[name])}" for name in members)
                raise UnreadableError(f"weight_ih and weight_hh are not to be found in {listed}")
            vectors = [name for name in members if name not in matrices]
            biases = self._biases(vectors, {name: parts[name] for name in matrices}, suffix, naming)
            parts |= biases
            extras += [name for name in vectors if name not in biases]
        ordered = tuple(parts[name] for name in self.names if name in parts)
        singles = [
            name for name, part in parts.items() if len(part.gates) == 1 and not part.bias and self.kind == "LSTM"
        ]
        singles = [name for name in singles if parts[name].sources == parts[singles[0]].sources]
        words = {re.sub(r"[^a-z]", "", word.lower())[:1] for word in differing(singles)}
        named = naming and bool(words) and words <= set("ifgco")
        style = (turned, "", joined, naming)
        return Layout(ordered, self.gates, tuple(extras), named=named, style=style, how=how)

    def _matrices(
        self, members: list[str], slot: int, turned: bool, naming: bool, roles: dict[str, tuple[str, ...]]
    ) -> dict[str, tuple[tuple[str, ...], int, tuple[int, int, int]]]:
        fits = {name: found for name in members if (found := self.fits(name, slot)) and "norm" not in name.lower()}
        sure = [found[0] for found in fits.values() if len({(f[0], f[1]) for f in found}) == 1]
        counts = {k for _, k, _ in sure}
        usual = any(turn in TURNS[1:3] for _, _, turn in sure)  # a square matrix is stored as the others are
        taken: dict[str, tuple[tuple[str, ...], int, tuple[int, int, int]]] = {}
        held: dict[str, int] = {"ih": 0, "hh": 0}
        for name, found in fits.items():
            hint = role_below(name, roles) or (source_hint(name) if naming else None)

            def rank(
                fit: tuple[tuple[str, ...], int, tuple[int, int, int]], hint: tuple[str, ...] | None = hint
            ) -> tuple[Any, ...]:
                full = any(held.get(source, 0) + fit[1] > len(self.gates) for source in fit[0])
                odd = (fit[2] in TURNS[1:3]) != (usual != turned)
                return full, hint is not None and fit[0] != hint, bool(counts) and fit[1] not in counts, odd

            best = min(found, key=rank)
            if rank(best)[0]:
                continue  # there is one already: this one is something else
            taken[name] = best
            for source in best[0]:
                held[source] = held.get(source, 0) + best[1]
        return taken

    def _label(self, parts: dict[str, Part], names: list[str], naming: bool) -> None:
        """Give each matrix its gates: by the letters or words in which names differ, or in torch.nn's order."""
        for source in ("ih", "hh"):
            group = [name for name in names if source in parts[name].sources and "?" in parts[name].gates]
            done = "".join(parts[name].gates for name in names if source in parts[name].sources and name not in group)
            free = "".join(gate for gate in self.gates if gate not in done)
            singles = [name for name in group if len(parts[name].gates) == 1]
            found = gate_letters(singles, self.gates, naming)
            found = found if set(found) <= set(free) else list(free[-len(found) :] if found else "")
            letters = dict(zip(singles, found, strict=False))
            rest = [gate for gate in free if gate not in letters.values()]
            for name in group:
                k = len(parts[name].gates)
                given = letters[name] if name in letters else "".join(rest[:k])
                rest = rest if name in letters else rest[k:]
                parts[name] = replace(parts[name], gates=given)

    def _biases(self, vectors: list[str], matrices: dict[str, Part], suffix: str, naming: bool) -> dict[str, Part]:
        """Give each bias the matrix whose name it shares; those that are left, the matrices that are left, in order."""
        G, parts = len(self.gates), dict[str, Part]()
        for name in vectors:
            if merges(self.own[name], [2, G * self.H], (0, 1)):
                both = "stack" if self.own[name] == (2, G * self.H) else "cat"
                return {name: Part(name, suffix, ("ih", "hh"), self.gates, bias=True, both=both)}
        sizes = {name: math.prod(self.own[name]) // self.H for name in vectors
                 if any(merges(self.own[name], [k, self.H], (0, 1)) for k in range(1, G + 1))
                 and "norm" not in name.lower() and not peephole(name)}  # fmt: skip
        free = {name: part for name, part in matrices.items() if part.gates}
        used: set[str] = set()
        for name, k in sizes.items():
            owners = [n for n, part in free.items() if stem(n) == stem(name) and len(part.gates) == k and n not in used]
            if naming and len(owners) == 1:
                parts[name] = replace(free[owners[0]], name=name, bias=True, turn=(0, 1, 2))
                used.add(owners[0])
        left = sorted((name for name in sizes if name not in parts), key=lambda name: -sizes[name])
        for name in left:
            covered = {(gate, source) for part in parts.values() for gate in part.gates for source in part.sources}
            k = sizes[name]
            alike = [n for n in left if sizes[n] == k]
            given = self.gates if k == G else gate_letters(alike, self.gates, naming)[alike.index(name)]
            if 1 < k < G:  # of several gates, as one of the matrices has them
                given = next((part.gates for part in free.values() if len(part.gates) == k), "")
            source = next((s for s in ("ih", "hh") if not any((gate, s) in covered for gate in given)), None)
            if len(given) == k and source is not None:
                parts[name] = Part(name, suffix, (source,), "".join(given), bias=True)
        for name, part in parts.items():  # the only bias there is of a gate stands for both
            others = "".join(other.gates for n, other in parts.items() if n != name)
            alone = "".join(gate for gate in part.gates if gate in others and len(part.sources) == 1)
            if len(alone) < len(part.gates):
                sources = ("hh", "ih") if alone and part.sources == ("hh",) else ("ih", "hh")
                parts[name] = replace(part, sources=sources, alone=alone)
        return parts


def merges(shape: tuple[int, ...], sizes: list[int], turn: tuple[int, ...]) -> bool:
    """Say whether axes of these sizes, some neighbours merged, make this shape; axes of size one don't count."""
    wanted, axes = [size for size in shape if size != 1], [size for size in sizes if size != 1]
    if turn in ((1, 0, 2), (2, 1, 0)) and len(wanted) != len(axes):
        return False  # rows of all gates, unit by unit, in one axis: an order of the gates, which is looked for later
    position = 0
    for size in wanted:
        product = 1
        while product < size and position < len(axes):
            product *= axes[position]
            position += 1
        if product != size:
            return False
    return position == len(axes)


def role_below(name: str, roles: dict[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """Return the sources of a matrix whose name differs in one number alone: that of the layer."""

    def pieces(text: str) -> list[str]:
        return re.split(r"(\d+)", text)

    for other, sources in roles.items():
        apart = [(a, b) for a, b in zip(pieces(name), pieces(other), strict=False) if a != b]
        if (
            len(pieces(name)) == len(pieces(other))
            and len(apart) == 1
            and apart[0][0].isdigit()
            and apart[0][1].isdigit()
        ):
            return sources
    return None


def stem(name: str) -> str:
    """Return what a weight's name and its bias's have in common."""
    lower = re.sub(r"weights?|bias(es)?|kernels?", "", name.lower())
    return re.sub(r"(^|[._])[wb](?=[^a-z0-9]|[a-z0-9])", r"\1", lower).replace("_", "")


def peephole(name: str) -> bool:
    return re.search(r"peep|(^|[._])(w_?)?(ci|cf|co)$", name.lower()) is not None


def source_hint(name: str) -> tuple[str, ...] | None:
    """Read off a name whether it is the input's weight or the state's."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"weights?|kernels?|(?<![a-z0-9])w(?=[_x-])", "", name.lower()))
    for source in ("hh", "ih"):
        if any(word in SOURCES[source] or word in (f"w{source}", f"w{source[0]}") for word in words):
            return (source,)
    return ("hh",) if re.search(r"recurrent|hidden|h2h|hh", name.lower()) else None


def gate_letters(names: list[str], gates: str, naming: bool = True) -> list[str]:
    """Read each parameter's gate off the part in which the names differ; torch.nn's order where that says nothing."""
    in_order = [gates[k % len(gates)] for k in range(len(names))]
    if not naming:
        return in_order
    if len(names) == 1:
        return [lone_gate(names[0], gates)]
    start = _common(names)
    for words in ([name[start:] for name in names], differing(names)):
        letters = [re.sub(r"[^a-z]", "", word.lower())[:1] for word in words]
        found = [WORDS[gates].get(letter, "") for letter in letters]
        if len(set(found)) == len(found) and all(found):
            return found
    return in_order


def lone_gate(name: str, gates: str) -> str:
    """Read the gate of the only parameter that has one alone off its last word, as in W_n, b_hn or forget.weight."""
    silent = ("weight", "bias", "kernel", "gate", "lin", "linear", "fc", "proj", "layer")
    word = [word for word in ["", *re.split(r"[^a-z]+", name.lower())] if word not in silent][-1]
    letter = word[:1] if len(word) > 3 else word[-1:]
    return WORDS[gates].get(letter, CANDIDATE.get(gates, gates[0]))


def differing(names: list[str]) -> list[str]:
    """Return the part of each name in which all of them differ."""
    start, end = _common(names), _common([name[::-1] for name in names])
    return [name[start : len(name) - end] for name in names]


def _common(names: list[str]) -> int:
    """Count the characters with which all names begin."""
    return next((k for k, letters in enumerate(zip(*names, strict=False)) if len(set(letters)) > 1), 0)
