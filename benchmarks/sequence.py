"""Time and memory of training sequences: ours, the published cell's and torch's LSTM's.

    python benchmarks/sequence.py --published DIR --out sequence.json

A round runs forward and backward of every contender once, in turn, so that a busy machine slows
all of them; medians over the rounds are reported per step. Peak memory is the most that torch's
allocator holds during one forward and backward pass, above what it held before.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from _memory import peak_bytes
from torch import Tensor, nn

from recurrent import ORGaNICsRNN

MAX_STEPS = {"y": 0.02, "a": 0.005, "b": 0.1}


def main() -> None:
    arguments = parse_arguments()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    report = {
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        },
        "batch": arguments.batch,
        "time": {str(units): measure_time(units, arguments) for units in arguments.hidden_sizes},
    }
    if arguments.memory_steps:
        report["memory"] = measure_memory(max(arguments.hidden_sizes), arguments)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--published", type=Path, help="checkout of the authors' repository")
    parser.add_argument("--hidden-sizes", type=int, nargs="+", default=[128, 64])
    parser.add_argument("--steps", type=int, default=98)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--memory-steps", type=int, default=784, help="0 leaves memory out")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    return parser.parse_args()


def contenders(units: int, published: Path | None) -> dict[str, Callable[[Tensor], Tensor]]:
    """Modules from ``(T, B, 1)`` to the last hidden state, at the recipe's settings."""
    torch.manual_seed(0)
    found: dict[str, Callable[[Tensor], Tensor]] = {}
    for backend in ("fused", "reference"):
        rnn = ORGaNICsRNN(1, units, backend=backend)
        found[backend] = LastState(rnn)
    if published is not None:
        found["published"] = PublishedLoop(units, published, MAX_STEPS)
    found["lstm"] = LastState(nn.LSTM(1, units))
    return found


class LastState(nn.Module):
    """The last layer's last hidden state of a sequence module."""

    def __init__(self, rnn: nn.Module) -> None:
        super().__init__()
        self.rnn = rnn

    def forward(self, x: Tensor) -> Tensor:
        return self.rnn(x)[1][0][-1]


class PublishedLoop(nn.Module):
    """The authors' cell in the loop of their training script."""

    def __init__(self, units: int, directory: Path, max_steps: dict[str, float]) -> None:
        super().__init__()
        sys.path.insert(0, str(directory))
        from models.dynamical.rnnCell import rnnCell

        steps = {f"dt_tau_max_{name}": value for name, value in max_steps.items()}
        self.cell = rnnCell(1, units, **steps)
        self.start = [torch.rand(units) for _ in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        y, a, b = (part.repeat(x.shape[1], 1) for part in self.start)
        b0 = torch.ones_like(y)
        for row in x:
            y, a, b0, b = self.cell(row, y, a, b0, b)
        return y


def train_step(module: Callable[[Tensor], Tensor], x: Tensor) -> None:
    module(x).square().mean().backward()


def measure_time(units: int, arguments: argparse.Namespace) -> dict[str, object]:
    modules = contenders(units, arguments.published)
    x = torch.rand(arguments.steps, arguments.batch, 1)
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for module in modules.values():
        train_step(module, x)
    for _ in range(arguments.rounds):
        for name, module in modules.items():
            start = time.perf_counter()
            train_step(module, x)
            seconds[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    ratios = {name: medians["fused"] / value for name, value in medians.items() if name != "fused"}
    for name, value in medians.items():
        ratio = f"  fused / {name}: {ratios[name]:.3f}" if name in ratios else ""
        print(f"{units:4d} units  {name:10s} {1e3 * value / arguments.steps:6.3f} ms/step{ratio}")
    return {
        "ms_per_step": {name: 1e3 * value / arguments.steps for name, value in medians.items()},
        "fused_over": ratios,
        "seconds": seconds,
    }


def measure_memory(units: int, arguments: argparse.Namespace) -> dict[str, object]:
    x = torch.rand(arguments.memory_steps, arguments.batch, 1)
    peaks = {}
    for name, module in contenders(units, arguments.published).items():
        train_step(module, x[:2])
        peaks[name] = peak_bytes(lambda module=module: train_step(module, x), "cpu")
        print(f"{units:4d} units  {name:10s} peak {peaks[name] / 2**20:8.0f} MiB")
    ratios = {name: peaks["fused"] / peak for name, peak in peaks.items() if name != "fused"}
    print("  " + ", ".join(f"fused / {name}: {value:.3f}" for name, value in ratios.items()))
    return {"steps": arguments.memory_steps, "peak_bytes": peaks, "fused_over": ratios}


if __name__ == "__main__":
    main()
