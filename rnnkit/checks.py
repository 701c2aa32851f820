"""What a call must satisfy, with torch.nn's exceptions and messages, asked before anything is computed.

torch.nn checks shapes in Python and leaves the rest to its kernels. Messages of those kernels stand here where plain
torch operations would broadcast in silence, or would fail only halfway through the sequence.
"""

import numbers
import warnings
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from keyword import iskeyword
from types import FunctionType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from .equations import EQUATIONS, Equation

Size = tuple[int, ...]
Module = TypeVar("Module", bound=nn.Module)
#: Up to torch 2.14 its cells leave the state's rank to their kernels.
CELLS_CHECK_RANK = [int(part) for part in torch.__version__.split(".")[:2]] >= [2, 15]
PATHS = ("fast", "always fast", "fused", "readable")


def with_forward(module: type[Module]) -> type[Module]:
    """Give a class a copy of its base's `forward`: Python's TypeErrors then name that class, as torch.nn's do."""
    shared: Any = module.forward
    own = FunctionType(shared.__code__, shared.__globals__, shared.__name__, shared.__defaults__)
    own.__kwdefaults__, own.__annotations__, own.__doc__ = shared.__kwdefaults__, shared.__annotations__, shared.__doc__
    own.__module__, own.__qualname__ = module.__module__, f"{module.__qualname__}.forward"
    module.forward = own
    return module


def check_settings(path: Any, checkpoint_every: Any) -> None:
    """Check what a layer's attributes say of how it is to be run. Raises ValueError or TypeError."""
    if path not in PATHS:
        raise ValueError(f"path should be 'fast', 'always fast', 'fused' or 'readable', got: {path!r}")
    if checkpoint_every is None:
        return
    if isinstance(checkpoint_every, bool) or not isinstance(checkpoint_every, int):
        raise TypeError(f"checkpoint_every must be None or a positive number of steps, got {checkpoint_every!r}")
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be None or a positive number of steps, got {checkpoint_every}")


def check_options(
    dropout: Any, bias: Any, batch_first: Any, input_size: Any, hidden_size: Any, num_layers: Any, proj_size: Any
) -> None:
    """A layer's constructor arguments, in torch.nn's order. Raises ValueError or TypeError."""
    if not isinstance(dropout, numbers.Number) or not 0 <= dropout <= 1 or isinstance(dropout, bool):  # type: ignore[operator]
        raise ValueError(
            "dropout should be a number in range [0, 1] representing the probability of an element being zeroed"
        )
    if dropout > 0 and num_layers == 1:  # type: ignore[operator]
        warnings.warn(
            "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects "
            f"num_layers greater than 1, but got dropout={dropout} and num_layers={num_layers}",
            stacklevel=4,
        )
    for name, flag in ("bias", bias), ("batch_first", batch_first):
        if not isinstance(flag, bool):
            raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
    for name, size in ("input_size", input_size), ("hidden_size", hidden_size):
        if not isinstance(size, int):
            raise TypeError(f"{name} should be of type int, got: {type(size).__name__}")
        if size <= 0:
            raise ValueError(f"{name} must be greater than zero")
    if num_layers <= 0:
        raise ValueError("num_layers must be greater than zero")
    if proj_size < 0:
        raise ValueError("proj_size should be a positive integer or zero to disable projections")
    if proj_size >= hidden_size:
        raise ValueError("proj_size has to be smaller than hidden_size")


def check_equation(equation: Equation, letters: dict[str, int], taken: Iterable[str]) -> None:
    """Check an equation of the caller's by one step of zeros; `taken` are the names that it can't give its own.

    Raises ValueError unless the step takes and returns what the record says, with these sizes.
    """
    if equation.name in EQUATIONS:
        raise ValueError(f"{equation.name} is the name of torch.nn's own equation: give the step another")
    taken = [*taken, "igates", "hgates", "state", "training"]
    for name in (each.name for each in equation.parameters):
        if not name.isidentifier() or iskeyword(name) or name in taken:
            reason = "it is taken" if name in taken else "it is no name in Python"
            raise ValueError(f"{name!r} can't be the name of a parameter of the equation {equation.name}: {reason}")
    H, H_out = letters["H"], letters["H_out"]
    called = f"a step of the equation {equation.name}, with hidden_size={H} and an output of {H_out},"
    given, after, gates = trial(equation, letters, called)
    row = (len(given[0]), H), given[0].dtype
    for what, found, names in ("states", after, equation.state), ("gates", gates, equation.gates):
        expected = f"should return {len(names)} {what} of shape {row[0]} and {row[1]} in a tuple"
        if not isinstance(found, (tuple, list)) or not all(isinstance(t, Tensor) for t in found):
            raise ValueError(f"{called} {expected}, got: {type(found).__name__}")
        if [(t.shape, t.dtype) for t in found] != [row] * len(names):
            got = ", ".join(f"{tuple(t.shape)} {t.dtype}" for t in found)
            raise ValueError(f"{called} {expected}, got: {got}")
    if any(t._version for t in given):
        raise ValueError(f"{called} writes on what it is given: work out of place")
    if any(t.requires_grad for t in (*after, *gates)):
        raise ValueError(f"{called} holds a tensor that wants a gradient: name it in the record's parameters")


