"""What a type checker makes of the public face: wrong arguments are flagged, and results have types."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

#: A line of code: what mypy says of it, "" if nothing.
LINES = {
    "rnnkit.GRU(10, 20, hiden=3)": "call-",
    "rnnkit.LSTM(10, 20, hiden=3)": "call-",
    "rnnkit.RNN(10, 20, hiden=3)": "call-",
    'rnnkit.LSTM("10", 20)': "arg-type",
    'rnnkit.GRU(10, "20")': "arg-type",
    "rnnkit.RNN(10, None)": "arg-type",
    "rnnkit.GRU(10, 20, proj_size=3)": "call-",
    "rnnkit.GRU(10)": "call-",
    "rnnkit.GRUCell(10, 20, hiden=3)": "call-",
    'rnnkit.LSTMCell("10", 20)': "arg-type",
    "rnnkit.LSTM(10, 20, 2, True, False, 0.5, True, 5)": "",
    'rnnkit.RNN(10, 20, 2, "relu", batch_first=True)': "",
    "rnnkit.GRU(10, 20, num_layers=2, bias=False, dropout=0.5, bidirectional=True, dtype=torch.float64)": "",
    'rnnkit.RNNCell(10, 20, nonlinearity="relu")': "",
    "output, (h, c) = rnnkit.LSTM(3, 4)(x)": "",
    "reveal_type(output)": 'Tensor"',
    "reveal_type(h)": 'Tensor"',
    "reveal_type(c)": 'Tensor"',
    "output_2, h_2 = rnnkit.GRU(3, 4)(x, h)": "",
    "reveal_type(output_2)": 'Tensor"',
    "reveal_type(h_2)": 'Tensor"',
    "rnnkit.LSTM(3, 4)(x, [h, c])": "",
    "rnnkit.LSTM(3, 4)(x, h)": "call-",
    "rnnkit.LSTMCell(3, 4)(x[0], [h[0], c[0]])": "",
    "output_3, h_3 = rnnkit.RNN(3, 4)(x)": "",
    "reveal_type(h_3)": 'Tensor"',
    "output_5, (h_5, c_5) = rnnkit.LSTM(3, 4)(x, lengths=[3, 1], resets=h > 0, reset_to=(h, c))": "",
    "reveal_type(output_5)": 'Tensor"',
    "rnnkit.GRU(3, 4)(x, lengths=[0.5])": "list-item",
    "rnnkit.GRU(3, 4)(x, lenghts=[3, 1])": "call-",
    "reveal_type(rnnkit.GRUCell(3, 4)(x[0]))": 'Tensor"',
    "h_4, c_4 = rnnkit.LSTMCell(3, 4)(x[0])": "",
    "reveal_type(c_4)": 'Tensor"',
    "reveal_type(rnnkit.explain(rnnkit.GRU(3, 4), x).path)": 'str"',
    "reveal_type(rnnkit.__version__)": 'str"',
}


def test_wrong_arguments_are_flagged_and_results_have_types(tmp_path):
    pytest.importorskip("mypy", reason="mypy is not installed")
    file, first = tmp_path / "snippet.py", 4
    file.write_text("\n".join(["import torch", "import rnnkit", "x = torch.zeros(5, 2, 3)", *LINES]) + "\n")
    options = ["--strict", "--no-error-summary", "--follow-imports", "silent", "--config-file", ""]
    command = [sys.executable, "-m", "mypy", *options, "--cache-dir", str(ROOT / ".mypy_cache" / "tests"), str(file)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False).stdout
    of_line = dict.fromkeys(range(first, first + len(LINES)), "")
    for number, message in re.findall(r"^.*snippet\.py:(\d+): (.*)$", said, re.MULTILINE):
        of_line[int(number)] += message
    wrong = {
        code: heard
        for (code, expected), heard in zip(LINES.items(), of_line.values(), strict=True)
        if (expected not in heard if expected else heard)
    }
    assert wrong == {}
