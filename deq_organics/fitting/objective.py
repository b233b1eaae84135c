"""The misfit as a function of one vector, and its derivatives through the steady state."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from ..checks import physical
from ..circuit import Circuit
from ..errors import SteadyStateError
from ..steady_state import Status
from .data import NoPrediction, Responses, Spectra
from .parameters import Vector

__all__ = ["Objective"]

# What a circuit's own checks, its solve and linear algebra raise for values of no circuit.
_IMPOSSIBLE = (
    NoPrediction,
    SteadyStateError,
    ValueError,
    torch.linalg.LinAlgError,  # type: ignore[attr-defined]
)


class Objective:
    """Counts the points that were tried, and survives those at which there is no prediction."""

    def __init__(
        self,
        build: Callable[[Mapping[str, Tensor]], Circuit],
        vector: Vector,
        data: Sequence[Responses | Spectra],
        tol: float,
    ) -> None:
        self._build, self._vector, self._data, self._tol = build, vector, data, tol
        self.evaluations = 0
        self.failures: list[str] = []

    def residual(self, vector: Tensor) -> Tensor:
        """Prediction minus data in units of the noise, ``(M,)``; differentiable.

        Raises:
            NoPrediction: There is no stable steady state, or the prediction is not finite.
        """
        parameters = self._vector.split(vector)
        circuit = self.circuit(vector)
        state = circuit.steady_state(tol=self._tol, on_failure="ignore")
        status = physical(state.status)
        if not bool((status == Status.CONVERGED).all()):
            first = Status(int(status[status != Status.CONVERGED].flatten()[0]))
            count = int((status != Status.CONVERGED).sum())
            raise NoPrediction(f"{count} of {status.numel()} circuits: {first.message}")
        parts = [each.residual(circuit, state, parameters) for each in self._data]
        whole = torch.cat(parts)
        if not bool(torch.isfinite(physical(whole)).all()):
            raise NoPrediction("a prediction that is not finite")
        return whole

    def circuit(self, vector: Tensor) -> Circuit:
        """The circuits at a point.

        Raises:
            TypeError: ``build`` does not return a circuit in double precision.
        """
        circuit = self._build(self._vector.split(vector))
        if not isinstance(circuit, Circuit):
            raise TypeError(f"build: got {type(circuit).__name__}, expected a Circuit")
        if circuit.input_drive.dtype != torch.float64:
            raise TypeError(f"build: got circuits of {circuit.input_drive.dtype}, expected float64")
        return circuit

    def try_residual(self, vector: Tensor) -> Tensor | None:
        """The residual without a gradient; None, and one more failure, where there is none."""
        self.evaluations += 1
        try:
            with torch.no_grad():
                return self.residual(vector)
        except _IMPOSSIBLE as error:
            self.failures.append(str(error))
            return None

    def jacobian(self, vector: Tensor) -> Tensor:
        """Of the residual, ``(M, P)``, by forward-mode derivatives of the steady state."""
        found: Tensor = torch.func.jacfwd(self.residual)(vector)
        return found

    def hessian(self, vector: Tensor) -> Tensor:
        """Of half of the residual's square, ``(P, P)``."""

        def half(point: Tensor) -> Tensor:
            return 0.5 * self.residual(point).square().sum()

        found: Tensor = torch.func.hessian(half)(vector)
        return found
