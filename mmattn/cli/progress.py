"""A progress bar on standard error, for what takes longer than a second; nothing where nobody watches."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHOWN_AFTER_S = 1.0

Step = Callable[[str], None]


@contextmanager
def progress(total: int, *, first: str) -> Iterator[Step]:
    """Give a function to call as each step begins, with what it is about.

    The bar appears after a second, is removed at the end, and is not drawn at all where standard
    error is no terminal.

    Parameters
    ----------
    total
        How many steps there will be.
    first
        What is shown before the first step.

    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task(first, total=total)
    begun = -1

    def step(what: str) -> None:
        nonlocal begun
        begun += 1
        bar.update(task, completed=begun, description=what)

    timer = threading.Timer(SHOWN_AFTER_S, bar.start)
    timer.daemon = True
    timer.start()
    try:
        yield step
    finally:
        timer.cancel()
        bar.stop()
