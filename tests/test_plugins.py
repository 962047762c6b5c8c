"""Adapters are found by entry point: a third party's, installed as a package, and broken, doubled and tied ones."""

import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import mmattn
from mmattn import plugins
from mmattn.errors import MissingExtraError, ModelError, NotFoundError

PACKAGE = Path(__file__).parent / "packages" / "acme_attention"
PICTURE = np.arange(8 * 12 * 3, dtype=np.uint8).reshape(8, 12, 3)


@pytest.fixture(scope="session")
def acme(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the third party's package into a folder of its own."""
    folder = tmp_path_factory.mktemp("acme")
    shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", folder / "source"]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "site"


@pytest.fixture
def site(acme: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Put the third party's package on the path, and an empty folder for more of them; forget both afterwards."""
    monkeypatch.syspath_prepend(acme)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name, module in list(sys.modules.items()):
        if (file := getattr(module, "__file__", None)) and Path(file).is_relative_to(tmp_path):
            del sys.modules[name]
    for name in ("acme_attention", "acme_models"):
        sys.modules.pop(name, None)


def provide(site: Path, package: str, *, entries: Mapping[str, str], source: str) -> None:
    """Lay a package of one module as pip would: the module, its metadata, its entry points."""
    (site / f"{package}.py").write_text(source, encoding="utf-8")
    info = site / f"{package}-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
    lines = "\n".join(f"{name} = {value}" for name, value in entries.items())
    (info / "entry_points.txt").write_text(f"[{plugins.GROUP}]\n{lines}\n", encoding="utf-8")
    importlib.invalidate_caches()


def claims_only(cls: str, *, name: str) -> str:
    """Return the source of an adapter that claims instances of one class of acme_models."""
    return (
        "import acme_attention, acme_models\n"
        "class Adapter(acme_attention.SquaresAdapter):\n"
        "    def claims(self, model):\n"
        f"        return isinstance(model, acme_models.{cls})\n"
        f"adapter = Adapter(name={name!r})\n"
    )


def models() -> ModuleType:
    return importlib.import_module("acme_models")


def fresh(code: str, *paths: Path) -> str:
    """Run code in a fresh interpreter with these folders on its path."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_third_partys_adapter_is_found_and_reads_its_model(site: Path) -> None:
    model = models().create_model("square_net")
    maps = mmattn.attend(model, image=PICTURE)
    assert maps.source.adapter == "acme_models.squares"
    gray = torch.from_numpy(PICTURE.mean(axis=2, dtype=np.float32) / 255)[None, None]
    squares = model.embed(gray).flatten(2).transpose(1, 2)
    _, expected = model.attention(squares, squares, squares, average_attn_weights=False)
    torch.testing.assert_close(maps["attention"].weights(), expected[0], atol=1e-5, rtol=0)
    assert maps["attention"].key_axis.place(4) == (4.0, 4.0, 8.0, 8.0)


def test_its_prefix_opens_its_models_and_an_unknown_one_lists_them(site: Path) -> None:
    maps = mmattn.attend("acme_models:square_net", image=PICTURE)
    assert maps.source.weights == "acme_models:square_net"
    with pytest.raises(NotFoundError, match=r"square_net, deep_square_net"):
        mmattn.attend("acme_models:square", image=PICTURE)


def test_it_is_loaded_only_when_its_library_is_imported(acme: Path) -> None:
    code = (
        "import sys\nfrom mmattn import plugins\n"
        "print('acme_models.squares' in plugins.installed(), sorted(plugins.adapters(imported_only=True)))\n"
        "print('acme_attention' in sys.modules)\nimport acme_models\n"
        "print(sorted(plugins.adapters(imported_only=True)), 'timm' in sys.modules)\n"
    )
    assert fresh(code, acme).splitlines() == ["True []", "False", "['acme_models.squares'] False"]


def test_or_when_its_prefix_is_asked_for_and_then_no_other_is(acme: Path) -> None:
    code = (
        "import sys, numpy, mmattn\n"
        "mmattn.attend('acme_models:square_net', image=numpy.zeros((8, 8, 3), 'uint8'))\n"
        "print('acme_models' in sys.modules, 'timm' in sys.modules, 'transformers' in sys.modules)\n"
    )
    assert fresh(code, acme).split() == ["True", "False", "False"]


def test_one_that_cannot_be_imported_warns_and_is_skipped(site: Path) -> None:
    provide(site, "acme_gone", entries={"acme_models.gone": "acme_gone:adapter"}, source="import a_package_not_there\n")
    model = models().create_model("square_net")
    with pytest.warns(UserWarning, match=r"acme_models\.gone is skipped.*a_package_not_there.*Update or uninstall"):
        maps = mmattn.attend(model, image=PICTURE)
    assert maps.source.adapter == "acme_models.squares"


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("adapter = 7\n", "is a int and lacks part of the Adapter protocol"),
        ("from acme_attention import SquaresAdapter as adapter\n", "is the class SquaresAdapter"),
        ("other = 7\n", "AttributeError"),
        ("def adapter(:\n", "SyntaxError"),
        ("raise RuntimeError('no license')\n", "RuntimeError: no license"),
    ],
)
def test_what_is_no_adapter_warns_and_is_skipped(site: Path, source: str, said: str) -> None:
    provide(site, "acme_broken", entries={"acme_models.broken": "acme_broken:adapter"}, source=source)
    models()
    with pytest.warns(UserWarning, match=said):
        found = plugins.adapters(imported_only=True)
    assert "acme_models.broken" not in found
    assert "acme_models.squares" in found


def test_one_that_fails_when_it_is_asked_warns_and_is_skipped(site: Path) -> None:
    source = claims_only("NotThere", name="acme_models.failing")
    provide(site, "acme_failing", entries={"acme_models.failing": "acme_failing:adapter"}, source=source)
    with pytest.warns(UserWarning, match=r"failing is skipped: it cannot say whether it reads SquareNet"):
        name, _ = plugins.claiming(models().create_model("square_net"))
    assert name == "acme_models.squares"


def test_a_library_whose_only_adapter_lacks_a_package_says_which(site: Path) -> None:
    provide(
        site, "acme_lacks", entries={"lacking.images": "acme_lacks:adapter"}, source="import a_package_not_there.x\n"
    )
    with pytest.raises(MissingExtraError, match="pip install a_package_not_there"):
        mmattn.attend("lacking:net", image=PICTURE)


def test_a_broken_neighbor_does_not_keep_a_library_from_opening(site: Path) -> None:
    provide(site, "acme_gone", entries={"acme_models.a": "acme_gone:adapter"}, source="import a_package_not_there\n")
    with pytest.warns(UserWarning, match=r"acme_models\.a is skipped"):
        maps = mmattn.attend("acme_models:square_net", image=PICTURE)
    assert maps.source.adapter == "acme_models.squares"


def test_two_that_tie_are_named(site: Path) -> None:
    source = claims_only("SquareNet", name="acme_models.rival")
    provide(site, "acme_rival", entries={"acme_models.rival": "acme_rival:adapter"}, source=source)
    with pytest.raises(ModelError, match=r"acme_models\.rival and acme_models\.squares both read SquareNet"):
        mmattn.attend(models().create_model("square_net"), image=PICTURE)


def test_the_more_derived_class_wins(site: Path) -> None:
    source = claims_only("DeepSquareNet", name="acme_models.deep")
    provide(site, "acme_deep", entries={"acme_models.deep": "acme_deep:adapter"}, source=source)
    assert plugins.claiming(models().create_model("deep_square_net"))[0] == "acme_models.deep"
    assert plugins.claiming(models().create_model("square_net"))[0] == "acme_models.squares"


def test_of_two_with_one_name_the_first_counts_and_a_warning_says_so(site: Path) -> None:
    source = claims_only("SquareNet", name="acme_models.squares")
    provide(site, "acme_twin", entries={"acme_models.squares": "acme_twin:adapter"}, source=source)
    with pytest.warns(UserWarning, match=r"acme_attention:adapter and acme_twin:adapter.*Uninstall one"):
        name, adapter = plugins.claiming(models().create_model("square_net"))
    assert (name, type(adapter).__module__) == ("acme_models.squares", "acme_attention")


def test_a_wrapped_model_is_read_by_the_adapter_of_the_model_inside(site: Path) -> None:
    model = models().create_model("square_net")
    for wrapped in (torch.nn.DataParallel(model), torch.compile(model), torch.nn.DataParallel(torch.compile(model))):
        assert plugins.unwrap(wrapped) is model
        assert plugins.claiming(wrapped)[0] == "acme_models.squares"


def test_a_model_that_no_adapter_reads_is_told_what_to_do() -> None:
    with pytest.raises(ModelError, match=r"No adapter reads .*Linear.*timm\.vit.*mmattn\.capture"):
        mmattn.attend(torch.nn.Linear(2, 2), image=PICTURE)


def test_with_no_adapter_installed_capture_still_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")])
    assert plugins.installed() == {}
    layer = torch.nn.MultiheadAttention(8, 2, batch_first=True).eval()
    x = torch.rand(1, 5, 8)
    with mmattn.capture(layer) as recording:
        layer(x, x, x)
    assert recording.maps[0].weights().shape == (2, 5, 5)
    with pytest.raises(ModelError, match=r"Installed adapters are: none"):
        mmattn.attend(layer, image=PICTURE)
    with pytest.raises(NotFoundError, match=r"Libraries are: .*mmattn"):
        mmattn.attend("timm:vit_tiny_patch16_224", image=PICTURE)
