"""Whether the finished slides of a cohort are whole."""

from __future__ import annotations

from wsi_pgdips.cohort.folder import Cohort, JobFolder
from wsi_pgdips.cohort.report import rows_of
from wsi_pgdips.errors import WsiPgdipsError
from wsi_pgdips.progress import Progress


def verify_cohort(folder: JobFolder, cohort: Cohort, progress: Progress) -> dict[str, list[str]]:
    """Return the faults of each finished slide, by its name; none where it is whole."""
    from wsi_pgdips.checks.verify import verify_layers

    done = [r for r in rows_of(folder, cohort) if r.standing == "done"]
    found: dict[str, list[str]] = {}
    progress.stage("verify", len(done), "slides")
    try:
        for row in done:
            entry = row.entry
            try:
                wrong = [] if cohort.looks_only else verify_layers(folder.output(entry))
            except WsiPgdipsError as error:
                wrong = [f"{error.where}: {error.message}"]
            target = folder.normalised(entry)
            if target is not None and row.verdict != "fail" and not target.exists():
                wrong.append(f"{target.name}: missing")
            found[entry.name] = wrong
            progress.advance()
    finally:
        progress.close()
    return found
