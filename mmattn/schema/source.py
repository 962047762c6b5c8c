"""Where maps came from: a model, its weights, the adapter and the libraries; for captions and saved files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where maps came from, for captions and saved files.

    Parameters
    ----------
    model
        Class of the model, such as `timm VisionTransformer`.
    weights
        Which weights it had: a catalog name, a pretrained tag, or `random or unknown weights`.
    adapter
        Entry-point name of the adapter, such as `timm.vit`; empty for a bare capture.
    versions
        Library versions that took part.
    preprocessing
        One phrase on how the input reached the model, such as `resized to 518 x 518 px`.

    """

    model: str = "unknown model"
    weights: str = "weights not named"
    adapter: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    preprocessing: str = ""


# Libraries that are imported by another name than they are installed by.
_DISTRIBUTIONS = {"open_clip": "open_clip_torch"}


def versions_of(*packages: str) -> dict[str, str]:
    """Return the versions of those packages that are installed, by the names that they are imported by.

    Examples
    --------
    >>> sorted(versions_of("torch", "no-such-package"))
    ['torch']
    """
    found = {package: _version(_DISTRIBUTIONS.get(package, package)) for package in packages}
    return {package: known for package, known in found.items() if known is not None}


@lru_cache(maxsize=64)  # reading metadata takes a millisecond, and an imported library keeps its version
def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:  # run from a checkout, or a library without a distribution of its name
        return None
