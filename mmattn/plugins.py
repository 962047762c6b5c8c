"""Adapters, found by entry point: ours and third parties' take the same seat.

An adapter is an entry of the group `mmattn.adapters`, named `library.modality` (`timm.vit`). It is
loaded only when its library is already imported or a name with its prefix is asked for. A broken
one warns and is skipped. The most derived model class wins a claim; a tie is an error.
"""

import os
import sys
import warnings
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points

from torch import nn

from mmattn.errors import MissingExtraError, ModelError, NotFoundError, nearest
from mmattn.interception.protocol import Adapter

GROUP = "mmattn.adapters"


def installed() -> dict[str, EntryPoint]:
    """Return all entry points by name, sorted; of two with one name the first counts and a warning says so.

    Examples
    --------
    >>> "timm.vit" in installed()
    True
    """
    found: dict[str, EntryPoint] = {}
    for entry in _entries(tuple((folder, _changed(folder)) for folder in sys.path)):
        if entry.name in found and found[entry.name].value != entry.value:
            warnings.warn(
                f"Two adapters are called {entry.name}: {found[entry.name].value} and {entry.value}. "
                "The first is used. Uninstall one of their packages.",
                stacklevel=2,
            )
        found.setdefault(entry.name, entry)
    return found


@lru_cache(maxsize=1)
def _entries(folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    """Return the entries of these folders, sorted: reading them all takes 5 ms, so only when one has changed."""
    return tuple(sorted(entry_points(group=GROUP), key=lambda e: (e.name, e.value)))


def _changed(folder: str) -> int:
    try:
        return os.stat(folder or os.curdir).st_mtime_ns
    except OSError:
        return 0


def load(name: str, *, needed: bool = False) -> Adapter | None:
    """Load one adapter by its entry's name; None, with a warning, when it is broken.

    Raises
    ------
    NotFoundError
        When no adapter has that name.
    MissingExtraError
        When it is `needed` (a name with its prefix was asked for) and a package that it imports is not installed.
    """
    known = installed()
    if name not in known:
        raise NotFoundError(
            f'There is no adapter "{name}". Installed are: {nearest(name, known)}. '
            "Pass one of those, or install its package."
        )
    try:
        adapter = known[name].load()
    except ImportError as error:
        if needed:
            package = (error.name or name).split(".")[0]
            raise MissingExtraError(
                f"The adapter {name} needs {package}, which cannot be imported ({error}). "
                f"It is installed apart. Install it: pip install {package}."
            ) from error
        _skipped(name, f"it cannot be loaded ({type(error).__name__}: {error})")
        return None
    except Exception as error:  # whatever a third party's import raises
        _skipped(name, f"it cannot be loaded ({type(error).__name__}: {error})")
        return None
    if isinstance(adapter, type):
        _skipped(name, f"{known[name].value} is the class {adapter.__name__}, and an adapter is an object of it")
        return None
    if not isinstance(adapter, Adapter):
        _skipped(name, f"{known[name].value} is a {type(adapter).__name__} and lacks part of the Adapter protocol")
        return None
    return adapter


def adapters(*, library: str | None = None, imported_only: bool = False) -> dict[str, Adapter]:
    """Return the working adapters by name.

    Parameters
    ----------
    library
        Only those of this library (the part before the dot).
    imported_only
        Only those whose library is imported already: no other can own a model that exists.

    Raises
    ------
    MissingExtraError
        When a `library` is asked for and none of its adapters can be loaded, since a package is missing.
    """
    found: dict[str, Adapter] = {}
    missing: dict[str, MissingExtraError] = {}
    for name in installed():
        root = name.split(".")[0]
        if (library and root != library) or (imported_only and root not in sys.modules):
            continue
        try:
            adapter = load(name, needed=library is not None)
        except MissingExtraError as error:
            missing[name] = error
            continue
        if adapter is not None:
            found[name] = adapter
    if missing and not found:
        raise next(iter(missing.values()))
    for name, why in missing.items():
        _skipped(name, str(why))
    return found


def unwrap(model: nn.Module) -> nn.Module:
    """Return the model inside DDP, DataParallel, PEFT and compiled wrappers."""
    seen: set[int] = set()
    while id(model) not in seen:
        seen.add(id(model))
        inner = getattr(model, "_orig_mod", None)  # torch.compile
        if inner is None and type(model).__name__ in (
            "DistributedDataParallel",
            "DataParallel",
            "FullyShardedDataParallel",
        ):
            inner = model.module
        if inner is None and callable(getattr(model, "get_base_model", None)) and hasattr(model, "peft_config"):
            inner = model.get_base_model()  # type: ignore[operator]
        if isinstance(inner, nn.Module):
            model = inner
    return model


def claiming(model: nn.Module) -> tuple[str, Adapter]:
    """Return the adapter that reads this model, and its name.

    Raises
    ------
    ModelError
        When none does (with what to do instead), or when two do with equal right.
    """
    inner = unwrap(model)
    claims = {name: adapter for name, adapter in adapters(imported_only=True).items() if _claims(name, adapter, inner)}
    if not claims:
        known = ", ".join(installed()) or "none"
        raise ModelError(
            f"No adapter reads {type(inner).__module__}.{type(inner).__qualname__}. Installed adapters are: {known}. "
            "Read it without places: `with mmattn.capture(model) as recording: model(x)`, then recording.maps; "
            "or write an adapter (CONTRIBUTING.md)."
        )
    depth = {name: len(_claimed_class(adapter, inner).__mro__) for name, adapter in claims.items()}
    winners = [name for name in claims if depth[name] == max(depth.values())]
    if len(winners) > 1:
        raise ModelError(
            f"{' and '.join(winners)} both read {type(inner).__qualname__}. One adapter must read a model. "
            "Uninstall one of their packages, or let one claim a more derived class."
        )
    return winners[0], claims[winners[0]]


def _claims(name: str, adapter: Adapter, model: nn.Module) -> bool:
    try:
        return bool(adapter.claims(model))
    except Exception as error:  # one broken adapter must not keep the others from reading their models
        _skipped(name, f"it cannot say whether it reads {type(model).__qualname__} ({type(error).__name__}: {error})")
        return False


def _claimed_class(adapter: Adapter, model: nn.Module) -> type:
    """Return the class by which an adapter claims a model: the least derived one that it still claims.

    An adapter may say so itself with `claimed_class(model)`. Else it is asked about blank objects of the
    model's base classes; one that looks at attributes claims none of them, and so the model's own class.
    """
    say = getattr(adapter, "claimed_class", None)
    claimed = type(model)
    if callable(say) and isinstance(said := say(model), type):
        return said
    for cls in type(model).__mro__[1:]:
        if not issubclass(cls, nn.Module):
            continue
        blank = cls.__new__(cls)
        nn.Module.__init__(blank)
        try:
            if adapter.claims(blank):
                claimed = cls
        except Exception:  # a blank object lacks what this adapter looks at
            continue
    return claimed


def _skipped(name: str, why: str) -> None:
    warnings.warn(
        f"The adapter {name} is skipped: {why}. A working adapter is an object with the methods of "
        "mmattn.interception.protocol.Adapter. Update or uninstall its package.",
        stacklevel=3,
    )
