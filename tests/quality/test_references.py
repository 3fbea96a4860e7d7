"""A rule that compares with another table finds it by name in the workspace, in Python and in the job."""

import pyarrow as pa
import pytest

from slml.contract import Column, Contract, Equals
from slml.errors import ContractError
from slml.quality.audit import audit
from slml.quality.clean import clean
from slml.runners.open import run_job
from slml.runs.job import job
from slml.tables.catalog import Catalog
from slml.workspace import Workspace

CONTRACT = Contract(
    name="trips",
    columns=(Column("id", "int"), Column("zone", "int"), Column("price", "float")),
    key=("id",),
    rules=(Equals("price", reference="tariffs", on="zone"),),
)
TRIPS = pa.table({"id": [1, 2, 3, 4], "zone": [1, 2, 3, 2], "price": [9.5, 12.0, 9.5, 8.0]})
RULE = CONTRACT.rules[0].name


@pytest.fixture
def catalog(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return Catalog(Workspace(root=str(tmp_path / "root"), project="demo", cores=2))


def test_a_reference_is_found_by_its_name(catalog):
    trips, workspace = catalog.table("trips").append(TRIPS), Workspace(root=catalog._root, project="demo", cores=2)
    catalog.table("tariffs").append(pa.table({"zone": ["1", "2"], "price": ["9.50", "12"]}))
    assert {f.name: f.count for f in audit(trips, CONTRACT, workspace=workspace).findings if f.count} == {RULE: 2}
    ledger = clean(trips, CONTRACT, catalog, workspace=workspace)
    assert (ledger.kept, ledger.by_rule[RULE]) == (2, 2)
    again = clean(trips, CONTRACT, catalog, workspace=workspace)
    assert again.kept_snapshot == ledger.kept_snapshot
    catalog.table("tariffs").append(pa.table({"zone": ["3"], "price": ["9.50"]}))
    assert clean(trips, CONTRACT, catalog, workspace=workspace).kept == 3


def test_a_reference_that_is_missing_is_named_with_the_closest(catalog):
    trips, workspace = catalog.table("trips").append(TRIPS), Workspace(root=catalog._root, project="demo", cores=2)
    with pytest.raises(ContractError, match="needs the reference table 'tariffs'"):
        audit(trips, CONTRACT, workspace=workspace)
    catalog.table("tariff").append(TRIPS)
    with pytest.raises(ContractError, match="did you mean 'tariff'"):
        clean(trips, CONTRACT, catalog, workspace=workspace)


def test_the_audit_job_finds_it_too(catalog, tmp_path):
    trips, workspace = catalog.table("trips").append(TRIPS), Workspace(root=catalog._root, project="demo", cores=2)
    catalog.table("tariffs").append(pa.table({"zone": [1, 2], "price": [9.5, 12.0]}))
    CONTRACT.save(f"{tmp_path}/trips.json")
    run = run_job(job("audit", {"snapshot": trips.ref, "contract": f"{tmp_path}/trips.json"}), workspace)
    assert (run.outputs["kept"], run.outputs["by_rule"][RULE]) == (2, 2)
