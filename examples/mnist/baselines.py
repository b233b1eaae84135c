"""The recurrent layers that ORGaNICs are compared with, each as its authors define it.

All but the LSTM step a continuous system, so that `step_scale` lengthens their steps as it does
those of ORGaNICs. Equations are in the docstrings: `x` is an input, `h`, `y` and `z` are states
that start at zero, `n` is the number of units.
"""

import math
from typing import Literal, cast

import torch
from torch import Tensor, nn

from program.errors import ExampleError

BaselineName = Literal["lstm", "antisymmetric", "cornn", "lipschitz", "lem"]


class TimeStepper(nn.Module):
    """A layer that steps a continuous system through a sequence `(T, N, m)`.

    Attributes:
        step: the length of a step for one element of the sequence.
        longest_step: that from which on the steps of the linear part of the system grow or turn.
        step_scale: a factor on the step, for sequences of averages.
    """

    def __init__(self, step: float, longest_step: float = 1.0) -> None:
        super().__init__()
        self.step, self.longest_step = step, longest_step
        self._step_scale = 1.0

    @property
    def step_scale(self) -> float:
        """The factor; an ExampleError where the steps become too long."""
        return self._step_scale

    @step_scale.setter
    def step_scale(self, value: float) -> None:
        if self.step * value > self.longest_step:
            raise ExampleError(
                f"a step of {type(self).__name__} would be {self.step * value:.3g} long; expected "
                f"{self.longest_step:.3g} at most: show fewer pixels at a step"
            )
        self._step_scale = value

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The output after every step, `(T, N, n)`, and the last one, `(N, n)`."""
        state, outputs = self.start(x), []
        for row in self.project(x).unbind():
            state = self.advance(row, state, self.step * self.step_scale)
            outputs.append(state[0])
        return torch.stack(outputs), state[0]

    def project(self, x: Tensor) -> Tensor:
        """All products of weights with the inputs, taken at once."""
        raise NotImplementedError

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """The state before the first step, the output first, zeros `(N, n)`."""
        raise NotImplementedError

    def advance(self, row: Tensor, state: tuple[Tensor, ...], step: float) -> tuple[Tensor, ...]:
        """The state after a step, from a projected input."""
        raise NotImplementedError


class AntisymmetricRNN(TimeStepper):
    """Chang et al. 2019: `h <- h + eps tanh((W - W^T - gamma I) h + V x + b)`."""

    def __init__(self, inputs: int, size: int, *, step: float, damping: float) -> None:
        super().__init__(step)
        self.damping = damping
        self.input = nn.Linear(inputs, size)
        self.weight = nn.Parameter(torch.randn(size, size) / math.sqrt(size))
        nn.init.normal_(self.input.weight, std=1 / math.sqrt(inputs))
        nn.init.zeros_(self.input.bias)

    def project(self, x: Tensor) -> Tensor:
        """`V x + b`."""
        return self.input(x)

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """`h`."""
        return (x.new_zeros(x.shape[1], len(self.weight)),)

    def advance(self, row: Tensor, state: tuple[Tensor, ...], step: float) -> tuple[Tensor, ...]:
        """`h` after a step."""
        (h,) = state
        turned = h @ (self.weight.T - self.weight) - self.damping * h
        return (h + step * torch.tanh(turned + row),)


class CoRNN(TimeStepper):
    """Rusch & Mishra 2021: coupled oscillators `y` with velocities `z`.

    `z <- z + dt (tanh(L [x; z; y] + b) - gamma y - eps z)`, then `y <- y + dt z`.
    """

    def __init__(
        self, inputs: int, size: int, *, step: float, frequency: float, damping: float
    ) -> None:
        # Where an eigenvalue of the undriven oscillator's step reaches -1.
        longest = (math.sqrt(damping**2 + 4 * frequency) - damping) / frequency
        super().__init__(step, longest)
        self.inputs, self.size = inputs, size
        self.frequency, self.damping = frequency, damping
        self.weight = nn.Linear(inputs + 2 * size, size)

    def project(self, x: Tensor) -> Tensor:
        """The input's part of `L [x; z; y]`, and `b`."""
        return nn.functional.linear(x, self.weight.weight[:, : self.inputs], self.weight.bias)

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """`y` and `z`."""
        return x.new_zeros(x.shape[1], self.size), x.new_zeros(x.shape[1], self.size)

    def advance(self, row: Tensor, state: tuple[Tensor, ...], step: float) -> tuple[Tensor, ...]:
        """`y` and `z` after a step."""
        y, z = state
        force = torch.tanh(row + torch.cat([z, y], -1) @ self.weight.weight[:, self.inputs :].T)
        z = z + step * (force - self.frequency * y - self.damping * z)
        return y + step * z, z


