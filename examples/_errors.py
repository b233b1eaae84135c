"""How an example tells its user that something is wrong: one sentence instead of a traceback."""

import sys
from collections.abc import Callable


class ExampleError(Exception):
    """Something the user can put right; the message names it, what came and what was expected."""


def run_example(example: Callable[[], None]) -> int:
    """Runs an example and returns its exit status, printing an `ExampleError` as one sentence."""
    try:
        example()
    except ExampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; --resume continues from the last finished epoch", file=sys.stderr)
        return 130
    return 0
