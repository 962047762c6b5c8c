"""What is shipped: the wheel and the sdist are built, looked into, and the wheel is installed and used."""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "__pycache__", "*.egg-info", "build", "dist", "site", "out", ".*_cache", ".hypothesis", "*-demo"
)
MOST_BYTES = 40_000_000
TRAINING = "mmattn/assets/training/"
USE = """
import sys
import timm
import mmattn, mmattn.assets, mmattn.adapters
from importlib.resources import files

photo = files("mmattn.assets") / "photos" / "astronaut.jpg"
model = timm.create_model("vit_tiny_patch16_224").eval()
maps = mmattn.attend(model, image=str(photo))
mmattn.draw(maps).save(sys.argv[1])
print(mmattn.__file__, mmattn.adapters.__file__, mmattn.assets.__file__, sep="\\n")
"""


@dataclass(frozen=True, kw_only=True)
class Built:
    """What a build of the tree gave."""

    wheel: Path
    sdist: Path

    def names(self) -> set[str]:
        """Return the files in the wheel."""
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def text(self, ending: str) -> str:
        """Return the one file of the wheel whose name ends so."""
        with zipfile.ZipFile(self.wheel) as archive:
            (name,) = (name for name in archive.namelist() if name.endswith(ending))
            return archive.read(name).decode("utf-8")


def run(*command: str | Path, cwd: Path) -> str:
    """Run a command outside the tree, with none of this process's paths; return what it printed."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def build(tree: Path, out: Path, what: Sequence[str] = ("--wheel", "--sdist")) -> None:
    run(sys.executable, "-m", "build", "--no-isolation", *what, "--outdir", out, tree, cwd=out.parent)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Build both from a copy of the tree, so that nothing left lying in it gets in or is left behind."""
    folder = tmp_path_factory.mktemp("built")
    shutil.copytree(ROOT, folder / "tree", ignore=LEFT_OUT)
    build(folder / "tree", folder / "dist")
    (wheel,) = (folder / "dist").glob("*.whl")
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    return Built(wheel=wheel, sdist=sdist)


@pytest.fixture(scope="session")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel into a fresh environment that sees the heavy packages of this one; return its folder.

    They come by a path file, whose own path files are not read: the editable mmattn of this environment stays away.
    """
    folder = tmp_path_factory.mktemp("fresh") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
    python = folder / "bin" / "python"
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder).strip())
    heavy = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "heavy.pth").write_text("\n".join(heavy) + "\n", encoding="utf-8")
    pip = (sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check")
    run(*pip, "install", "--no-deps", "--no-index", built.wheel, cwd=folder)
    return folder


def test_only_mmattn_lands_in_site_packages(built: Built) -> None:
    tops = {name.split("/")[0] for name in built.names()}
    assert tops == {"mmattn", "mmattn-0.1.0.dist-info"}


def test_every_module_of_the_tree_is_in_the_wheel(built: Built) -> None:
    here = {path.relative_to(ROOT).as_posix() for path in (ROOT / "mmattn").rglob("*.py*") if path.suffix != ".pyc"}
    for folder in ("adapters", "assets"):
        here |= {f"mmattn/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / folder).rglob("*.py")}
    assert {name for name in here if not name.startswith(TRAINING)} <= built.names()


def test_how_models_are_trained_is_in_the_sdist_and_not_in_the_wheel(built: Built) -> None:
    assert not any(name.startswith(TRAINING) for name in built.names())
    with tarfile.open(built.sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"assets/training/scenes.py", "assets/training/nouns.tsv", "assets/training/objects/1f436.webp"} <= names


def test_what_is_no_code_is_in_the_wheel(built: Built) -> None:
    names = built.names()
    assert {"mmattn/py.typed", "mmattn/__init__.pyi"} <= names
    away = ROOT / "assets" / "training"
    here = [path for path in (ROOT / "assets").rglob("*") if path.is_file() and path.suffix != ".pyc"]
    shipped = [path for path in here if not path.is_relative_to(away)]
    assert {f"mmattn/assets/{path.relative_to(ROOT / 'assets').as_posix()}" for path in shipped} <= names
    assert {"mmattn/assets/catalog.toml", "mmattn/assets/SOURCES.md"} <= names
    assert sum(name.startswith("mmattn/assets/photos/") for name in names) >= 5


def test_the_wheel_is_small_and_runs_everywhere(built: Built) -> None:
    assert built.wheel.name == "mmattn-0.1.0-py3-none-any.whl"
    assert built.wheel.stat().st_size < MOST_BYTES


def test_the_metadata_names_licence_python_commands_and_adapters(built: Built) -> None:
    metadata = Parser().parsestr(built.text("METADATA"))
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Requires-Python"] == ">=3.11"
    assert {"test", "dev", "bench"} <= set(metadata.get_all("Provides-Extra", []))
    assert "Apache License" in built.text("licenses/LICENSE")
    entries = built.text("entry_points.txt")
    assert "mmattn = mmattn.cli:main" in entries
    assert "timm.vit = mmattn.adapters.vit.timm:adapter" in entries


def test_the_upper_bound_of_torch_stands_in_one_place(built: Built) -> None:
    required = Parser().parsestr(built.text("METADATA")).get_all("Requires-Dist", [])
    bounded = [line for line in required if "<" in line]
    assert [line.split("<")[0].split(">")[0] for line in bounded] == ["torch"]


def test_the_sdist_holds_the_tests_and_builds_the_same_wheel(built: Built, tmp_path: Path) -> None:
    with tarfile.open(built.sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (tree,) = tmp_path.iterdir()
    assert (tree / "tests" / "packaging" / Path(__file__).name).is_file()
    assert (tree / ".ci" / "run").is_file()
    build(tree, tmp_path / "dist", ["--wheel"])
    (again,) = (tmp_path / "dist").glob("*.whl")
    assert contents(again) == contents(built.wheel)


def contents(wheel: Path) -> dict[str, str]:
    """Return the hash of every file in a wheel."""
    with zipfile.ZipFile(wheel) as archive:
        return {name: hashlib.sha256(archive.read(name)).hexdigest() for name in archive.namelist()}


def test_the_installed_wheel_draws_a_photo_of_its_own(installed: Path, tmp_path: Path) -> None:
    picture = tmp_path / "seen.png"
    said = run(installed / "bin" / "python", "-c", USE, picture, cwd=tmp_path).splitlines()
    assert picture.stat().st_size > 10_000
    site = installed.resolve()
    assert len(said) == 3
    assert all(Path(line).resolve().is_relative_to(site) for line in said), said


def test_the_demo_runs_from_the_installed_wheel(installed: Path, tmp_path: Path) -> None:
    run(installed / "bin" / "mmattn", "demo", "--out", tmp_path / "demo", cwd=tmp_path)
    page = (tmp_path / "demo" / "index.html").read_text(encoding="utf-8")
    pictures = list((tmp_path / "demo").rglob("*.png"))
    assert pictures
    assert any(picture.name in page for picture in pictures)
