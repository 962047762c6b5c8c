"""What all examples take: where pictures go, which model, which photo."""

import argparse
from dataclasses import dataclass
from pathlib import Path

from mmattn.catalog import photo_path


@dataclass(frozen=True, kw_only=True)
class Options:
    """The output folder, a model's name as on the command line, and a photo."""

    out: Path
    model: str
    photo: Path
    suffix: str

    def picture(self, name: str) -> Path:
        """Return where a picture goes."""
        return self.out / f"{name}.{self.suffix}"


def read_options(*, photo: str | Path, model: str = "mmattn:dinov2-small") -> Options:
    """Return the options of the command line; without them `photo` (a bundled one's name, or a file) and `model`."""
    found = photo_path(photo) if isinstance(photo, str) else photo
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("pictures"), help="folder for the picture")
    parser.add_argument("--model", default=model, help="as for `mmattn image`")
    parser.add_argument("--photo", type=Path, default=found, help="another picture")
    parser.add_argument("--format", default="png", choices=("png", "jpg", "webp", "svg", "pdf", "html"))
    given = parser.parse_args()
    return Options(out=given.out, model=given.model, photo=given.photo, suffix=given.format)
