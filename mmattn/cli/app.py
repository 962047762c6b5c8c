"""The program `mmattn`: its commands, and what a user sees when something is wrong.

    exit code   what happened                                       on standard error
    0           everything was done
    2           what was given cannot be used (any MmattnError)     one line: mmattn: what; right; what to do
    1           mmattn itself failed                                one line, with how to see the trace
    130         interrupted (Ctrl-C)

Torch and the model libraries are imported inside the commands, so that `mmattn --help` answers at once.
"""

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from mmattn.cli import demo, image, match, models
from mmattn.errors import MmattnError

FAILED, WRONG_INPUT, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="mmattn",
    help="Show what an attention model was looking at, in whatever it looked at.",
    epilog="Start with: mmattn demo --out gallery",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("image")(image.command)
app.command("match")(match.command)
app.command("models")(models.command)
app.command("demo")(demo.command)


def _version(asked: bool) -> bool:
    if asked:
        import mmattn

        typer.echo(f"mmattn {mmattn.__version__}")
        raise typer.Exit
    return asked


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and leave.")
    ] = False,
) -> None:
    """Show what an attention model was looking at, in whatever it looked at."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; never raises for what a user can cause.

    Parameters
    ----------
    arguments
        Without the program's name; by default those of the process.

    Examples
    --------
    >>> main(["--version"])
    mmattn 0.1.0
    0

    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        return _run(given)


def _run(given: list[str]) -> int:
    try:
        code = app(args=given, prog_name="mmattn", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except MmattnError as error:
        return _said(str(error), WRONG_INPUT, given)
    except (KeyboardInterrupt, typer.Abort):
        return _said("Interrupted; files that were written are whole.", INTERRUPTED, given)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the reader of our output left, as `head` does
        return FAILED
    except Exception as error:  # the last line of defense: a user sees one line, not a trace
        if hasattr(error, "format_message"):  # a usage error of typer's, whose classes moved between versions
            return _misused(error, given)
        what = f"mmattn failed: {type(error).__name__}: {error}. This is a fault of mmattn, not of your input."
        return _said(f"{what} Run it again with --debug and report what it shows.", FAILED, given)


def _misused(error: Any, given: list[str]) -> int:
    """Say what is wrong with the options; without any option the help is shown instead."""
    message = str(error.format_message()).strip()
    if not message or type(error).__name__ == "NoArgsIsHelpError":
        print(message or "See mmattn --help.")
        return 0 if not given else WRONG_INPUT
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "mmattn"
    return _said(f"{message.rstrip('.')}. See `{path} --help`.", WRONG_INPUT, given)


def _said(message: str, code: int, given: list[str]) -> int:
    if "--debug" in given and code != INTERRUPTED:
        traceback.print_exc()
    print(f"mmattn: {one_line(message)}", file=sys.stderr)
    return code


def one_line(text: str) -> str:
    r"""Return text on one line, with what would steer a terminal written out.

    Examples
    --------
    >>> one_line("two\nlines \x1b[31mred")
    'two lines \\x1b[31mred'

    """
    flat = " ".join(text.split())
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in flat)


def _warn(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"mmattn: warning: {one_line(str(message))}", file=sys.stderr)