class LipschitzRNN(TimeStepper):
    """Erichson et al. 2021: `h <- h + eps (A h + tanh(W h + E x + b))`.

    `A = beta (B - B^T) + (1 - beta) (B + B^T) - gamma I`, and `W` in the same way from `C`.
    """

    def __init__(
        self, inputs: int, size: int, *, step: float, antisymmetry: float, damping: float
    ) -> None:
        super().__init__(step)
        self.antisymmetry, self.damping = antisymmetry, damping
        self.input = nn.Linear(inputs, size)
        self.linear = nn.Parameter(0.1 / size * torch.randn(size, size))
        self.inner = nn.Parameter(0.1 / size * torch.randn(size, size))

    def project(self, x: Tensor) -> Tensor:
        """`E x + b`."""
        return self.input(x)

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """`h`."""
        return (x.new_zeros(x.shape[1], len(self.linear)),)

    def advance(self, row: Tensor, state: tuple[Tensor, ...], step: float) -> tuple[Tensor, ...]:
        """`h` after a step."""
        (h,) = state
        inner = torch.tanh(h @ self._mix(self.inner).T + row)
        return (h + step * (h @ self._mix(self.linear).T + inner),)

    def _mix(self, weight: Tensor) -> Tensor:
        beta, eye = self.antisymmetry, torch.eye(len(weight), dtype=weight.dtype)
        mixed = beta * (weight - weight.T) + (1 - beta) * (weight + weight.T)
        return mixed - self.damping * eye.to(weight.device)


class LEM(TimeStepper):
    """Rusch et al. 2022, long expressive memory, with gates that are time steps.

    `D1 = dt sigmoid(U1 x + V1 y)`, `D2 = dt sigmoid(U2 x + V2 y)`,
    `z <- (1 - D2) z + D2 tanh(Uz x + Vz y)`, then `y <- (1 - D1) y + D1 tanh(Wy z + Uy x)`, each
    product with a bias.
    """

    def __init__(self, inputs: int, size: int, *, step: float) -> None:
        super().__init__(step)
        self.size = size
        self.from_input = nn.Linear(inputs, 4 * size)
        self.from_y = nn.Linear(size, 3 * size)
        self.from_z = nn.Linear(size, size)
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -1 / math.sqrt(size), 1 / math.sqrt(size))

    def project(self, x: Tensor) -> Tensor:
        """`U1 x`, `U2 x`, `Uz x` and `Uy x`, one beside the other."""
        return self.from_input(x)

    def start(self, x: Tensor) -> tuple[Tensor, ...]:
        """`y` and `z`."""
        return x.new_zeros(x.shape[1], self.size), x.new_zeros(x.shape[1], self.size)

    def advance(self, row: Tensor, state: tuple[Tensor, ...], step: float) -> tuple[Tensor, ...]:
        """`y` and `z` after a step."""
        y, z = state
        gates, drive = row.split([3 * self.size, self.size], -1)
        first, second, inner = (gates + self.from_y(y)).chunk(3, -1)
        z = torch.lerp(z, torch.tanh(inner), step * torch.sigmoid(second))
        return torch.lerp(y, torch.tanh(self.from_z(z) + drive), step * torch.sigmoid(first)), z


def chrono_lstm(inputs: int, size: int, steps: int) -> nn.LSTM:
    """An LSTM that starts with memories as long as up to `steps` (Tallec & Ollivier 2018).

    The forget gates' biases are `log U(1, steps - 1)`, those of the input gates their negatives.
    """
    lstm = nn.LSTM(inputs, size)
    with torch.no_grad():
        memory = torch.empty(size).uniform_(1.0, max(1.0 + 1e-3, steps - 1.0)).log()
        bias, other = cast(tuple[Tensor, Tensor], (lstm.bias_ih_l0, lstm.bias_hh_l0))
        bias.zero_()
        other.zero_()
        # torch's order of gates: input, forget, cell, output.
        bias[:size] = -memory
        bias[size : 2 * size] = memory
    return lstm


def build_baseline(
    name: BaselineName, inputs: int, size: int, *, side: int, permuted: bool
) -> nn.LSTM | TimeStepper:
    """The layer with the constants that its authors found for its task.

    They are those for 784 pixels, also where an image has fewer.
    """
    if name == "lstm":
        return chrono_lstm(inputs, size, side**2)
    if name == "antisymmetric":
        return AntisymmetricRNN(inputs, size, step=0.01, damping=0.01)
    if name == "cornn":
        step, frequency, damping = (0.076, 0.4, 8.0) if permuted else (0.042, 2.7, 4.7)
        return CoRNN(inputs, size, step=step, frequency=frequency, damping=damping)
    if name == "lipschitz":
        return LipschitzRNN(inputs, size, step=0.03, antisymmetry=0.75, damping=0.001)
    return LEM(inputs, size, step=0.31 if permuted else 0.21)