def trial(equation: Equation, letters: dict[str, int], called: str) -> tuple[list[Tensor], Any, Any]:
    """Take one step of zeros in float32. Return the tensors that were given, and the states and gates that came."""
    # What it writes on and which gradients it wants is seen; what it draws is of no seed of the caller's.
    with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]):

        def zeros(*sizes: int) -> Tensor:
            return torch.zeros(sizes, dtype=torch.float32, device="cpu")

        rows = letters["G"] * letters["H"]
        igates, hgates = zeros(2, rows), zeros(2, rows if equation.recurrent else 0)
        state = tuple(zeros(2, letters["H" if k else "H_out"]) for k in range(len(equation.state)))
        own = tuple(zeros(*each.sizes(**letters)) for each in equation.parameters)
        try:
            after, gates = equation.bound(own, training=False)(igates, hgates, state)
        except Exception as error:
            raise ValueError(f"{called} raises {type(error).__name__}: {error}") from error
    return [igates, hgates, *state, *own], after, gates


def autocasting(tensor: Tensor) -> bool:
    """Whether autocast is on where `tensor` lives."""
    device = tensor.device.type
    known = device in ("cpu", "cuda") or torch.amp.is_autocast_available(device)  # not every torch can trace this
    return known and torch.is_autocast_enabled(device)


def add_remedy(error: Exception, input: Any, hx: Any, states: int) -> None:
    """Note on an error what input and hx should be, where they are of another type: torch.nn's own words don't say."""
    wanted = "(h_0, c_0), a pair of tensors" if states == 2 else "a tensor" if states == 1 else f"{states} tensors"
    each = hx if isinstance(hx, (tuple, list)) and states > 1 else [hx]
    notes = []
    if not isinstance(input, (Tensor, PackedSequence)):
        notes.append(f"input should be a tensor or a PackedSequence, got: {type(input).__name__}")
    if hx is not None and (len(each) != states or not all(isinstance(s, Tensor) for s in each)):
        got = f"({', '.join(type(s).__name__ for s in each)})" if each is hx else type(hx).__name__
        notes.append(f"hx should be {wanted}, got: {got}")
    for note in notes:
        add_note(error, note)


def add_note(error: Exception, note: str) -> None:
    """Add a note to an error; Python 3.10 has none."""
    if hasattr(error, "add_note"):
        error.add_note(note)


def check_rank(mode: str, input: Tensor) -> None:
    """A layer's input is 2-D or 3-D."""
    if input.dim() not in (2, 3):
        kind = mode.split("_")[0]
        noun = "D tensor" if kind == "RNN" else "D"  # torch.nn says it in two ways
        raise ValueError(f"{kind}: Expected input to be 2D or 3D, got {input.dim()}{noun} instead")


def check_input(input: Tensor, weight: Tensor, input_size: int, rank: int) -> None:
    """A layer's input: dtype (under autocast that is autocast's affair), rank, last size."""
    if input.dtype != weight.dtype and not autocasting(input):
        raise ValueError(
            f"RNN input dtype ({input.dtype}) does not match weight dtype ({weight.dtype}). "
            f"Convert input: input.to({weight.dtype}), or convert model: model.to({input.dtype})"
        )
    if input.dim() != rank:
        raise RuntimeError(f"input must have {rank} dimensions, got {input.dim()}")
    if input.size(-1) != input_size:
        raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {input_size}, got {input.size(-1)}")


