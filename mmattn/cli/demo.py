"""`mmattn demo`: every job on the bundled photographs and scenes with real weights, and a page that shows them.

Nothing is faked: without the weights nothing is drawn, and one line says how to get them. The
gallery is made in a folder inside its own, then moved file by file, `index.html` last; other files
that lie there are left alone.
"""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from mmattn.cli.options import DEFAULT_MODEL, Debug, Device, DeviceOption, Model
from mmattn.errors import MmattnError, OutputError

INDEX = "index.html"


def command(
    *,
    out: Annotated[str, typer.Option("--out", "-o", metavar="DIR", help="The folder of the gallery.")] = "mmattn-demo",
    model: Model = DEFAULT_MODEL,
    device: DeviceOption = Device.auto,
    debug: Debug = False,
) -> None:
    """Draw every job on the bundled pictures and write a gallery, DIR/index.html."""
    from mmattn.cli import session
    from mmattn.cli.outputs import check_writable, place_of

    folder = place_of(out, option="--out")
    check_writable(folder, wants="folder", option="--out")
    session.fetch(model)
    with _made_whole(folder) as staging:
        _fill(staging, model=model, device=device)
    print(folder / INDEX)


def _fill(staging: Path, *, model: str, device: Device) -> None:
    """Draw everything into a folder."""
    from mmattn import catalog
    from mmattn.cli import jobs, scene_jobs, session, word_jobs
    from mmattn.cli.credits import credits, scene_credits
    from mmattn.cli.gallery import page
    from mmattn.cli.progress import progress
    from mmattn.cli.studio import PHOTOS, SCENES, Studio

    _copy(map(catalog.photo_path, catalog.photos()), staging / PHOTOS)
    _copy(map(catalog.scene_path, catalog.scenes()), staging / SCENES)
    count = jobs.step_count() + scene_jobs.step_count() + word_jobs.step_count()
    with progress(count, first=f"Opening {model}") as step:
        opened = session.open_model(model, device=device)
        studio = Studio(model=opened, folder=staging, step=step, again=jobs.AGAIN)
        done = list(jobs.run_all(studio))
        done += scene_jobs.run_all(folder=staging, step=step, device=device)
        done += word_jobs.run_all(folder=staging, step=step, device=device)
    shown = {path.name for folder in (PHOTOS, SCENES) for path in (staging / folder).iterdir()}
    known = [credit for credit in (*credits(), *scene_credits()) if credit.file in shown]
    (staging / INDEX).write_text(page(done, folder=staging, model=model, credits=known), encoding="utf-8")


def _copy(paths: Iterable[Path], folder: Path) -> None:
    folder.mkdir()
    for path in paths:
        shutil.copyfile(path, folder / path.name)


@contextlib.contextmanager
def _made_whole(folder: Path) -> Iterator[Path]:
    """Give an empty folder whose files are moved into `folder` at the end, all or none."""
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".making-", dir=folder) as staging:
            yield Path(staging)
            _move(Path(staging), folder)
    except BaseException as error:
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()
        if isinstance(error, OSError) and not isinstance(error, MmattnError):
            raise OutputError(
                f"The gallery cannot be written to '{folder}': {error.strerror or error}. It is a folder that is there "
                "or can be made, with some 30 MB of space. Choose another with --out."
            ) from error
        raise


def _move(staging: Path, folder: Path) -> None:
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    for path in sorted(files, key=lambda path: path.name == INDEX and path.parent == staging):
        target = folder / path.relative_to(staging)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
