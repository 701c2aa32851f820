"""How many people will fly in the next two years, if all one knows is how many flew until now?

The series is a classic: thousands of airline passengers, month by month from 1949 to 1960 (series G of Box and Jenkins,
Time Series Analysis: Forecasting and Control, 1970). A GRU reads growth, the logarithm of a month minus that of the
same month a year before, and says next month's; to see two years ahead it is fed what it said. 32 networks differ in
their initial weights, vmap trains them as one, their mean is the forecast. `forecast` is given the past and no more.
Its settings were chosen on the table's first four rows, which end before 1959; the last was looked at after that.

    python examples/forecast.py [--picture forecast.png] [--steps 100]
"""

import argparse
import csv
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap

import rnnkit

MEMBERS, H = 32, 16
table = csv.reader(Path(__file__).with_name("airline.csv").open())
passengers = torch.tensor([[float(number) for number in year] for _, *year in list(table)[1:]])  # (12 years, 12 months)


class Growth(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gru = rnnkit.GRU(1, H)
        self.read = nn.Linear(H, 1)

    def forward(self, growth: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        output, h = self.gru(growth, h)  # (L, 1) to (L, H): without a batch
        return self.read(output), h


def forecast(past: Tensor, steps: int) -> Tensor:
    """past (years, 12) to the two years after it, (2, 12)."""
    torch.manual_seed(0)
    growth = past.log().diff(dim=0).flatten()
    mean, std = growth.mean(), growth.std()
    known = ((growth - mean) / std).expand(MEMBERS, -1).unsqueeze(-1)  # (MEMBERS, L, 1)
    members, h_0 = [Growth() for _ in range(MEMBERS)], torch.zeros(MEMBERS, 1, H)
    parameters, _ = stack_module_state(members)  # each with a first dimension of MEMBERS
    run = vmap(lambda parameters, *inputs: functional_call(members[0], parameters, inputs))
    optimizer = torch.optim.Adam(parameters.values(), lr=1e-2)
    for _ in range(steps):
        said, _ = run(parameters, known[:, :-1], h_0)
        loss = (said - known[:, 1:]).square().mean((1, 2)).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said, h = run(parameters, known, h_0)
        months = list(past[-1].log())  # a year that is known, and then month by month
        for _ in range(24):
            months.append(months[-12] + said[:, -1].mean() * std + mean)
            said, h = run(parameters, said[:, -1:], h)
    return torch.stack(months[12:]).exp().view(2, 12)


def errors(predicted: Tensor, actual: Tensor) -> str:
    error = predicted - actual
    return f"{error.abs().mean():7.1f}{error.square().mean().sqrt():7.1f}{(error / actual).abs().mean():7.1%}"


def draw(forecasts: dict[str, Tensor], path: str) -> str:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return "no picture: matplotlib is missing, pip install 'rnnkit[examples]' brings it"
    axes = Figure(figsize=(9, 4.5), layout="constrained").subplots()
    axes.plot(1956 + torch.arange(60) / 12, passengers[7:].flatten(), "k.-", label="passengers")
    for (name, predicted), style in zip(forecasts.items(), ("C0:", "C2--", "C3"), strict=True):
        axes.plot(1959 + torch.arange(24) / 12, predicted.flatten(), style, label=name)
    axes.set(title="1959 and 1960, forecast from the years before", xlabel="year", ylabel="thousands a month")
    axes.legend()
    axes.figure.savefig(path, dpi=120)
    return f"picture: {path}"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--picture", default="forecast.png")
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    print("           last year again       at the mean growth          GRU")
    print("years  " + "     MAE   RMSE   MAPE" * 3)
    for years in 5, 6, 7, 8, 10:
        past, actual = passengers[:years], passengers[years : years + 2]
        rate = (past[1:] / past[:-1]).log().mean().exp()
        forecasts = {
            "last year again": past[-1:].expand(2, 12),
            "last year, at the mean growth": past[-1] * rate ** torch.tensor([[1.0], [2.0]]),
            "GRU": forecast(past, options.steps),
        }
        print(f"{1949 + years}-{50 + years}", *(errors(predicted, actual) for predicted in forecasts.values()))
    print(f"\n{draw(forecasts, options.picture)}")