def check_hx_rank(hx: Any, states: int, rank: int) -> None:
    """hx, or each of (h_0, c_0), has as many dimensions as the input."""
    form = "batched" if rank == 3 else "unbatched"
    if states == 1:
        if hx.dim() != rank:
            raise RuntimeError(f"For {form} {rank}-D input, hx should also be {rank}-D but got {hx.dim()}-D tensor")
    elif hx[0].dim() != rank or hx[1].dim() != rank:
        raise RuntimeError(
            f"For {form} {rank}-D input, hx and cx should also be {rank}-D "
            f"but got ({hx[0].dim()}-D, {hx[1].dim()}-D) tensors"
        )


def check_packed(data: Tensor, batch_sizes: Tensor) -> None:
    """The rows of a packed input are what its batch sizes count."""
    if batch_sizes.dtype != torch.int64:
        found = torch.empty(0, dtype=batch_sizes.dtype).type().removeprefix("torch.").removesuffix("Tensor")
        raise RuntimeError(f"expected scalar type Long but found {found}")
    sizes = batch_sizes.tolist()
    start, before = 0, sizes[0] if sizes else 0
    for size in sizes:
        if start + size > data.size(0):
            raise RuntimeError(f"start ({start}) + length ({size}) exceeds dimension size ({data.size(0)}).")
        if size > before:
            raise RuntimeError(
                f"The size of tensor a ({before}) must match the size of tensor b ({size}) at non-singleton dimension 0"
            )
        start, before = start + size, size
    if start < data.size(0):
        raise RuntimeError(f"batch_sizes count {start} rows, but the packed data have {data.size(0)}")


def check_packed_pair(
    data: Tensor,
    batch_sizes: Tensor,
    hx: Sequence[Tensor],
    expected: Sequence[Size],
    weights: Sequence[Tensor],
    bias: bool,
    bidirectional: bool,
) -> None:
    """A packed LSTM's input and (h_0, c_0): torch.nn leaves these to its kernel, which crashes on some of them.

    expected sizes of (h_0, c_0); weights all of them
    """
    (h, c), (layers, N, H_out), G = hx, expected[0], weights[0].size(0)
    # The kernel takes it from the states whether there is a projection, and counts the weights by that.
    each = 2 + 2 * bias + (h.size(2) != c.size(2))
    if len(weights) % each:
        raise RuntimeError("got an incorrect number of RNN parameters")
    if bidirectional and (h.size(0) % 2 or len(weights) // each % 2):
        raise RuntimeError("Odd number of params or hiddens given to a bidirectional RNN")
    for k, (name, state) in enumerate((("h_0", h), ("c_0", c))):
        if state.dim() != 3:
            raise RuntimeError(f"For batched 3-D input, hx[{k}] ({name}) should be 3-D but got {state.dim()}-D tensor")
    if h.size(0) != layers:
        raise RuntimeError("Expected more hidden states in stacked_rnn")
    if len(weights) // each != layers:
        raise RuntimeError("Expected more weights in stacked_rnn")
    if c.size(0) < layers:
        raise RuntimeError(f"Expected c_0 size(0) to be {layers} (num_layers * num_directions), but got {c.size(0)}")
    if data.size(-1) != weights[0].size(1):
        F.linear(data, weights[0], weights[2] if bias else None)  # which raises, in torch's words
    if data.dim() > 2:
        shape = list(torch.broadcast_shapes((N, G), (N, *data.shape[1:-1], G)))  # type: ignore[no-untyped-call]
        raise RuntimeError(f"output with shape {[N, G]} doesn't match the broadcast shape {shape}")
    if h.size(2) != H_out:
        F.linear(h.new_empty(N, h.size(2)), weights[1], weights[3] if bias else None)  # likewise
    if h.size(1) == 1 != N:
        raise RuntimeError(f"output with shape {[1, G]} doesn't match the broadcast shape {[N, G]}")
    if h.size(1) != N:
        raise RuntimeError(
            f"The size of tensor a ({h.size(1)}) must match the size of tensor b ({N}) at non-singleton dimension 0"
        )
    for dim in (1, 0):  # c_0 is broadcast where it can be
        a, b = expected[1][dim + 1], c.size(dim + 1)
        if b not in (1, a):
            raise RuntimeError(
                f"The size of tensor a ({a}) must match the size of tensor b ({b}) at non-singleton dimension {dim}"
            )
    if bidirectional and c.shape[1:] != expected[1][1:]:
        start = 0
        for size in reversed(batch_sizes.tolist()):  # in reverse, as sequences begin, their rows are joined
            rows = c[0].narrow(0, start, size - start)
            if 0 < start < size:
                torch.cat((rows.new_empty(0, expected[1][2]), rows))
            start = size


# Lengths and resets, which torch.nn doesn't have: ValueError for a value or a shape, TypeError for a type ------------


def check_padded(packed: bool, **given: Any) -> None:
    """Check that with a packed input there are no lengths and resets, and without resets nothing to reset to."""
    for name, value in given.items():
        if packed and value is not None:
            raise ValueError(f"{name}: expected a padded input beside it, (L, N, H_in), got a PackedSequence")
    if given["reset_to"] is not None and given["resets"] is None:
        raise ValueError("reset_to: expected resets beside it, which say where, got none")


def check_lengths(lengths: Any, shape: Size) -> Tensor:
    """Return lengths as a tensor of int64, once its type and shape have been checked."""
    if not isinstance(lengths, (Tensor, list, tuple, int)):
        raise TypeError(f"lengths: expected a tensor or a list of integers, got {type(lengths).__name__}")
    if not isinstance(lengths, Tensor):
        dtype = torch.int64 if lengths in ([], ()) else None  # torch makes a float of nothing
        try:
            lengths = torch.as_tensor(lengths, dtype=dtype, device="cpu")
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"lengths: expected a tensor or a list of integers, got {lengths!r}") from error
    found: Tensor = lengths
    if found.dtype == torch.bool or found.is_floating_point() or found.is_complex():
        raise TypeError(f"lengths: expected integers, got {found.dtype} of shape {tuple(found.shape)}")
    if found.shape != shape:
        raise ValueError(f"lengths: expected the shape (N,) = {shape}, got {tuple(found.shape)}")
    return found.to(torch.int64)


