"""Every head of every layer in one sheet, on one scale, so that heads can be compared.

python examples/head_grid.py --out pictures
"""

from pathlib import Path

from options import read_options

import mmattn


def main() -> Path:
    """Draw what the class token looked at in each head of each layer."""
    options = read_options(photo="astronaut")
    maps = mmattn.attend(options.model, image=options.photo)
    return mmattn.head_grid(maps).save(options.picture("head_grid"))


if __name__ == "__main__":
    print(main())
