"""Builds the API reference from the docstrings into site/: `python docs/build.py [FOLDER]`, with pdoc of the dev extra.

The first page is `mmattn` itself, whose names are loaded lazily, and pdoc follows only what a package lists;
so the modules are named here, and it is checked that every public name has its place on the first page.
"""

import importlib
import pkgutil
import sys
import warnings
from pathlib import Path

import pdoc

import mmattn

ROOT = Path(__file__).parent.parent
LEFT_OUT = ("mmattn.cli", "mmattn.assets")  # commands are told by --help; assets hold no code


def modules() -> list[str]:
    """Return what has a page, in the order of the menu."""
    found = ["mmattn", "mmattn.adapters"]
    for package in (mmattn, importlib.import_module("mmattn.adapters")):
        found += [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return [name for name in dict.fromkeys(found) if not name.startswith(LEFT_OUT)]


def main() -> None:
    """Write the pages and say where they are; end non-zero when a public name is missing from them."""
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site"
    pdoc.render.configure(docformat="numpy", math=True, footer_text=f"mmattn {mmattn.__version__}")
    names = modules()
    warnings.filterwarnings("ignore", "The module specification")  # pdoc finds some of them by itself as well
    pdoc.pdoc(*names, output_directory=out)
    page = (out / "mmattn.html").read_text(encoding="utf-8")
    missing = [name for name in mmattn.__all__ if f'id="{name}"' not in page]
    if missing:
        sys.exit(f"The page of mmattn lacks {', '.join(missing)}. Every public name has a docstring there.")
    print(f"{len(names)} pages in {out}; open {out / 'index.html'}")


main()
