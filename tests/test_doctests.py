"""Every example in a docstring runs, under the run-time type checks like all else."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import mmattn
import mmattn.adapters

PUBLIC = mmattn.__all__


class Finder(doctest.DocTestFinder):
    """Finds examples through the wrappers of the type checker, whose own globals are another module's."""

    def _from_module(self, module: ModuleType | None, object: Any) -> bool:
        if inspect.isfunction(object) or inspect.isclass(object):
            return module is not None and object.__module__ == module.__name__
        return super()._from_module(module, object)  # type: ignore[misc]


def modules() -> list[str]:
    found = ["mmattn"]
    for package in (mmattn, mmattn.adapters):
        found += [info.name for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")]
    return sorted(set(found))


def examples_of(name: str) -> list[doctest.DocTest]:
    module = importlib.import_module(name)
    return [test for test in Finder(exclude_empty=True).find(module, name) if test.examples]


@pytest.mark.parametrize("name", modules())
def test_examples_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    said: list[str] = []
    for test in examples_of(name):
        runner.run(test, out=said.append)
    assert runner.summarize(verbose=False).failed == 0, "".join(said)


def test_examples_are_found_through_the_wrappers_of_the_type_checker() -> None:
    assert "mmattn.errors.nearest" in {test.name for test in examples_of("mmattn.errors")}
    assert len(examples_of("mmattn.api")) >= 3


@pytest.mark.parametrize("name", [name for name in PUBLIC if not name.startswith("_")])
def test_public_names_have_an_example(name: str) -> None:
    thing = getattr(mmattn, name)
    doc = inspect.getdoc(thing) or ""
    assert len(doc) > 40, f"mmattn.{name} has no docstring"
    if inspect.isfunction(thing):
        assert "Examples\n--------\n>>> " in doc, f"mmattn.{name} has no example that runs"
