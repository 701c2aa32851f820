"""What is timed on a GPU: a module called as it is, compiled, or in a CUDA graph, and matrix products alone."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .speed import Kind, Step

WARM_UPS = 3  # before a capture: one that takes long will do
SLOW = 0.2  # seconds


class Dry:
    """What is used of torch.cuda, in so far as a CPU can stand in for it: `--dry`."""

    Stream = type("Stream", (), {"wait_stream": lambda self, other: None})
    current_stream = Stream
    CUDAGraph = graph_pool_handle = object
    stream = staticmethod(nullcontext)
    synchronize = empty_cache = reset_peak_memory_stats = staticmethod(lambda: None)
    memory_allocated = staticmethod(lambda: 0)
    max_memory_allocated = staticmethod(lambda: 2**20)
    set_sync_debug_mode = staticmethod(lambda mode: None)
    get_device_name = staticmethod(lambda: "no GPU (a dry run: the times mean nothing)")

    @staticmethod
    def graph(graph: object, pool: object) -> nullcontext[None]:
        return nullcontext()

    class Event:
        """A moment, by the host's clock."""

        def __init__(self, enable_timing: bool) -> None:
            self.time = 0.0

        def record(self) -> None:
            self.time = time.perf_counter()

        def elapsed_time(self, end: Dry.Event) -> float:
            return (end.time - self.time) * 1e3


@dataclass
class Call:
    """A call of a module, as it is or by another callable on its parameters."""

    module: nn.Module
    x: Any
    training: bool
    options: dict[str, Any] = field(default_factory=dict)
    by: Any = None

    def __call__(self) -> None:
        if self.training:
            self.module.zero_grad(set_to_none=True)
            self._output().sum().backward()  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                self._output()

    def _output(self) -> Tensor:
        output = (self.by or self.module)(self.x, **self.options)[0]
        data: Tensor = output.data if isinstance(output, PackedSequence) else output
        return data


class Compiled(Call):
    """A call of a compiled module, which may write over what its last one returned."""

    def __call__(self) -> None:
        torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        super().__call__()


class Graphed:
    """A step captured in a CUDA graph, which a call replays. It keeps the tensors that the graph works on."""

    def __init__(self, cuda: Any, step: Step) -> None:
        self.cuda, self.step, self.graph = cuda, step, cuda.CUDAGraph()
        side, pool = cuda.Stream(), cuda.graph_pool_handle()
        side.wait_stream(cuda.current_stream())
        with cuda.stream(side):  # and when a capture fails, this one brings back the stream from before
            began = time.monotonic()
            for _ in range(WARM_UPS):
                if time.monotonic() < began + SLOW:
                    step()
            if isinstance(step, Call):
                step.module.zero_grad(set_to_none=True)  # so that the graph's are in memory of its own
            try:
                with cuda.graph(self.graph, pool=pool):
                    step()
            except Exception:
                with suppress(Exception):  # else torch takes the capture to be still on, and refuses all others
                    torch._C._cuda_endAllocateToPool(torch.cuda.current_device(), pool)
                raise
        cuda.current_stream().wait_stream(side)

    def __call__(self) -> None:
        if self.cuda is Dry:
            self.step()
        else:
            self.graph.replay()


def timed(cuda: Any, step: Step, calls: int) -> float:
    """Return the seconds of a call, by events around a block of them. Nothing else is under way."""
    start, end = cuda.Event(enable_timing=True), cuda.Event(enable_timing=True)
    cuda.synchronize()
    start.record()
    for _ in range(calls):
        step()
    end.record()
    cuda.synchronize()
    milliseconds: float = start.elapsed_time(end)
    return milliseconds / 1e3 / calls


def noise(*shape: int, **to: Any) -> Tensor:
    """Return numbers near 0 that repeat: to draw all of them would take longer than to compute with them."""
    count = math.prod(shape)
    return torch.randn(8191).to(**to).repeat(count // 8191 + 1)[:count].view(shape).div_(shape[-1] ** 0.5)


def products(kind: Kind, H_in: int, H: int, step_sizes: list[int], training: bool, **to: Any) -> Step:
    """Return the matrix products alone: of a layer and direction one for all inputs, then one a step; and back."""
    new, rows = partial(noise, **to), sum(step_sizes)
    D, projects = 2 if kind.options.get("bidirectional") else 1, "proj_size" in kind.options
    G, H_out = {"RNN": 1, "GRU": 3, "LSTM": 4}[kind.layer] * H, H // 2 if projects else H
    mm, there, back = torch.mm, list[Step](), list[Step]()
    for k in range(D * kind.options.get("num_layers", 1)):
        F = H_in if k < D else D * H_out
        x, gates, h, m = new(rows, F), new(rows, G), new(rows, H_out), new(rows, H)
        w_ih, w_hh, w_hr = new(G, F), new(G, H_out), new(H_out, H)
        dx, dh, dm, dw_ih, dw_hh, dw_hr = map(torch.empty_like, (x, h, m, w_ih, w_hh, w_hr))
        there.append(partial(mm, x, w_ih.t(), out=gates))
        back_of_k: list[Step] = [partial(mm, gates.t(), x, out=dw_ih), partial(mm, gates.t(), h, out=dw_hh)]
        back_of_k += [partial(mm, dh.t(), m, out=dw_hr)] * projects
        back_of_k += [partial(mm, gates, w_ih, out=dx)] * (k >= D)
        steps = zip(*(torch.split(tensor, step_sizes) for tensor in (gates, h, m, dh, dm)), strict=True)
        for gates_t, h_t, m_t, dh_t, dm_t in steps:
            there.append(partial(gates_t.addmm_, h_t, w_hh.t()))
            there += [partial(mm, m_t, w_hr.t(), out=h_t)] * projects
            back_of_k[:0] = [partial(mm, gates_t, w_hh, out=dh_t), *[partial(mm, dh_t, w_hr, out=dm_t)] * projects]
        back = back_of_k + back

    @torch.no_grad()
    def step() -> None:
        for product in there + back if training else there:
            product()

    return step
