"""Prints one fenced code block of README.md, counted from 1: CI runs what the README says, as it says it."""

import re
import sys
from pathlib import Path

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def main() -> None:
    """Print the block whose number is the only argument."""
    number = int(sys.argv[1])
    blocks = FENCE.findall(Path("README.md").read_text(encoding="utf-8"))
    if len(blocks) < number:
        sys.exit(f"README.md has {len(blocks)} code blocks; {number} was asked for. Its first two are commands.")
    language, text = blocks[number - 1]
    if language not in ("", "sh", "bash", "shell", "console"):
        sys.exit(f"Code block {number} of README.md is {language}. The first two must be commands for a shell.")
    print(text, end="")


main()