def check_length_values(lengths: Tensor, L: int) -> None:
    """Check that lengths, which can be read, are from 0 to L."""
    if lengths.numel():
        least, most = (int(t) for t in lengths.aminmax())
        if least < 0 or most > L:
            raise ValueError(
                f"lengths: expected values from 0 to L = {L}, got {least if least < 0 else most}"
                f" in a tensor of shape {tuple(lengths.shape)}"
            )


def check_resets(resets: Any, shape: Size, letters: str) -> None:
    """Check the type and the shape of resets; `letters` name the latter."""
    if not isinstance(resets, Tensor):
        raise TypeError(f"resets: expected a tensor of booleans, got {type(resets).__name__}")
    if resets.dtype != torch.bool:
        raise TypeError(f"resets: expected torch.bool, got {resets.dtype} of shape {tuple(resets.shape)}")
    if resets.shape != shape:
        raise ValueError(f"resets: expected the shape {letters} = {shape}, got {tuple(resets.shape)}")


def check_reset_to(reset_to: Any, sizes: Sequence[Size], input: Tensor) -> None:
    """Check the state to which rows are reset: as hx, of the `sizes` of hx and of the input's dtype and device."""
    states = [reset_to] if len(sizes) == 1 else reset_to
    if len(sizes) == 1 and not isinstance(reset_to, Tensor):
        raise TypeError(f"reset_to: expected a tensor, as hx, got {type(reset_to).__name__}")
    if not isinstance(states, (tuple, list)) or len(states) != len(sizes):
        raise TypeError(f"reset_to: expected a tuple of {len(sizes)} tensors, as hx, got {type(reset_to).__name__}")
    for k, (state, size) in enumerate(zip(states, sizes, strict=True)):
        name = "reset_to" if len(sizes) == 1 else f"reset_to[{k}]"
        if not isinstance(state, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(state).__name__}")
        if state.shape != size:
            raise ValueError(f"{name}: expected the shape of hx, {size}, got {tuple(state.shape)}")
        if state.dtype != input.dtype and not autocasting(input):
            raise TypeError(f"{name}: expected the input's dtype, {input.dtype}, got {state.dtype}")
        if state.device != input.device:
            raise ValueError(f"{name}: expected the input's device, {input.device}, got {state.device}")


