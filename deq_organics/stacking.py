"""Several circuits as one batch."""

from collections.abc import Sequence

from .circuit import Circuit
from .circuit_parts import stacked

__all__ = ["stack"]


def stack(circuits: Sequence[Circuit]) -> Circuit:
    """Circuits in one batch, with a new first dimension: ``stack(circuits)[i]`` is the i-th.

    A tensor that is one and the same object in all circuits stays shared; others are copied.
    Differentiable.

    Args:
        circuits: At least one, with equal leading dimensions.

    Returns:
        A circuit with ``batch_shape == (len(circuits), *circuits[0].batch_shape)``.

    Raises:
        TypeError: An entry is no circuit.
        ValueError: There is none; or leading dimensions, numbers of neurons, dtypes, devices,
            exponents or models differ, or only some have recurrent weights. The message names the
            first that does.
    """
    listed = list(circuits)
    if not listed:
        raise ValueError("circuits: got none, expected at least one")
    for number, circuit in enumerate(listed):
        if not isinstance(circuit, Circuit):
            raise TypeError(f"circuits[{number}]: got {type(circuit).__name__}, expected a Circuit")
    return Circuit(*stacked([circuit.parameters for circuit in listed]))
