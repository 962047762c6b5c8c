"""What importing mmattn costs and brings, and what the tree must never hold."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from jaxtyping import TypeCheckError

import mmattn
import mmattn.adapters
from mmattn.schema.weights import Dense

ROOT = Path(__file__).parent.parent
HEAVY = ("timm", "open_clip", "transformers", "torch_geometric", "matplotlib", "cv2", "av", "torchvision", "onnx")


def loaded_by(code: str) -> set[str]:
    """Return the top-level modules in a fresh interpreter after `code`."""
    asked = f"{code}\nimport json, sys\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout))


def tracked(pattern: str = "") -> list[Path]:
    """Return the files under version control; those of the folder where there is none, as in an sdist."""
    asked = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if not any(part.startswith((".", "build")) for part in path.parts)]
    return [path for path in paths if path.is_file() and path.name.endswith(pattern)]


def test_importing_mmattn_loads_no_model_or_picture_library() -> None:
    assert loaded_by("import mmattn").isdisjoint({*HEAVY, "torch"})


def test_the_doors_load_no_model_or_picture_library() -> None:
    loaded = loaded_by("import mmattn\nfor name in mmattn.__all__: getattr(mmattn, name)")
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY)


def test_names_of_the_stub_and_of_the_door_are_the_same() -> None:
    stub = ast.parse((ROOT / "mmattn" / "__init__.pyi").read_text(encoding="utf-8"))
    named = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert named == set(mmattn.__all__)
    assert named <= set(dir(mmattn))
    for name in sorted(named - {None}, key=str):
        assert getattr(mmattn, str(name)) is not None


def test_no_public_name_is_also_a_folder() -> None:
    folders = {path.parent.name for path in (ROOT / "mmattn").glob("*/__init__.py")}
    assert folders.isdisjoint(mmattn.__all__)


def test_an_unknown_name_raises() -> None:
    with pytest.raises(AttributeError, match="attendd"):
        _ = mmattn.attendd  # type: ignore[attr-defined]


def test_the_version_is_said_once() -> None:
    said = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    assert said is not None
    assert said[1] == mmattn.__version__


def test_wrong_shapes_fail_where_they_arise_in_mmattn_and_in_its_adapters() -> None:
    with pytest.raises(TypeCheckError, match="weights"):
        Dense(weights=torch.zeros(2, 3))
    pixels = importlib.import_module("mmattn.adapters.pixels")
    with pytest.raises(TypeCheckError, match="size_px"):
        pixels.Geometry(size_px="wide")


def test_adapters_are_not_a_package_of_their_own_in_this_process() -> None:
    assert Path(mmattn.adapters.__file__).parent.name == "adapters"
    assert "adapters" not in sys.modules


def test_files_are_at_most_400_lines() -> None:
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in tracked(".py")}
    assert len(lines) > 100
    assert {str(path.relative_to(ROOT)): count for path, count in lines.items() if count > 400} == {}


def test_nothing_names_a_path_of_one_machine() -> None:
    # Spelled in pieces, so that this file holds none of them either.
    paths = re.compile(rb"(?<![\w.:/-])/(?:" + b"work/(?:main|shared)" + rb"|tmp/w/|home/\w+/|Users/\w+/)")
    text = [path for path in tracked() if b"\0" not in path.read_bytes()[:4096]]
    found = [str(path.relative_to(ROOT)) for path in text if paths.search(path.read_bytes())]
    assert found == []


# How our own weights were made: in the repository, not in the wheel.
OF_THE_REPOSITORY = {"mmattn.assets.training"}


def test_every_package_of_the_tree_is_declared() -> None:
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for folder in ("mmattn", "adapters", "assets"):
        for init in (ROOT / folder).rglob("__init__.py"):
            name = ".".join(init.parent.relative_to(ROOT).parts)
            name = name if folder == "mmattn" else f"mmattn.{name}"
            if name in OF_THE_REPOSITORY:
                assert f'"{name}",' not in declared, f"{name} is for the repository only, and would be in the wheel"
                continue
            assert f'"{name}",' in declared, f"{name} is not in packages of pyproject.toml: no wheel holds it"


def test_the_same_commands_run_in_ci_and_before_a_commit() -> None:
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    hooks = re.findall(r"entry: (.*)", (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert len(hooks) == 4
    assert [hook for hook in hooks if f" {hook}\n" not in ci] == []
