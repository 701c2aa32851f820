"""A definition as the six modules: what the harness takes as a subject.

This module also is a subject itself: `python -m parity --subject parity.mutants.module` runs the grid on torch.nn's
definition.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from .definition import Definition, Example
from .orders import Order

if TYPE_CHECKING:
    Mixin = nn.RNNBase  # or a cell, before which it is mixed in
else:
    Mixin = object


class Planted(Mixin):
    """The six modules by one definition. Mixed in before a class of torch.nn, for its constructor."""

    definition = Definition()
    order: Order | None = None  # of the gates; torch.nn's where none is given

    def check(self, input: Any, hx: Any) -> None:
        """Refuse what torch.nn refuses, by asking it."""
        before = torch.get_rng_state()
        with torch.no_grad():
            super().forward(input, hx)
        torch.set_rng_state(before)

    def forward(self, input: Any, hx: Any = None) -> Any:
        self.check(input, hx)
        return self.run(input, hx)

    def run(self, input: Any, hx: Any = None) -> Any:
        """Compute without asking torch.nn."""
        module: Any = self
        class_name = type(self).__name__
        is_lstm, is_cell = class_name.startswith("LSTM"), isinstance(self, nn.RNNCellBase)
        names = (name for name, parameter in module._parameters.items() if parameter is not None)
        example = Example(
            kind=class_name.removesuffix("Cell"),
            weights={name: getattr(self, name) for name in names},
            input=input,
            hx=() if hx is None else tuple(hx)[:2] if is_lstm else (hx,),
            batch_first=getattr(self, "batch_first", False),
            nonlinearity=getattr(self, "nonlinearity", "tanh"),
            dropout=getattr(self, "dropout", 0.0),
            training=module.training,
            is_cell=is_cell,
            state_dtype=self.state_dtype(input),
        )
        rows = None if self.order is None else self.order.rows(module.hidden_size)
        results = self.definition.forward(example, rows)
        names_of_states = [name for name in results if name != "output"]
        states: Any = tuple(results[name] for name in names_of_states) if is_lstm else results[names_of_states[0]]
        return states if is_cell else (self.wrap(input, results["output"]), states)

    def state_dtype(self, input: Any) -> torch.dtype | None:
        """Lower the precision of c too under autocast, where torch.nn has oneDNN run a padded LSTM."""
        plain_lstm = type(self).__name__ == "LSTM" and not getattr(self, "proj_size", 0)
        by_onednn = bool(torch.backends.mkldnn.enabled) and plain_lstm and isinstance(input, Tensor)
        return torch.get_autocast_dtype("cpu") if by_onednn and torch.is_autocast_enabled("cpu") else None

    def wrap(self, input: Any, output: Tensor) -> Any:
        return PackedSequence(output, *input[1:]) if isinstance(input, PackedSequence) else output


def implementation(mixin: type) -> SimpleNamespace:
    """Make the six classes of `mixin`."""
    classes = (nn.RNN, nn.LSTM, nn.GRU, nn.RNNCell, nn.LSTMCell, nn.GRUCell)
    return SimpleNamespace(**{cls.__name__: type(cls.__name__, (mixin, cls), {}) for cls in classes})


globals().update(vars(implementation(Planted)))
