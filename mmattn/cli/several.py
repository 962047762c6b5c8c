"""Several inputs, some of which cannot be read: the others are done, and the bad ones are named at the end."""

import sys
from collections.abc import Sequence

from mmattn.errors import InputError, NotFoundError, PlaceError

OF_ONE = (InputError, PlaceError, NotFoundError)
"""What may be wrong with one input alone, while the others are done."""

Failed = InputError | PlaceError | NotFoundError


def report(failed: Sequence[Failed], *, count: int, what: str = "pictures") -> None:
    """Raise for what failed: the error itself for one input, else a summary behind one line for each kind."""
    if not failed:
        return
    if count == 1:
        raise failed[0]
    messages = list(dict.fromkeys(str(error) for error in failed))
    for message in messages[:-1]:
        say(message)
    done = count - len(failed)
    summary = f"{len(failed)} of {count} {what} could not be drawn; the other {done} are done."
    raise InputError(f"{summary} {messages[-1]}") from failed[-1]


def say(sentence: str) -> None:
    """Say something that is no result, on standard error."""
    from mmattn.cli.app import one_line

    print(f"mmattn: {one_line(sentence)}", file=sys.stderr)
