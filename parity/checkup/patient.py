"""One subject, and what is known of it so far: how it is called, what it does otherwise."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..grid.cases import Case
from ..grid.run import Draw, Observations, build, draw, observe
from ..mutants.catalogue import ONE_BIAS
from ..mutants.definition import Example
from ..mutants.module import Planted, implementation
from ..mutants.mutant import Mutant, defined
from ..mutants.variants import Variant, plain
from .diagnosis import Diagnosis
from .probes import ALL, BASE, EXACT, Probe, after_input, example_of, one_step, values
from .search import Finding
from .subjects import Subject
from .weights import Layout

#: torch.nn's GRU of one bias: what it has in b_hn is added to b_in.
MERGED = implementation(type("", (Planted,), {"definition": defined(ONE_BIAS.knobs)}))


class Patient:
    """A subject on which probes are run. What is found is written down here, and taken for granted from then on."""

    def __init__(
        self,
        subject: Subject,
        seed: int = 0,
        nonlinearity: str = "tanh",
        device: str = "cpu",
        progress: Callable[[str], None] = lambda what: None,
    ) -> None:
        self.subject = subject
        self.kind = subject.class_name + (f"-{nonlinearity}" if subject.kind == "RNN" else "")
        self.seed = seed
        self.diagnosis = Diagnosis(subject)
        self.base = plain(subject.kind)
        self.also: tuple[Variant, ...] = ()
        self.exact = True  # no dtype slip was found, so that gradients can be compared
        self.output_alone = False
        self.always: dict[str, Any] = {"device": device}  # what every probe has, and options that the subject needs
        self.backward_errors: dict[str, str] = {}
        self.given: tuple[Mutant, ...] = ()  # what is taken for granted of all that it returns
        self.extras_matter = False  # parameters that torch.nn has not change the result
        self.asked_extras: tuple[str, ...] = ()  # those of which this is known
        self.proven: set[Layout] = set()  # readings of its parameters under which it was torch.nn's, or was explained
        self.progress = progress

    @property
    def reference(self) -> Any:
        """Return what the subject is compared with: torch.nn, or torch.nn with one bias where a GRU has one."""
        return MERGED if ONE_BIAS in self.base.deviations else torch.nn

    def base_of(self, layout: Layout) -> Variant:
        """Return torch.nn's definition, of one bias where a GRU has one."""
        usual = plain(self.subject.kind)
        return replace(usual, deviations=(*self.given, *((ONE_BIAS,) if layout.merged else ())))

    def levels(self, probe: Probe) -> tuple[str, ...]:
        """Return what a probe can tell apart: directions too, where there always are two."""
        return (*probe.levels, "stack") if probe is BASE and self.always.get("bidirectional") else probe.levels

    def draw(self, probe: Probe, number: int) -> tuple[Case, Draw]:
        """Return the probe's case and numbers; another `number` draws others."""
        case = replace(probe.case(self.kind), **self.always)
        seeds = itertools.count(self.seed + 1000 * number)
        drawn = next(
            d for d in (draw(case, seed) for seed in seeds) if not probe.batches or len(d.lengths) in probe.batches
        )
        if self.output_alone:
            output = drawn.cotangents["output"]
            last = output.select(int(case.batch_first and output.dim() > 2), -1)
            drawn = replace(drawn, cotangents={"output": last if self.given else output})
        if case.dropout:
            drawn = replace(drawn, arguments={**drawn.arguments, "dropout": ALL})
        of_input, of_states = probe.scale
        return case, replace(drawn, input=of_input * drawn.input, hx=tuple(of_states * state for state in drawn.hx))

    def run(self, case: Case, drawn: Draw) -> Observations:
        if self.output_alone:
            return self.output_of(case, drawn)
        return observe(self.subject.namespace, case, drawn, EXACT)

    def output_of(self, case: Case, drawn: Draw) -> Observations:
        """Say what a subject shows that returns no states: its output, and gradients through it."""
        seen = Observations()
        if case.is_packed:
            seen.error = "not looked at where output is returned alone"
            return seen
        try:
            module = build(self.subject.namespace, case, drawn, EXACT)
            given = dict(zip(("input", "h_0", "c_0"), (drawn.input, *drawn.hx), strict=False))
            leaves = {name: t.to(case.device, copy=True).requires_grad_() for name, t in given.items()}
            input, *hx = leaves.values()
            torch.default_generator.manual_seed(drawn.seed)
            result = module(input, *after_input(hx))
            if not isinstance(result, Tensor):
                seen.error = f"forward returns {type(result).__name__}"
                return seen
            seen.tensors["output"] = result.detach().cpu()
            cotangent = drawn.cotangents["output"].to(result)
            if result.requires_grad and result.shape == cotangent.shape:
                result.backward(cotangent)  # type: ignore[no-untyped-call]
                leaves |= dict(module.named_parameters())
                grads = {f"grad of {name}": leaf.grad for name, leaf in leaves.items()}
                seen.tensors |= {name: None if grad is None else grad.cpu() for name, grad in grads.items()}
        except Exception as error:  # whatever a subject raises is an observation
            seen.error = f"{type(error).__name__}: {error}"
        return seen

    def step(self, case: Case, drawn: Draw) -> tuple[Example, dict[str, Tensor]]:
        """Run one step of a problem."""
        one = drawn if case.is_cell else one_step(drawn)
        return example_of(case, one), values(self.run(case, one))

    def layout_of(self, drawn: Draw) -> Layout | None:
        """Return the reading of the parameters that was chosen in this configuration, if they had to be read."""
        reader = self.subject.reader
        return None if reader is None else reader.chosen.get(reader.key(drawn.arguments))

    def prove(self, drawn: Draw) -> None:
        """Remember that the reading of the parameters in this configuration is right."""
        if layout := self.layout_of(drawn):
            self.proven.add(layout)

    def add(self, *findings: Finding) -> None:
        self.diagnosis.findings += [one for one in findings if one.what not in self.diagnosis.names]
