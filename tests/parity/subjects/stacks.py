"""Layers upon layers: LSTM, GRU and RNN stacks whose gates are right and whose bookkeeping is wrong."""

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence


class StackLSTM(nn.Module):
    """A correct stack of LSTMCells under torch.nn's parameter names, cut into the pieces that people get wrong."""

    cell = nn.LSTMCell

    def __init__(
        self, input_size, hidden_size, num_layers=1, bias=True, batch_first=False, dropout=0.0, bidirectional=False
    ):
        super().__init__()
        self.hidden_size, self.num_layers, self.bias = hidden_size, num_layers, bias
        self.batch_first, self.dropout, self.directions = batch_first, dropout, 1 + bidirectional
        for layer in range(num_layers):
            size = hidden_size * self.directions if layer else input_size
            for suffix in ["", "_reverse"][: self.directions]:
                for name, parameter in self.cell(size, hidden_size, bias).named_parameters():
                    self.register_parameter(f"{name}_l{layer}{suffix}", parameter)

    def weights(self, layer, direction):
        suffix = f"_l{layer}" + "_reverse" * direction
        names = ["weight_ih", "weight_hh", "bias_ih", "bias_hh"][: 4 if self.bias else 2]
        return [getattr(self, name + suffix) for name in names] + [None, None][: 0 if self.bias else 2]

    def step(self, x, state, weights):
        return torch.lstm_cell(x, state, *weights)

    def scan(self, x, state, weights, lengths, reverse):
        outputs, order = [None] * len(x), range(len(x))
        for t in reversed(order) if reverse else order:
            new = self.step(x[t], state, weights)
            alive = (t < lengths).unsqueeze(1)
            state = tuple(torch.where(alive, a, b) for a, b in zip(new, state, strict=False))
            outputs[t] = new[0] * alive
        return torch.stack(outputs), state

    def between(self, x, layer):
        if layer < self.num_layers - 1:
            x = nn.functional.dropout(x, self.dropout, self.training)
        return x

    def join(self, outputs):
        return torch.cat(outputs, dim=2)

    def initial(self, states, layer, direction):
        return tuple(s[layer * self.directions + direction] for s in states)

    def collect(self, finals):
        return [torch.stack(parts) for parts in zip(*finals, strict=False)]

    def zeros(self, x, batch):
        zeros = x.new_zeros(self.num_layers * self.directions, batch, self.hidden_size)
        return (zeros, zeros)

    def forward(self, input, hx=None):
        packed = isinstance(input, PackedSequence)
        if packed:
            x, lengths = pad_packed_sequence(input)
        else:
            x = input.transpose(0, 1) if self.batch_first else input
            lengths = torch.full((x.size(1),), x.size(0))
        states = self.zeros(x, x.size(1)) if hx is None else hx if isinstance(hx, tuple) else (hx,)
        finals = []
        for layer in range(self.num_layers):
            outputs = []
            for direction in range(self.directions):
                output, state = self.scan(
                    x, self.initial(states, layer, direction), self.weights(layer, direction), lengths, direction == 1
                )
                outputs.append(output)
                finals.append(state)
            x = self.between(self.join(outputs), layer)
        states = self.collect(finals)
        if packed:
            x = pack_padded_sequence(x, lengths, enforce_sorted=input.sorted_indices is None)
        elif self.batch_first:
            x = x.transpose(0, 1)
        return x, tuple(states) if len(states) == 2 else states[0]


class StackGRU(StackLSTM):
    cell = nn.GRUCell

    def step(self, x, state, weights):
        return (torch.gru_cell(x, state[0], *weights),)

    def zeros(self, x, batch):
        return super().zeros(x, batch)[:1]


class StackRNN(StackGRU):
    cell = nn.RNNCell

    def step(self, x, state, weights):
        return (torch.rnn_tanh_cell(x, state[0], *weights),)


class DirectionMajorLSTM(StackLSTM):
    def collect(self, finals):
        return super().collect(
            finals[0 :: self.directions] + finals[1 :: self.directions] if self.directions == 2 else finals
        )


class LastLayerGRU(StackGRU):
    def collect(self, finals):
        return super().collect(finals[-self.directions :])


class TopDownRNN(StackRNN):
    def collect(self, finals):
        return super().collect(finals[::-1])


class NotFlippedLSTM(StackLSTM):
    """Reverses its input, runs forward, forgets to reverse the output."""

    def scan(self, x, state, weights, lengths, reverse):
        if not reverse:
            return super().scan(x, state, weights, lengths, False)
        output, state = super().scan(x, state, weights, lengths, True)
        return output.flip(0), state


class ForwardTwiceGRU(StackGRU):
    def scan(self, x, state, weights, lengths, reverse):
        return super().scan(x, state, weights, lengths, False)


class LastOutputLSTM(StackLSTM):
    """Takes h_n of both directions from the last row of the output."""

    def scan(self, x, state, weights, lengths, reverse):
        output, (_, c) = super().scan(x, state, weights, lengths, reverse)
        return output, (output[-1], c)


