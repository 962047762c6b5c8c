"""Installs the run-time type checks before anything of mmattn is imported."""

import sys
from pathlib import Path

from jaxtyping import install_import_hook

sys.path.insert(0, str(Path(__file__).parent / "support"))
install_import_hook("mmattn", "typecheck.checker")
