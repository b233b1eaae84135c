"""Training steps as CUDA graphs: launched by one call, without the host's time for each kernel."""

import torch

from harness.race import Step, run_step

__all__ = ["capture"]

_WARM_UP = 2


def capture(step: Step) -> Step:
    """The step as two CUDA graphs, one per half, that share a pool of memory.

    The step must read its input and weights from the same tensors at every call, and never wait for
    the device.

    Raises:
        RuntimeError: There is no CUDA device, or the step cannot be captured.
    """
    if not torch.cuda.is_available():
        raise RuntimeError("CUDA graphs need a CUDA device, and torch finds none")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            run_step(step)
    torch.cuda.current_stream().wait_stream(side)
    pool = torch.cuda.graph_pool_handle()
    forward, backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(forward, pool=pool):
        result = step.forward()
    with torch.cuda.graph(backward, pool=pool):
        step.backward(result)
    return Step(forward=forward.replay, backward=lambda _: backward.replay())
