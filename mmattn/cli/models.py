"""`mmattn models`: what can be attended, from the catalog and from the adapters themselves."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mmattn.cli.options import Debug, Json

if TYPE_CHECKING:
    from mmattn.catalog import Entry
    from mmattn.interception.protocol import Adapter, ModelFamily


def command(json_out: Json = None, debug: Debug = False) -> None:
    """List the models that can be attended."""
    from mmattn.cli.records import PRINTED, write_json

    families = known()
    if json_out is not None:
        write_json([vars(family) for family in families], to=json_out)
    if json_out != PRINTED:
        _show(families)


def known() -> "list[ModelFamily]":
    """Return the catalog's models, then the families that each installed adapter names."""
    from mmattn import catalog, plugins

    adapters = plugins.adapters()
    ours = [_entry(entry, adapters.get(entry.adapter)) for entry in catalog.entries()]
    return ours + [family for adapter in adapters.values() for family in adapter.models()]


def _entry(entry: "Entry", adapter: "Adapter | None") -> "ModelFamily":
    from mmattn.interception.protocol import ModelFamily

    exact = next((family.how_exact for family in adapter.models()), "") if adapter is not None else "adapter missing"
    wheel = entry.wheel
    where = (
        "comes with mmattn" if wheel is None else f"{wheel.requirement} from your package index, {wheel.size_mib} MiB"
    )
    return ModelFamily(name=entry.full_name, what=entry.what, how_exact=exact, source=f"{where}; {entry.license}")


def _show(families: "Sequence[ModelFamily]") -> None:
    """Print a name and what it is on a line; below, once for all that share it, how exact and from where."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    names = max(len(family.name) for family in families)
    for group in _grouped(families):
        table = Table.grid(padding=(0, 3))
        table.add_column(no_wrap=True, min_width=names)
        table.add_column(overflow="fold")
        for family in group:
            table.add_row(Text(family.name, style="bold"), Text(family.what))
        table.add_row("", Text(f"{group[0].how_exact}; weights: {group[0].source}", style="dim"))
        console.print(table)
        console.print()
    console.print(Text("Pass a name to --model; a checkpoint of your own is timm:NAME@FILE. Star: any name like it."))
    console.print(Text("Attention of any other torch module: mmattn.capture, in Python."))


def _grouped(families: "Sequence[ModelFamily]") -> "list[list[ModelFamily]]":
    groups: dict[tuple[str, str], list[ModelFamily]] = {}
    for family in families:
        groups.setdefault((family.how_exact, family.source), []).append(family)
    return list(groups.values())