def check_hx_dtype(h: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    """The state's dtype: a product of no rows raises torch's own message, and computes nothing."""
    if h.dtype != weight.dtype and not autocasting(h):
        F.linear(h.new_empty(0, weight.size(-1)), weight, bias)


def check_devices(input: Tensor, hx: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
    """Everything lives where the input lives."""
    device = input.device
    for name, tensors in ("hidden", hx), ("parameter", weights):
        for tensor in tensors:
            if tensor.device != device:
                raise RuntimeError(
                    f"Input and {name} tensors are not at the same device, "
                    f"found input tensor at {device} and {name} tensor at {tensor.device}"
                )


def check_tensors(tensors: Sequence[Any], argument: int) -> None:
    """Each is a tensor: a bias set to None, say, is not taken for one that was never asked for."""
    for position, tensor in enumerate(tensors):
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"expected Tensor as element {position} in argument {argument}, but got {type(tensor).__name__}"
            )


def check_pair(hx: Any, weights: Sequence[Any], packed: bool, states: int = 2, name: str = "lstm") -> None:
    """hx of an LSTM is a tuple or a list, of two; an equation of your own, of that name, may carry more."""
    if isinstance(hx, (tuple, list)):
        check_tensors(hx, 2 if packed else 1)
        if len(hx) != states:
            raise RuntimeError(f"{name} expects {'two' if states == 2 else states} hidden states")
        return
    # The words of torch's argument parser, which sets against each other what lstm() was given and what it takes.
    given, params = type(hx).__name__, f"!list of [{', '.join(type(weight).__name__ for weight in weights)}]!"
    expected = (
        "tuple of Tensors hx, tuple of Tensors params, bool has_biases, int num_layers, float dropout, bool train, "
        "bool bidirectional"
    )
    if packed:
        got = f"Tensor, Tensor, {given}, list, bool, int, float, bool, bool"
        as_packed = f"Tensor, Tensor, !{given}!, {params}, bool, int, float, bool, bool"
        as_padded = f"Tensor, !Tensor!, !{given}!, {params}, !bool!, int, !float!, bool, bool"
    else:
        got = f"Tensor, {given}, list, bool, int, float, bool, bool, bool"
        as_packed = f"Tensor, {given}, {params}, !bool!, !int!, !float!, !bool!, bool, bool"
        as_padded = f"Tensor, !{given}!, {params}, bool, int, float, bool, bool, bool"
    invalid = "      didn't match because some of the arguments have invalid types: "
    raise TypeError(
        f"lstm() received an invalid combination of arguments - got ({got}), but expected one of:\n"
        f" * (Tensor data, Tensor batch_sizes, {expected})\n{invalid}({as_packed})\n"
        f" * (Tensor input, {expected}, bool batch_first)\n{invalid}({as_padded})\n"
    )


def check_cell(input: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, gates: int) -> None:
    """A cell's sizes: input (N, H_in), each state (N, H), weights (G*H, H_in) and (G*H, H)."""
    tracing = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
    with warnings.catch_warnings() if tracing else nullcontext():
        if tracing:  # a trace warns of sizes that are looked at in Python: torch.nn's kernels look, too
            warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        _check_cell(input, hx, w_ih, w_hh, gates)


def _check_cell(input: Tensor, hx: Sequence[Tensor], w_ih: Tensor, w_hh: Tensor, gates: int) -> None:
    H = w_hh.size(1)
    if input.size(1) != w_ih.size(1):
        raise RuntimeError(f"input has inconsistent input_size: got {input.size(1)} expected {w_ih.size(1)}")
    for name, weight in ("weight_ih", w_ih), ("weight_hh", w_hh):
        if weight.size(0) != gates * H:
            raise RuntimeError(
                f"{name} first dim must be {gates} * hidden_size = {gates * H}, but got {weight.size(0)}"
            )
    for k, state in enumerate(hx):
        if CELLS_CHECK_RANK and state.dim() != 2:
            raise RuntimeError(f"Expected 2D hidden{k} (batch x hidden_size), but got {state.dim()}D tensor")
        if state.size(0) != input.size(0):
            raise RuntimeError(f"Input batch size {input.size(0)} doesn't match hidden{k} batch size {state.size(0)}")
        if state.size(1) != H:
            raise RuntimeError(f"hidden{k} has inconsistent hidden_size: got {state.size(1)}, expected {H}")
    if gates > 1 and hx[0].dim() > 2 and hx[0].size(-1) == H:  # a 2-D state beside a 1-D input, and N = H
        if H == 1 or (gates == 4 and H % 4):  # where torch.nn crashes the interpreter
            raise RuntimeError(f"For unbatched 1-D input, hx should also be 1-D but got {hx[0].dim() - 1}-D tensor")
        raise RuntimeError(
            f"The size of tensor a ({gates * H}) must match the size of tensor b ({H}) at non-singleton dimension 2"
        )
