"""`mmattn demo`."""

from mmattn.cli.options import Debug


def command(debug: Debug = False) -> None:
    """Draw every job on the bundled photographs and write a gallery."""