class TiedDirectionsRNN(StackRNN):
    def weights(self, layer, direction):
        return super().weights(layer, 0)


class FirstStateLSTM(StackLSTM):
    def initial(self, states, layer, direction):
        return tuple(s[0] for s in states)


class BottomStateGRU(StackGRU):
    """Gives its hx to the first layer and zeros to the others."""

    def initial(self, states, layer, direction):
        state = super().initial(states, layer, direction)
        return state if layer == 0 else tuple(torch.zeros_like(s) for s in state)


class HalvedStateLSTM(StackLSTM):
    """Reads hx as all forward states, then all reverse states."""

    def initial(self, states, layer, direction):
        return tuple(s[direction * self.num_layers + layer] for s in states)


class BackToFrontGRU(StackGRU):
    def join(self, outputs):
        return torch.cat(outputs[::-1], dim=-1)


class PaddingLSTM(StackLSTM):
    """Runs on through the padding."""

    def scan(self, x, state, weights, lengths, reverse):
        return super().scan(x, state, weights, torch.full_like(lengths, len(x)), reverse)


class PaddingGRU(StackGRU):
    def scan(self, x, state, weights, lengths, reverse):
        return super().scan(x, state, weights, torch.full_like(lengths, len(x)), reverse)


class SortedStateLSTM(StackLSTM):
    """Runs in the order of the packed rows and returns its states in that order."""

    def forward(self, input, hx=None):
        output, states = super().forward(input, hx)
        if isinstance(input, PackedSequence) and input.sorted_indices is not None:
            states = tuple(s[:, input.sorted_indices] for s in states)
        return output, states


class WronglyUnsortedRNN(StackRNN):
    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        if isinstance(input, PackedSequence) and input.sorted_indices is not None:
            h_n = h_n.index_select(1, input.sorted_indices).index_select(1, input.sorted_indices)
        return output, h_n


class EverywhereDropoutLSTM(StackLSTM):
    def between(self, x, layer):
        return nn.functional.dropout(x, self.dropout, self.training)


class NoDropoutGRU(StackGRU):
    def between(self, x, layer):
        return x


class EvalDropoutLSTM(StackLSTM):
    def between(self, x, layer):
        return nn.functional.dropout(x, self.dropout) if layer < self.num_layers - 1 else x


class RecurrentDropoutRNN(StackRNN):
    def between(self, x, layer):
        return x

    def step(self, x, state, weights):
        (h,) = state
        return super().step(x, (nn.functional.dropout(h, self.dropout, self.training),), weights)


class IgnoredBatchFirstGRU(StackGRU):
    def __init__(self, *args, batch_first=False, **options):
        super().__init__(*args, **options)


class TransposedStateLSTM(StackLSTM):
    """Takes and returns states batch first as well."""

    def forward(self, input, hx=None):
        if not self.batch_first:
            return super().forward(input, hx)
        hx = hx and tuple(s.transpose(0, 1) for s in hx)
        output, states = super().forward(input, hx)
        return output, tuple(s.transpose(0, 1) for s in states)


class BatchFirstFinalsGRU(StackGRU):
    def forward(self, input, hx=None):
        output, h_n = super().forward(input, hx)
        return output, h_n.transpose(0, 1) if self.batch_first else h_n


EXPECTED = [
    (DirectionMajorLSTM, "h_n is direction-major"),
    (LastLayerGRU, "h_n holds the last layer only"),
    (TopDownRNN, "the layers of h_n are in reverse order"),
    (NotFlippedLSTM, "reverse output is not flipped back"),
    (ForwardTwiceGRU, "the reverse direction runs forward"),
    (LastOutputLSTM, "h_n is read at output[-1]"),
    (TiedDirectionsRNN, "the reverse direction uses the forward weights"),
    (FirstStateLSTM, "every layer starts from the first slot of hx"),
    (BottomStateGRU, "only the first layer starts from hx"),
    (HalvedStateLSTM, "h_0 is read direction-major"),
    (BackToFrontGRU, "directions are joined in reverse order"),
    (PaddingLSTM, "the final state is taken at the padding"),
    (PaddingGRU, "the final state is taken at the padding"),
    (SortedStateLSTM, "h_n of a packed batch is left in sorted order"),
    (WronglyUnsortedRNN, "h_n of a packed batch is unsorted by sorted_indices"),
    (EverywhereDropoutLSTM, "dropout after the last layer too"),
    (NoDropoutGRU, "dropout is not applied"),
    (EvalDropoutLSTM, "dropout in eval mode"),
    (RecurrentDropoutRNN, "dropout on the recurrence only"),
    (IgnoredBatchFirstGRU, "batch_first is ignored"),
    (TransposedStateLSTM, "h_0 and h_n are transposed for batch_first"),
    (BatchFirstFinalsGRU, "h_n is transposed for batch_first"),
]
CORRECT = [StackLSTM, StackGRU, StackRNN]
