"""How the rows of a batch are spread over threads: a call of a C kernel releases the interpreter.

The threads end with the call. Nothing is kept that a fork could break, and several threads of a
program can call at once.
"""

import threading
from collections.abc import Callable
from itertools import pairwise

import torch

__all__ = ["spread"]


def spread(call: Callable[[int, int, int], int], rows: int, most: int) -> None:
    """``call(i, first, last)`` for equal parts of the rows, part ``i`` in a thread of its own.

    Args:
        call: Computes the rows ``first`` to ``last - 1``; it returns 0, or 1 without memory.
        rows: How many there are.
        most: How many parts are worth their thread; ``torch.get_num_threads()`` limits them too.

    Raises:
        MemoryError: A kernel found no memory for its scratch.
    """
    parts = part_count(rows, most)
    bounds = [rows * part // parts for part in range(parts + 1)]
    codes = [0] * parts
    errors: list[BaseException] = []

    def run(part: int, first: int, last: int) -> None:
        try:
            codes[part] = call(part, first, last)
        except BaseException as error:
            errors.append(error)

    threads = [
        threading.Thread(target=run, args=(part, first, last))
        for part, (first, last) in enumerate(pairwise(bounds))
        if part > 0
    ]
    for thread in threads:
        thread.start()
    run(0, bounds[0], bounds[1])
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    if any(codes):
        raise MemoryError(f"a kernel found no memory to work on {rows} rows in {parts} threads")


def part_count(rows: int, most: int) -> int:
    """In how many parts :func:`spread` cuts the rows, while torch's threads stay as they are."""
    return max(1, min(rows, most, torch.get_num_threads()))
