"""RNNCell, LSTMCell, GRUCell: one step of an equation, with weights of its own."""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import checks
from .equations import EQUATIONS, Equation, State, Watcher
from .stack import Stack, Weights


class RNNCellBase(nn.Module):
    """What the three cells share: two linear maps, and the equation that joins them.

    input   (N, H_in), or (H_in) unbatched
    hx      (N, H), or (H) unbatched; for an LSTM a pair (h, c) of them; zeros where not given
    returns h' shaped as hx; for an LSTM (h', c')

    Raises ValueError for a wrong number of dimensions and RuntimeError for wrong sizes or dtypes, in torch.nn's words.
    """

    __constants__ = ["input_size", "hidden_size", "bias"]

    _class: ClassVar[str]
    input_size: int
    hidden_size: int
    bias: bool
    weight_ih: Tensor  # (G*H, H_in)
    weight_hh: Tensor  # (G*H, H)
    bias_ih: Tensor | None  # (G*H)
    bias_hh: Tensor | None  # (G*H)

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        rows = num_chunks * hidden_size
        for name, shape in (
            ("weight_ih", (rows, input_size)),
            ("weight_hh", (rows, hidden_size)),
            ("bias_ih", rows if bias else None),
            ("bias_hh", rows if bias else None),
        ):
            made = None if shape is None else nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
            self.register_parameter(name, made)
        self.reset_parameters()

    @property
    def equation(self) -> Equation:
        """The record of the recurrence."""
        return EQUATIONS[self._class.removesuffix("Cell")]

    def forward(self, input: Tensor, hx: Any = None) -> Any:
        """Take one step from the state `hx` on; the class's description has shapes and errors."""
        return self.watched(input, hx, None)

    def watched(self, input: Tensor, hx: Any, see: Watcher | None) -> Any:
        """Take one step, which also hands what the equation returns to `see`."""
        if input.dim() not in (1, 2):
            raise ValueError(f"{self._class}: Expected input to be 1D or 2D, got {input.dim()}D instead")
        self.check_hx(hx)
        equation = self.equation if see is None else self.equation.watched(see)
        batched = input.dim() == 2
        rows = input if batched else input.unsqueeze(0)
        if hx is None:
            zeros = torch.zeros(rows.size(0), self.hidden_size, dtype=input.dtype, device=input.device)
            state: State = (zeros,) * len(equation.state)
        else:
            state = self.as_state(hx, batched)
            state = state if batched else tuple(s.unsqueeze(0) for s in state)
        # Each is read once: under a parametrization that is a computation, which may come out otherwise a second time.
        w_ih, w_hh, b_ih, b_hh = self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh
        checks.check_cell(rows, state, w_ih, w_hh, len(equation.gates))

        if rows.is_cuda and checks.autocasting(rows):  # there torch.nn's cell lowers all that it takes
            stack = Stack(equation, rows, [state], [Weights(w_ih, w_hh, b_ih, b_hh)])
            _, rows, (state,), ((w_ih, w_hh, b_ih, b_hh, _),), *_ = stack.lowered(torch.get_autocast_dtype("cuda"))
        igates = F.linear(rows, w_ih, b_ih)  # (N, G*H)
        hgates = F.linear(state[0], w_hh, b_hh)  # (N, G*H)
        state, _ = equation.step(igates, hgates, state)

        if not batched:
            state = tuple(s.squeeze(0) for s in state)
        return state if len(state) > 1 else state[0]

    def check_hx(self, hx: Any) -> None:
        """Raise ValueError unless hx, where given, has one or two dimensions."""
        if hx is not None and hx.dim() not in (1, 2):
            raise ValueError(f"{self._class}: Expected hidden to be 1D or 2D, got {hx.dim()}D instead")

    def as_state(self, hx: Any, batched: bool) -> State:
        """The state that hx gives, as the equation takes it."""
        return (hx,)

    def extra_repr(self) -> str:
        bias = "" if self.bias is True else f", bias={self.bias}"
        return f"{self.input_size}, {self.hidden_size}{bias}"

    def reset_parameters(self) -> None:
        """Draw every parameter from U(-1/sqrt(H), 1/sqrt(H)), in the order of `parameters()`, as torch.nn does."""
        bound = 1.0 / math.sqrt(self.hidden_size) if self.hidden_size > 0 else 0
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound)


