"""The optimizers of a run and their schedules, which step together."""

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

if TYPE_CHECKING:
    from mnist.training import Recipe


class Optimizers:
    """AdamW, and Muon for the matrices that the recipe names.

    Muon makes all singular values of a matrix's step the same, so that the directions along which a
    hidden state carries little are learned as fast as the others.

    Args:
        model: whose parameters are optimised.
        recipe: names the matrices, the learning rates and their schedule.
        steps: of the whole run.
    """

    def __init__(self, model: nn.Module, recipe: "Recipe", steps: int) -> None:
        hidden = recipe.hidden_matrices(model)
        self._each: dict[str, torch.optim.Optimizer] = {
            "adamw": torch.optim.AdamW(
                _parameter_groups(model, hidden, recipe.weight_decay),
                lr=recipe.learning_rate,
                fused=True,
            )
        }
        if hidden:
            self._each["muon"] = torch.optim.Muon(
                hidden, lr=recipe.hidden_rate, weight_decay=recipe.weight_decay
            )
        self._schedules = {
            name: LambdaLR(optimizer, lambda step: recipe.rate(step, steps))
            for name, optimizer in self._each.items()
        }
        self._steppers: list[Any] = list(self._each.values())

    def prepare(self, accelerator: Accelerator) -> None:
        """Lets the accelerator do the steps."""
        self._steppers = [accelerator.prepare(optimizer) for optimizer in self._each.values()]

    def zero_grad(self) -> None:
        """Forgets the gradients."""
        for stepper in self._steppers:
            stepper.zero_grad()

    def step(self) -> None:
        """A step of each, and the learning rates of the next."""
        for stepper in self._steppers:
            stepper.step()
        for schedule in self._schedules.values():
            schedule.step()

    def state_dict(self) -> dict[str, Any]:
        """All that the next steps depend on."""
        return {
            name: {
                "optimizer": optimizer.state_dict(),
                "schedule": self._schedules[name].state_dict(),
            }
            for name, optimizer in self._each.items()
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues from a state; KeyError if it is that of other optimizers."""
        for name, optimizer in self._each.items():
            optimizer.load_state_dict(state[name]["optimizer"])
            self._schedules[name].load_state_dict(state[name]["schedule"])


def _parameter_groups(
    model: nn.Module, hidden: list[nn.Parameter], weight_decay: float
) -> list[dict[str, Any]]:
    """Decays matrices only, and no constrained one, where zero has another meaning."""
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    elsewhere = {id(parameter) for parameter in hidden}
    for name, parameter in model.named_parameters():
        if id(parameter) in elsewhere:
            continue
        matrix = parameter.ndim == 2 and "parametrizations." not in name
        (decayed if matrix else free).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
