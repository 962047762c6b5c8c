"""The command line: `mmattn image`, `mmattn models`, `mmattn demo`; one file a command."""

from mmattn.cli.app import main

__all__ = ["main"]
