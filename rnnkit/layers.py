"""RNN, LSTM, GRU: an equation over time, directions and layers. One forward serves all three."""

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, overload

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from . import checks, compiler, paths
from .equations import EQUATIONS, Equation, State
from .sequence import Form
from .stack import Results, Stack, Weights
from .untraced import untraced

Lengths: TypeAlias = Tensor | Sequence[int] | int
HAS_ONEDNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]


class RNNBase(nn.Module):
    """What the three layers share, which is everything but their constructors' signatures.

    mode is a key of EQUATIONS, else ValueError; the other arguments are those of the layers. In its place may stand an
    Equation of your own, `RNNBase(equation, 10, 20, num_layers=2)`: all that layers have, it has from here, its own
    parameters among the others. ValueError if its step doesn't take and return what the record says.

    Calls take three arguments by name that torch.nn's layers haven't, `rnn(input, hx, lengths=lengths)`. What they are
    given is not packed, so they are for a padded or an unbatched input.

    lengths    (N,), integers from 0 to L on any device, or a list: the steps that each row has. As if the input were
               packed by them and the output padded with zeros up to L: h_n is the state at each row's end, where the
               reverse direction begins. Unbatched it is one number. A row of length 0 keeps its state
    resets     booleans, (L, N), (N, L) with batch_first, (L,) unbatched: where one is True, the state becomes reset_to
               before that step is taken, and no gradient crosses. As if every segment were run alone: a reverse
               direction begins anew at each segment's end. It is True at the first step of an episode, not at the
               last, which is what `done` marks
    reset_to   a state as hx, which may be learned; zeros by default

    On a CPU rows are packed by these and cost as much as packed ones. On a device, and in graphs and transforms, they
    are computed with and never read: nobody waits for the device, and values out of range pass unchecked. Otherwise
    they are refused before anything is computed: TypeError for a wrong type or dtype; ValueError for a wrong shape, a
    length out of range, a packed input, or a reset_to without resets.

    >>> output, h_n = GRU(10, 20)(torch.randn(5, 3, 10), lengths=[2, 5, 0])  # output[2:, 0] is zero, and h_n[:, 2]

    Two attributes say how calls are computed. Set them on a module, on a class, or for all layers on RNNBase;
    `rnnkit.explain(module, input, hx)` tells which path a call takes, and why.

    path              "fast", the default: kernels in place, differentiated by hand, where they serve and pay, else
                      the readable path; "always fast": also where they don't pay, as for a few steps; "readable":
                      the equation in plain torch operations, which has the bits of torch.nn's native kernels
    checkpoint_every  None, the default: the fast path keeps what backward reads, for an LSTM six numbers a step and
                      unit. k: it keeps a state every k steps instead, and takes all steps once more on the way back.
                      TypeError for what is no number, ValueError for one below 1
    """

    __constants__ = [
        "mode",
        "input_size",
        "hidden_size",
        "num_layers",
        "bias",
        "batch_first",
        "dropout",
        "bidirectional",
        "proj_size",
    ]

    path: Literal["fast", "always fast", "fused", "readable"] = "fast"
    checkpoint_every: int | None = None

    _own_equation: Equation | None = None
    mode: str
    input_size: int
    hidden_size: int
    num_layers: int
    bias: bool
    batch_first: bool
    dropout: float
    bidirectional: bool
    proj_size: int

    def __init__(
        self,
        mode: str | Equation,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__()
        if isinstance(mode, Equation):
            self._own_equation = mode
        self.mode = mode.name if isinstance(mode, Equation) else mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        checks.check_options(dropout, bias, batch_first, input_size, hidden_size, num_layers, proj_size)
        if self._own_equation is None and mode not in EQUATIONS:
            try:
                raise ValueError("Unrecognized RNN mode: " + self.mode)
            except (TypeError, ValueError) as error:  # what is no text can't be added
                checks.add_note(error, f"mode should be one of {', '.join(EQUATIONS)}, or an Equation")
                raise

        D = 2 if bidirectional else 1
        H_out = proj_size or hidden_size
        self._all_weights: list[list[str]] = []
        for k in range(num_layers):
            shapes = self._shapes(D * H_out if k else input_size, H_out)
            for suffix in ("", "_reverse")[:D]:
                self._all_weights.append([f"{name}_l{k}{suffix}" for name in shapes])
                for name, shape in zip(self._all_weights[-1], shapes.values(), strict=True):
                    setattr(self, name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def equation(self) -> Equation:
        """The record of the recurrence: the one that was given, or that of `mode`.

        LSTM and GRU know theirs: their `mode` is torch.nn's to have, and a caller's to set.
        """
        return self._own_equation or EQUATIONS[self.mode]

    @property
    def _kind(self) -> str:
        """The name of torch.nn's layer, which its messages begin with."""
        return self.mode

    def _shapes(self, H_in: int, H_out: int) -> dict[str, Any]:
        """Return the names and shapes of the parameters of one direction of a layer, in torch's order."""
        equation, H = self.equation, self.hidden_size
        G = len(equation.gates)
        shapes: dict[str, Any] = {"weight_ih": (G * H, H_in)}
        if equation.recurrent:
            shapes |= {"weight_hh": (G * H, H_out)}
        if self.bias:
            shapes |= {"bias_ih": G * H}
        if self.bias and equation.recurrent:
            shapes |= {"bias_hh": G * H}
        if self.proj_size:
            shapes |= {"weight_hr": (H_out, H)}
        letters = {"H": H, "H_cell": H, "H_in": H_in, "H_out": H_out, "G": G}
        if self._own_equation is not None:
            checks.check_equation(equation, letters, shapes)
        return shapes | {own.name: own.sizes(**letters) for own in equation.parameters}

    def forward(
        self, input: Any, hx: Any = None, *, lengths: Any = None, resets: Any = None, reset_to: Any = None
    ) -> tuple[Any, Any]:
        """Run the layers over `input` from the state `hx` on; the class's description has shapes and errors."""
        if torch.compiler.is_compiling():
            try:
                form, stack = self.record(input, hx, lengths, resets, reset_to)
            except (
                Exception
            ):  # the eager call below raises it again: a frame that raises, the compiler gives up for good
                if compiler.exporting():
                    raise
            else:
                return self._results(form, stack)
        return self._eager(input, hx, lengths, resets, reset_to)

    @untraced
    def _eager(self, input: Any, hx: Any, *ragged: Any) -> tuple[Any, Any]:
        try:
            form, stack = self.record(input, hx, *ragged)
        except Exception as error:
            checks.add_remedy(error, input, hx, self._state_count)
            raise
        return self._results(form, stack)

    def record(
        self, input: Any, hx: Any, lengths: Any = None, resets: Any = None, reset_to: Any = None
    ) -> tuple[Form, Stack]:
        """Return the form of a call and the record that its path takes, once everything in it has been checked."""
        form = self._form(input, hx)
        ragged = lengths is not None or resets is not None or reset_to is not None
        if ragged:
            checks.check_padded(form.packed is not None, lengths=lengths, resets=resets, reset_to=reset_to)
        batch = form.batch(input)
        N = self._packed_batch(form.packed, hx) if form.packed is not None else batch.size(form.batch_dim)
        if hx is not None:
            hx = hx if form.batched else self._each(hx, lambda state: state.unsqueeze(1))
            hx = self.permute_hidden(hx, form.sorted_indices)
        all_weights = self._fetch_weights()
        self._check(batch, hx, form.batch_sizes, all_weights, N)
        states = self._first_states(batch, hx, N, form)
        weights = [self._as_weights(*each) for each in all_weights]
        equation = self.equation
        count = len(equation.parameters)
        own = [tuple(each[-count:]) for each in all_weights] if count else ()
        dropout = self.dropout if self.training else 0.0
        settings = self.bidirectional, dropout, self.path, self.checkpoint_every
        rows, sizes = form.rows(batch), form.batch_sizes
        stack = Stack(equation, rows, states, weights, sizes, *settings, own=own, training=self.training)
        return form, self._ragged(form, stack, lengths, resets, reset_to) if ragged else stack

    def _ragged(self, form: Form, stack: Stack, lengths: Any, resets: Any, reset_to: Any) -> Stack:
        """Return the stack with lengths and resets, once they have been checked; values only where they can be read."""
        L, N = stack.input.shape[:2]
        if lengths is not None:
            lengths = checks.check_lengths(lengths, (N,) if form.batched else ())
            stack = stack._replace(lengths=lengths if form.batched else lengths.unsqueeze(0))
        if resets is not None:
            shape, letters = ((L, N), "(L, N)") if form.batched else ((L,), "(L,)")
            if form.batched and form.batch_first:
                shape, letters = (N, L), "(N, L)"
            checks.check_resets(resets, shape, letters)
            resets = resets if form.batched else resets.unsqueeze(form.batch_dim)
            states = self._first_states(stack.input, None, N, form)
            if reset_to is not None:
                sizes = self._state_sizes(N)
                checks.check_reset_to(
                    reset_to, sizes if form.batched else [(size[0], size[2]) for size in sizes], stack.input
                )
                reset_to = reset_to if form.batched else self._each(reset_to, lambda state: state.unsqueeze(1))
                states = self._first_states(stack.input, reset_to, N, form)
            stack = stack._replace(resets=form.rows(resets), reset_to=states)
        if stack.lengths is not None and paths.packs(stack):
            checks.check_length_values(stack.lengths, L)
        return stack

    def _results(self, form: Form, stack: Stack, run: Callable[[Stack], Results] = paths.run) -> tuple[Any, Any]:
        """Run the layers, and return what they give in the form of the call."""
        output, finals = run(stack)
        h_n = tuple(torch.stack(states) for states in zip(*finals, strict=True))  # each (D*num_layers, N, ...)
        if self._fused_by_autocast(form, stack.input) and not stack.ragged:
            dtype = torch.get_autocast_dtype("cpu")
            output, h_n = output.to(dtype), tuple(state.to(dtype) for state in h_n)
        return form.output(output), self._restored(form, h_n)

    def _form(self, input: Any, hx: Any) -> Form:
        """Return the form of a call, once the ranks of a padded or unbatched one have been checked."""
        form = Form.of(input, self.batch_first)
        if form.packed is None:
            checks.check_rank(self._kind, input)
            if hx is not None:
                checks.check_hx_rank(hx, self._state_count, input.dim())
        return form

    def _restored(self, form: Form, h_n: State) -> Any:
        """Return the states after the last step as the caller gives them: in his order, without N if unbatched."""
        hx = self._given(h_n)
        if not form.batched:
            hx = self._each(hx, lambda state: state.squeeze(1))
        return self.permute_hidden(hx, form.unsorted_indices)

    def _fused_by_autocast(self, form: Form, rows: Tensor) -> bool:
        """Say whether torch.nn hands this call to oneDNN's LSTM: autocast runs that wholly in its dtype, states too."""
        return (
            self._kind == "LSTM"
            and torch.is_autocast_enabled("cpu")
            and form.packed is None
            and rows.device.type == "cpu"
            and HAS_ONEDNN
            and bool(torch.backends.mkldnn.enabled)
            and self.proj_size == 0
            and rows.dtype == torch.float32
            and rows.numel() > 0
        )

    def _packed_batch(self, packed: PackedSequence, hx: Any) -> int:
        """Return N: rows with no step at all are counted by the indices alone, and are the last of the state's."""
        if packed.sorted_indices is not None:
            return packed.sorted_indices.size(0)
        if hx is not None and (len(packed.batch_sizes) == 0 or torch.compiler.is_compiling()):
            return self._tuple(hx)[0].size(1)
        return int(packed.batch_sizes[0]) if len(packed.batch_sizes) else 0

    @property
    def _state_count(self) -> int:
        return len(self.equation.state)

    def _given(self, states: tuple[Tensor, ...]) -> Any:
        """Return states as hx gives them: the tensor where there is one."""
        return states if len(states) > 1 else states[0]

    def _tuple(self, hx: Any) -> tuple[Tensor, ...]:
        return (hx,) if self._state_count == 1 else tuple(hx)

    def _each(self, hx: Any, function: Callable[[Tensor], Tensor]) -> Any:
        """Return `function` of hx, or of each of (h, c)."""
        return function(hx) if self._state_count == 1 else tuple(function(hx[k]) for k in range(self._state_count))

    def _first_states(self, batch: Tensor, hx: Any, N: Any, form: Form) -> list[State]:
        """Return the state before the first step of each layer and direction."""
        if hx is None:
            of_h, *others = self._state_sizes(N)
            h = batch.new_zeros(of_h[1:])
            return [(h, *[h if size == of_h else batch.new_zeros(size[1:]) for size in others])] * of_h[0]
        if form.packed is not None and self._kind == "LSTM":
            hx = hx[0], hx[1].expand(-1, N, self.hidden_size)  # torch.nn takes a c_0 that can be broadcast
        return list(zip(*(state.unbind(0) for state in self._tuple(hx)), strict=False))

    def _state_sizes(self, N: Any) -> list[tuple[int, ...]]:
        """Return (D*num_layers, N, H_out) of h, then (D*num_layers, N, H_cell) of what else the equation carries."""
        layers, H = self.num_layers * (2 if self.bidirectional else 1), self.hidden_size
        of_h = (layers, N, self.proj_size if self.proj_size > 0 else H)
        return [of_h] + [(layers, N, H)] * (self._state_count - 1)

    def _as_weights(self, w_ih: Tensor, *rest: Any) -> Weights:
        """Return an entry of `all_weights` under the names of what it holds. An equation's own are left out."""
        if not self.equation.recurrent:  # nothing reads h, by no weight_hh and no bias_hh
            w_hh = w_ih.new_empty(0, self.proj_size or self.hidden_size)
            rest = w_hh, *rest[: self.bias], *[None] * self.bias, *rest[self.bias :]
        b_ih, b_hh = rest[1:3] if self.bias else (None, None)
        return Weights(w_ih, rest[0], b_ih, b_hh, rest[1 + 2 * self.bias] if self.proj_size > 0 else None)

    @property
    def _flat_weights_names(self) -> list[str]:
        return [name for names in self._all_weights for name in names]

    @property
    def _flat_weights(self) -> list[Any]:
        return [weight for weights in self._fetch_weights() for weight in weights]

    @_flat_weights.setter
    def _flat_weights(self, weights: Sequence[Any]) -> None:
        """Compute with `weights` until a parameter is replaced, as torch.nn does: higher, for one, sets them."""
        vars(self)["_given_weights"] = [*weights], [getattr(self, name) for name in self._flat_weights_names]

    @property
    def all_weights(self) -> list[list[Any]]:
        """The parameters, a list for each layer and direction, as they are now: one that was replaced is seen."""
        return self._fetch_weights()

    def _fetch_weights(self) -> list[list[Any]]:
        # No property: nn.Module takes an AttributeError inside one for the want of the property, not of the weight.
        known = self._parameters
        try:  # most are there, and are found there faster
            weights = [[known[name] for name in names] for names in self._all_weights]
        except KeyError:
            weights = [[getattr(self, name) for name in names] for names in self._all_weights]
        if "_given_weights" not in vars(self):
            return weights
        given, then = vars(self)["_given_weights"]
        if all(now is before for now, before in zip(chain(*weights), then, strict=True)):
            each = iter(given)
            return [[next(each) for _ in names] for names in self._all_weights]
        del vars(self)["_given_weights"]
        return weights

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        vars(self).pop("_given_weights", None)  # a copy computes with its parameters, as torch.nn's does

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # What `_flat_weights` was set to is not moved along, so it is no more what is computed with.
        vars(self).pop("_given_weights", None)
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def flatten_parameters(self) -> None:
        """Nothing: there is no flat buffer to rebuild. Here because programs call it."""

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), in the order of `parameters()`, as torch.nn does.

        An equation's own parameters are drawn anew, once that is done, where it says how.
        """
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)
        own = self.equation.parameters
        with torch.no_grad():
            for weights in self._fetch_weights() if own else []:
                for each, parameter in zip(own, weights[-len(own) :], strict=True):
                    if each.draw is not None:
                        each.draw(parameter)

    def permute_hidden(self, hx: Any, permutation: Tensor | None) -> Any:
        """hx with its batch in another order."""
        return hx if permutation is None else self._each(hx, lambda state: state.index_select(1, permutation))

    def _check(self, batch: Tensor, hx: Any, batch_sizes: Tensor | None, all_weights: list[list[Any]], N: int) -> None:
        """Check a call beyond its ranks. A graph can't ask what batch_sizes hold; its operator does."""
        checks.check_settings(self.path, self.checkpoint_every)
        tracing, flat_weights = torch.compiler.is_compiling(), [w for weights in all_weights for w in weights]
        if self._kind != "LSTM" or batch_sizes is None or tracing:
            hidden, cls = hx, type(self)
            own = cls.check_forward_args is not RNNBase.check_forward_args
            if hx is None and (own or (not tracing and self._checks_states)):  # torch.nn asks about the zeros, too
                hidden = self._given(tuple(batch.new_zeros(size) for size in self._state_sizes(N)))
            if own:
                self.check_forward_args(batch, hidden, batch_sizes)
            else:
                self._check_sizes(batch, hidden, batch_sizes, N, flat_weights[0])
        if hx is not None and self._state_count > 1:
            name = "lstm" if self._own_equation is None else self.mode
            checks.check_pair(hx, flat_weights, batch_sizes is not None, self._state_count, name)
        states = () if hx is None else self._tuple(hx)
        checks.check_tensors(flat_weights, argument=2 if batch_sizes is None else 3)
        if batch_sizes is None:
            checks.check_devices(batch, states, flat_weights)
        elif not tracing:
            checks.check_packed(batch, batch_sizes)
            if self._kind == "LSTM":
                sizes = self._state_sizes(N)
                pair = (
                    [batch.new_empty(size) for size in sizes] if hx is None else hx
                )  # whose sizes alone are looked at
                checks.check_packed_pair(batch, batch_sizes, pair, sizes, flat_weights, self.bias, self.bidirectional)
        if self.equation.recurrent:
            bias = flat_weights[3] if self.bias else None
            checks.check_hx_dtype(states[0] if states else batch, flat_weights[1], bias)

    @property
    def _checks_states(self) -> bool:
        """Whether a subclass has methods of its own for that."""
        cls, of_c = type(self), "get_expected_cell_size"
        return (
            cls.check_hidden_size is not RNNBase.check_hidden_size
            or cls.get_expected_hidden_size is not RNNBase.get_expected_hidden_size
            or getattr(cls, of_c, None) is not (getattr(LSTM, of_c) if self._kind == "LSTM" else None)
        )

    def check_forward_args(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None) -> None:
        """Raise unless the input's dtype, rank and size fit and, where a state is given, its sizes."""
        weight = getattr(self, self._all_weights[0][0])
        self._check_sizes(input, hidden, batch_sizes, self._batch(input, batch_sizes), weight)

    def _check_sizes(self, input: Tensor, hidden: Any, batch_sizes: Tensor | None, N: int, weight: Tensor) -> None:
        """Check what `check_forward_args` does, by N and the first weight, which is read once if parametrized."""
        if type(self).check_input is RNNBase.check_input:
            checks.check_input(input, weight, self.input_size, rank=3 if batch_sizes is None else 2)
        else:
            self.check_input(input, batch_sizes)
        if hidden is None:
            return
        sizes = self._expected_sizes(input, batch_sizes, N)
        for k, (state, size) in enumerate(zip(self._tuple(hidden), sizes, strict=False)):
            message = () if len(sizes) == 1 else (f"Expected hidden[{k}] size {{}}, got {{}}",)
            self.check_hidden_size(state, size, *message)

    def _expected_sizes(self, input: Tensor, batch_sizes: Tensor | None, N: int) -> list[Any]:
        """Return the sizes of the state, which a subclass may have its own methods for."""
        sizes: list[Any] = self._state_sizes(N)
        if type(self).get_expected_hidden_size is not RNNBase.get_expected_hidden_size:
            sizes[0] = self.get_expected_hidden_size(input, batch_sizes)
        return sizes

    def get_expected_hidden_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, ...]:
        """The size of h_0, (D*num_layers, N, H_out)."""
        return self._state_sizes(self._batch(input, batch_sizes))[0]

    def _batch(self, input: Tensor, batch_sizes: Tensor | None) -> int:
        return input.size(0 if self.batch_first else 1) if batch_sizes is None else int(batch_sizes[0])

    def check_input(self, input: Tensor, batch_sizes: Tensor | None) -> None:
        weight = getattr(self, self._all_weights[0][0])
        checks.check_input(input, weight, self.input_size, rank=3 if batch_sizes is None else 2)

    def check_hidden_size(
        self, hx: Tensor, expected_hidden_size: tuple[int, ...], msg: str = "Expected hidden size {}, got {}"
    ) -> None:
        if hx.size() != expected_hidden_size:
            raise RuntimeError(msg.format(expected_hidden_size, list(hx.size())))

    def extra_repr(self) -> str:
        options = {
            "proj_size": 0,
            "num_layers": 1,
            "bias": True,
            "batch_first": False,
            "dropout": 0,
            "bidirectional": False,
        }
        shown = [] if self._own_equation is None else [self.mode]
        shown.append(f"{self.input_size}, {self.hidden_size}")
        for name, default in options.items():
            value = getattr(self, name)
            if value is not default if isinstance(default, bool) else value != default:  # bidirectional=0 is shown
                shown.append(f"{name}={value}")
        return ", ".join(shown)