@checks.with_forward
class RNNCell(RNNCellBase):
    """One step of Elman's network: h' = tanh(W_ih x + b_ih + W_hh h + b_hh), or relu in place of tanh.

    input_size     H_in, features of the input
    hidden_size    H, features of the state
    bias           False: without b_ih and b_hh
    nonlinearity   "tanh", the default, or "relu"; another is refused by the call, a RuntimeError
    device, dtype  of the parameters

    Calls `cell(input, hx=None)` take (N, H_in) and (N, H), or (H_in) and (H) unbatched, hx zeros by default, and return
    h' shaped as hx. They raise ValueError for a wrong rank and RuntimeError for a wrong size or dtype, with torch.nn's
    messages.

    >>> cell = RNNCell(10, 20)
    >>> h = cell(torch.randn(3, 10), torch.randn(3, 20))  # (3, 20)
    """

    __constants__ = ["input_size", "hidden_size", "bias", "nonlinearity"]

    _class = "RNNCell"
    nonlinearity: str
    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    @property
    def equation(self) -> Equation:
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return EQUATIONS[f"RNN_{self.nonlinearity.upper()}"]

    def extra_repr(self) -> str:
        nonlinearity = "" if self.nonlinearity == "tanh" else f", nonlinearity={self.nonlinearity}"
        return super().extra_repr() + nonlinearity


@checks.with_forward
class LSTMCell(RNNCellBase):
    """One step of long short-term memory: c' = f*c + i*g and h' = o*tanh(c'), with gates i, f, g, o.

    input_size     H_in, features of the input
    hidden_size    H, features of the state
    bias           False: without b_ih and b_hh
    device, dtype  of the parameters

    Calls `cell(input, hx=None)` take (N, H_in) and a pair (h, c) of (N, H), or (H_in) and (H) unbatched, zeros by
    default, and return (h', c') shaped alike. They raise ValueError for a wrong rank, RuntimeError for a wrong size or
    dtype, TypeError for an hx that is a tensor, in torch.nn's words.

    >>> cell = LSTMCell(10, 20)
    >>> h, c = cell(torch.randn(3, 10), (torch.randn(3, 20), torch.randn(3, 20)))  # each (3, 20)
    """

    _class = "LSTMCell"
    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Sequence[Tensor] | None = None) -> tuple[Tensor, Tensor]: ...

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def check_hx(self, hx: Any) -> None:
        for k, state in enumerate(() if hx is None else hx):
            if state.dim() not in (1, 2):
                raise ValueError(f"LSTMCell: Expected hx[{k}] to be 1D or 2D, got {state.dim()}D instead")

    def as_state(self, hx: Any, batched: bool) -> State:
        if not batched:
            return hx[0], hx[1]
        if isinstance(hx, Tensor):
            raise TypeError("lstm_cell(): argument 'hx' (position 2) must be tuple of Tensors, not Tensor")
        if len(hx) != 2:
            raise RuntimeError("lstm_cell expects two hidden states")
        return tuple(hx)


@checks.with_forward
class GRUCell(RNNCellBase):
    """One step of a gated recurrent unit: h' = (1 - z)*n + z*h, with gates r, z, n, and r applied after the product.

    input_size     H_in, features of the input
    hidden_size    H, features of the state
    bias           False: without b_ih and b_hh
    device, dtype  of the parameters

    Calls `cell(input, hx=None)` take (N, H_in) and (N, H), or (H_in) and (H) unbatched, hx zeros by default, and return
    h' shaped as hx. They raise ValueError for a wrong rank and RuntimeError for a wrong size or dtype, with torch.nn's
    messages.

    >>> cell = GRUCell(10, 20)
    >>> h = cell(torch.randn(3, 10), torch.randn(3, 20))  # (3, 20)
    """

    _class = "GRUCell"
    if TYPE_CHECKING:

        def __call__(self, input: Tensor, hx: Tensor | None = None) -> Tensor: ...

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: Any = None
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
