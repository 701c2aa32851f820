"""The equations of RNN, LSTM and GRU once more, in NumPy, by a route that shares nothing with torch or rnnkit.

Every gate has matrices and biases of its own, cut out of the parameters by row and called as in the literature:
`W_if` takes the input to the forget gate, `W_hf` the state, `b_if` and `b_hf` are their biases. Sequences are worked
off one at a time, step by step, on vectors: there is no batch, no padding and no packing here.

All of it holds for complex numbers too, so a derivative is exact: the imaginary part of f(x + 1e-100j) / 1e-100.
"""

from types import SimpleNamespace

import numpy as np

Array = np.ndarray
Parameters = dict[str, Array]

#: The gates in the order of the parameters' rows, by torch's mode.
GATES = {"RNN_TANH": "h", "RNN_RELU": "h", "LSTM": "ifgo", "GRU": "rzn"}


def sigmoid(a: Array) -> Array:
    return 1 / (1 + np.exp(-a))


def relu(a: Array) -> Array:
    return np.where(a.real > 0, a, 0)


def gate_matrices(parameters: Parameters, gates: str, suffix: str = "") -> SimpleNamespace:
    """W_i?, W_h?, b_i?, b_h? for each gate ?, and W_hr, of the parameters whose names end in `suffix`."""
    H = len(parameters[f"weight_ih{suffix}"]) // len(gates)
    cut = SimpleNamespace(W_hr=parameters.get(f"weight_hr{suffix}"))  # a projection's; a GRU has its gate r there
    for k, gate in enumerate(gates):
        rows = slice(k * H, (k + 1) * H)
        for source in "ih":
            setattr(cut, f"W_{source}{gate}", parameters[f"weight_{source}h{suffix}"][rows])
            bias = parameters.get(f"bias_{source}h{suffix}")
            setattr(cut, f"b_{source}{gate}", np.zeros(H) if bias is None else bias[rows])
    return cut


def rnn_tanh(w: SimpleNamespace, x: Array, h: Array) -> tuple[list[Array], dict[str, Array]]:
    h = np.tanh(w.W_ih @ x + w.b_ih + w.W_hh @ h + w.b_hh)
    return [h], {"h": h}


def rnn_relu(w: SimpleNamespace, x: Array, h: Array) -> tuple[list[Array], dict[str, Array]]:
    h = relu(w.W_ih @ x + w.b_ih + w.W_hh @ h + w.b_hh)
    return [h], {"h": h}


def lstm(w: SimpleNamespace, x: Array, h: Array, c: Array) -> tuple[list[Array], dict[str, Array]]:
    i = sigmoid(w.W_ii @ x + w.b_ii + w.W_hi @ h + w.b_hi)
    f = sigmoid(w.W_if @ x + w.b_if + w.W_hf @ h + w.b_hf)
    g = np.tanh(w.W_ig @ x + w.b_ig + w.W_hg @ h + w.b_hg)
    o = sigmoid(w.W_io @ x + w.b_io + w.W_ho @ h + w.b_ho)
    c = f * c + i * g
    h = o * np.tanh(c)
    return [h if w.W_hr is None else w.W_hr @ h, c], {"i": i, "f": f, "g": g, "o": o}


def gru(w: SimpleNamespace, x: Array, h: Array) -> tuple[list[Array], dict[str, Array]]:
    r = sigmoid(w.W_ir @ x + w.b_ir + w.W_hr @ h + w.b_hr)
    z = sigmoid(w.W_iz @ x + w.b_iz + w.W_hz @ h + w.b_hz)
    n = np.tanh(w.W_in @ x + w.b_in + r * (w.W_hn @ h + w.b_hn))
    return [(1 - z) * n + z * h], {"r": r, "z": z, "n": n}


STEPS = {"RNN_TANH": rnn_tanh, "RNN_RELU": rnn_relu, "LSTM": lstm, "GRU": gru}


def cell(mode: str, parameters: Parameters, x: Array, *state: Array) -> tuple[list[Array], dict[str, Array]]:
    """One step of a cell: its state, and its gates by their letters."""
    return STEPS[mode](gate_matrices(parameters, GATES[mode]), x, *state)


def layers(
    mode: str, parameters: Parameters, xs: Array, *states: Array, num_layers: int, bidirectional: bool
) -> list[Array]:
    """One sequence xs (L, H_in) and h_0 (D*num_layers, H_out)[, c_0 (D*num_layers, H_cell)]: output, h_n[, c_n]."""
    final = []
    for k in range(num_layers):
        halves = []
        for suffix in ("", "_reverse") if bidirectional else ("",):
            w = gate_matrices(parameters, GATES[mode], f"_l{k}{suffix}")
            state = [s[len(final)] for s in states]
            hs = []
            for x in xs[::-1] if suffix else xs:
                state, _ = STEPS[mode](w, x, *state)
                hs.append(state[0])
            halves.append(hs[::-1] if suffix else hs)
            final.append(state)
        xs = np.array([np.concatenate(parts) for parts in zip(*halves, strict=True)])
    return [xs, *(np.array(s) for s in zip(*final, strict=True))]
