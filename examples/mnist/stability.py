"""The stability of a trained network's circuits over a set of images, layer by layer."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deq_organics import Circuit, SteadyState, check_stability


@dataclass(frozen=True)
class LayerStability:
    """What is known about one layer's circuits, one for each of `N` images.

    Attributes:
        leading: the largest real part of the Jacobian's eigenvalues, `(N,)`, in units of 1/tau.
        stable: whether it is negative at a steady state that was reached, `(N,)`.
        converged: whether a steady state was reached, `(N,)`.
    """

    leading: Tensor
    stable: Tensor
    converged: Tensor

    @property
    def largest(self) -> float | None:
        """The largest real part over the steady states that were reached."""
        return float(self.leading[self.converged].max()) if self.converged.any() else None


def check_layers(
    batches: Iterable[Iterable[tuple[Circuit, SteadyState]]],
) -> list[LayerStability]:
    """Checks the stability of every layer.

    Args:
        batches: for each batch of images, each layer's circuits at their steady states.

    Returns:
        One record a layer, its tensors on the CPU.
    """
    layers: list[list[tuple[Tensor, Tensor, Tensor]]] = []
    for batch in batches:
        for number, (circuit, state) in enumerate(batch):
            report = check_stability(circuit, state)
            if number == len(layers):
                layers.append([])
            leading = report.leading_eigenvalue.real
            layers[number].append(
                (leading.cpu(), (report.stable & state.converged).cpu(), state.converged.cpu())
            )
    return [
        LayerStability(*(torch.cat(column) for column in zip(*parts, strict=True)))
        for parts in layers
    ]


def largest_real_part(layers: Sequence[LayerStability]) -> float | None:
    """The largest real part over all layers; None without a layer or a steady state."""
    known = [layer.largest for layer in layers if layer.largest is not None]
    return max(known, default=None)


def stable_fraction(layers: Sequence[LayerStability]) -> float | None:
    """The fraction of the images for which every layer is stable; None without a layer."""
    if not layers:
        return None
    return float(torch.stack([layer.stable for layer in layers]).all(0).double().mean())


def converged_fraction(layers: Sequence[LayerStability]) -> float | None:
    """The fraction of the images for which every layer reached a steady state."""
    if not layers:
        return None
    return float(torch.stack([layer.converged for layer in layers]).all(0).double().mean())
