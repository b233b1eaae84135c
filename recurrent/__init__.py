"""ORGaNICs for sequences: the circuit of :mod:`deq_organics` stepped through time.

Equations: Rawat, Heeger, Martiniani, "Unconditional stability of a recurrent neural circuit
implementing divisive normalization", NeurIPS 2024 (Eq. 87, the rectified model, and Eq. 17, the
dynamic input gains).
"""

from .cell import ORGaNICsCell
from .dynamics import State
from .rnn import ORGaNICsRNN
from .stability import TrajectoryReport, check_trajectory

__all__ = ["ORGaNICsCell", "ORGaNICsRNN", "State", "TrajectoryReport", "check_trajectory"]