@checks.with_forward
class RNN(RNNBase):
    """Layers of Elman's network: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in place of tanh.

    input_size     H_in, features of the input
    hidden_size    H_cell, features of the state
    num_layers     layers on top of each other, each of which reads the output of the one below; default 1
    nonlinearity   "tanh", the default, or "relu"
    bias           False: without b_ih and b_hh
    batch_first    True: a padded input and output are (N, L, ...) in place of (L, N, ...); states are not concerned
    dropout        probability with which what a layer hands to the next is zeroed in training; default 0
    bidirectional  True: each layer also reads from the last step to the first; D is 2, else 1
    device, dtype  of the parameters

    Calls `rnn(input, hx=None)` take and return, with lengths=, resets= and reset_to= as RNNBase has them,

    input          (L, N, H_in), (L, H_in) unbatched, or a PackedSequence
    hx             h_0 (D*num_layers, N, H_cell), (D*num_layers, H_cell) unbatched; zeros by default
    output         every step's h of the last layer (L, N, D*H_cell), forward before reverse; packed if the input is
    h_n            every layer's last h, shaped as h_0

    Attributes `path` and `checkpoint_every` say how it is computed, see RNNBase. The constructor raises ValueError for
    a size or a probability out of range and TypeError for a wrong type; a call ValueError or RuntimeError for a wrong
    rank, size or dtype, before anything is computed. Types and messages are torch.nn.RNN's.

    >>> rnn = RNN(10, 20, num_layers=2)
    >>> output, h_n = rnn(torch.randn(5, 3, 10))  # (5, 3, 20) and (2, 3, 20)
    """

    nonlinearity: str

    if TYPE_CHECKING:

        def __init__(
            self,
            input_size: int,
            hidden_size: int,
            num_layers: int = 1,
            nonlinearity: str = "tanh",
            bias: bool = True,
            batch_first: bool = False,
            dropout: float = 0.0,
            bidirectional: bool = False,
            device: Any = None,
            dtype: Any = None,
        ) -> None: ...

        @overload
        def __call__(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Lengths | None = None,
            resets: Tensor | None = None,
            reset_to: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]: ...
        @overload
        def __call__(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...
        def __call__(self, input: Any, hx: Any = None, **ragged: Any) -> Any: ...

    else:

        def __init__(self, *args, **kwargs):
            refuse_projection(kwargs)
            if len(args) > 3:
                self.nonlinearity = args[3]
                args = args[:3] + args[4:]
            else:
                self.nonlinearity = kwargs.pop("nonlinearity", "tanh")
            if self.nonlinearity not in ("tanh", "relu"):
                raise ValueError(f"Unknown nonlinearity '{self.nonlinearity}'. Select from 'tanh' or 'relu'.")
            super().__init__(f"RNN_{self.nonlinearity.upper()}", *args, **kwargs)

    _kind = "RNN"

    @property
    def equation(self) -> Equation:
        """The record of the recurrence with the nonlinearity that `mode` says."""
        if self.mode not in ("RNN_TANH", "RNN_RELU"):
            raise AssertionError(f"mode must be RNN_TANH or RNN_RELU, got {self.mode}")
        return EQUATIONS[self.mode]


@checks.with_forward
class LSTM(RNNBase):
    """Layers of long short-term memory: c' = f*c + i*g and h' = o*tanh(c'), with gates i, f, g, o.

    input_size     H_in, features of the input
    hidden_size    H_cell, features of the cell
    num_layers     layers on top of each other, each of which reads the output of the one below; default 1
    bias           False: without b_ih and b_hh
    batch_first    True: a padded input and output are (N, L, ...) in place of (L, N, ...); states are not concerned
    dropout        probability with which what a layer hands to the next is zeroed in training; default 0
    bidirectional  True: each layer also reads from the last step to the first; D is 2, else 1
    proj_size      features to which h is projected, by a weight_hr; default 0, none. H_out is proj_size or hidden_size
    device, dtype  of the parameters

    Calls `lstm(input, hx=None)` take and return, with lengths=, resets= and reset_to= as RNNBase has them,

    input          (L, N, H_in), (L, H_in) unbatched, or a PackedSequence
    hx             (h_0, c_0), (D*num_layers, N, H_out) and (D*num_layers, N, H_cell), no N if unbatched; default zeros
    output         every step's h of the last layer (L, N, D*H_out), forward before reverse; packed if the input is
    (h_n, c_n)     every layer's last h and c, shaped as hx

    Attributes `path` and `checkpoint_every` say how it is computed, see RNNBase. The constructor raises ValueError for
    a size or a probability out of range and TypeError for a wrong type; a call ValueError or RuntimeError for a wrong
    rank, size or dtype and TypeError for an hx that is no pair, before anything is computed. Types and messages are
    torch.nn.LSTM's.

    >>> lstm = LSTM(10, 20, num_layers=2, proj_size=5)
    >>> output, (h_n, c_n) = lstm(torch.randn(7, 3, 10))  # (7, 3, 5), (2, 3, 5) and (2, 3, 20)
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            input_size: int,
            hidden_size: int,
            num_layers: int = 1,
            bias: bool = True,
            batch_first: bool = False,
            dropout: float = 0.0,
            bidirectional: bool = False,
            proj_size: int = 0,
            device: Any = None,
            dtype: Any = None,
        ) -> None: ...

        @overload
        def __call__(
            self,
            input: Tensor,
            hx: Sequence[Tensor] | None = None,
            *,
            lengths: Lengths | None = None,
            resets: Tensor | None = None,
            reset_to: Sequence[Tensor] | None = None,
        ) -> tuple[Tensor, tuple[Tensor, Tensor]]: ...
        @overload
        def __call__(
            self, input: PackedSequence, hx: Sequence[Tensor] | None = None
        ) -> tuple[PackedSequence, tuple[Tensor, Tensor]]: ...
        def __call__(self, input: Any, hx: Any = None, **ragged: Any) -> Any: ...

    else:

        def __init__(self, *args, **kwargs):
            super().__init__("LSTM", *args, **kwargs)

    _kind = "LSTM"
    equation = EQUATIONS["LSTM"]

    def _expected_sizes(self, input: Tensor, batch_sizes: Tensor | None, N: int) -> list[Any]:
        sizes = super()._expected_sizes(input, batch_sizes, N)
        if type(self).get_expected_cell_size is not LSTM.get_expected_cell_size:
            sizes[1] = self.get_expected_cell_size(input, batch_sizes)
        return sizes

    def get_expected_cell_size(self, input: Tensor, batch_sizes: Tensor | None) -> tuple[int, ...]:
        """Return the size of c_0, (D*num_layers, N, H_cell)."""
        return self._state_sizes(self._batch(input, batch_sizes))[1]


@checks.with_forward
class GRU(RNNBase):
    """Layers of gated recurrent units: h' = (1 - z)*n + z*h, with gates r, z, n, and r applied after the product.

    input_size     H_in, features of the input
    hidden_size    H_cell, features of the state
    num_layers     layers on top of each other, each of which reads the output of the one below; default 1
    bias           False: without b_ih and b_hh
    batch_first    True: a padded input and output are (N, L, ...) in place of (L, N, ...); states are not concerned
    dropout        probability with which what a layer hands to the next is zeroed in training; default 0
    bidirectional  True: each layer also reads from the last step to the first; D is 2, else 1
    device, dtype  of the parameters

    Calls `gru(input, hx=None)` take and return, with lengths=, resets= and reset_to= as RNNBase has them,

    input          (L, N, H_in), (L, H_in) unbatched, or a PackedSequence
    hx             h_0 (D*num_layers, N, H_cell), (D*num_layers, H_cell) unbatched; zeros by default
    output         every step's h of the last layer (L, N, D*H_cell), forward before reverse; packed if the input is
    h_n            every layer's last h, shaped as h_0

    Attributes `path` and `checkpoint_every` say how it is computed, see RNNBase. The constructor raises ValueError for
    a size or a probability out of range and TypeError for a wrong type; a call ValueError or RuntimeError for a wrong
    rank, size or dtype, before anything is computed. Types and messages are torch.nn.GRU's.

    >>> gru = GRU(10, 20, bidirectional=True)
    >>> output, h_n = gru(torch.randn(5, 3, 10))  # (5, 3, 40) and (2, 3, 20)
    """

    if TYPE_CHECKING:

        def __init__(
            self,
            input_size: int,
            hidden_size: int,
            num_layers: int = 1,
            bias: bool = True,
            batch_first: bool = False,
            dropout: float = 0.0,
            bidirectional: bool = False,
            device: Any = None,
            dtype: Any = None,
        ) -> None: ...

        @overload
        def __call__(
            self,
            input: Tensor,
            hx: Tensor | None = None,
            *,
            lengths: Lengths | None = None,
            resets: Tensor | None = None,
            reset_to: Tensor | None = None,
        ) -> tuple[Tensor, Tensor]: ...
        @overload
        def __call__(self, input: PackedSequence, hx: Tensor | None = None) -> tuple[PackedSequence, Tensor]: ...
        def __call__(self, input: Any, hx: Any = None, **ragged: Any) -> Any: ...

    else:

        def __init__(self, *args, **kwargs):
            refuse_projection(kwargs)
            super().__init__("GRU", *args, **kwargs)

    _kind = "GRU"
    equation = EQUATIONS["GRU"]


def refuse_projection(kwargs: dict[str, Any]) -> None:
    """Raise ValueError for a proj_size, which only an LSTM has."""
    if "proj_size" in kwargs:
        raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
