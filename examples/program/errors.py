"""How an example tells its user that something is wrong: one sentence instead of a traceback."""

import sys
from collections.abc import Callable


class ExampleError(Exception):
    """Something the user can put right; the message names it, what came and what was expected."""


RESUMABLE = "--resume continues from the last finished epoch"


def run_example(example: Callable[[], None], when_interrupted: str = RESUMABLE) -> int:
    """Runs an example and returns its exit status, printing an `ExampleError` as one sentence.

    Args:
        example: what to run.
        when_interrupted: what its user should know after an interruption.
    """
    try:
        example()
    except ExampleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"interrupted; {when_interrupted}", file=sys.stderr)
        return 130
    return 0
