"""What ingest noted reaches the contract, the report and the rows that a model learns from."""

from pathlib import Path

from slml.contract import Contract
from slml.notes import Note
from slml.quality.audit import audit
from slml.quality.clean import clean
from slml.quality.infer import infer
from slml.quality.report import report
from slml.tables.catalog import Catalog
from slml.tables.ingest import ingest_files
from slml.workspace import Workspace

ROWS = "".join(f"0{2100 + n},{n % 28 + 1:02}/02/2024,{n}.5\n" for n in range(60))


def test_a_note_of_ingest_is_read_at_the_end(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("zip,day,price\n" + ROWS)
    catalog = Catalog(workspace)
    snapshot = catalog.snapshot(ingest_files(str(tmp_path / "t.csv"), "t", workspace).snapshot)
    assert {"zip", "day"} <= {note.column for note in snapshot.notes}
    contract = infer(snapshot, target="price", workspace=workspace)
    restored = Contract.from_json(contract.to_json())
    assert restored == contract
    assert [Note.__reduce__(note) for note in restored.notes] == [Note.__reduce__(note) for note in contract.notes]
    ledger = clean(snapshot, contract, catalog, workspace=workspace)
    assert catalog.snapshot(ledger.kept_snapshot).notes == snapshot.notes
    findings = audit(snapshot, contract.replace(notes=()), workspace=workspace)
    page = report(findings, ledger, contract.replace(notes=()))
    assert "<td>zip</td>" in page
    assert "day first" in page


def test_notes_of_added_files_stand_beside_those_before(workspace: Workspace, tmp_path: Path) -> None:
    for name, text in (("a", "x,price\n1,2.5\n\n2,3.5\n"), ("b", "x,price\n 3,4.5\n 4,5.5\n")):
        (tmp_path / f"{name}.csv").write_text(text)
        report_of = ingest_files(str(tmp_path / f"{name}.csv"), "t", workspace)
    notes = Catalog(workspace).snapshot(report_of.snapshot).notes
    assert any("blank lines" in note for note in notes)
    assert any("blanks around" in note for note in notes)
