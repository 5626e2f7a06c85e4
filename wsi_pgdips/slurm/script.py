"""The text of a batch script; nothing is submitted here."""

from __future__ import annotations

import re
import shlex
from importlib.resources import files
from pathlib import Path

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.slurm.plan import REPORT, Job
from wsi_pgdips.slurm.resources import Resources

TEMPLATE = "job.sbatch.j2"


def script_of(job: Job, resources: Resources, *, folder: Path, submission: str) -> str:
    """What ``sbatch`` is given for a job; of what it waits for, its command line tells.

    Args:
        folder: of the cohort, absolute. submission: name of the jobs' own folder in it.

    Raises:
        SettingsError: a template that cannot be read or filled in.
    """
    import jinja2

    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters["sh"] = shlex.quote
    environment.filters["directive"] = _directive
    number = "%A_%a" if job.is_array else "%j"
    log = str(folder / "slurm" / submission / "logs").replace("%", "%%")
    try:
        return environment.from_string(_template(resources.template)).render(
            job=job,
            r=resources,
            report=job.name == REPORT,
            last=len(job.slides) - 1,
            log=f"{log}/{job.name}-{number}.out",
            folder=str(folder),
            submission=submission,
        )
    except (jinja2.TemplateError, OSError, UnicodeDecodeError) as error:
        raise SettingsError(
            "the template of the batch scripts cannot be used",
            expected="a copy of pipelines/slurm/job.sbatch.j2, changed where your site differs",
            found=error,
            where=resources.template,
        ) from None


def _template(path: str | None) -> str:
    return (
        files(__package__).joinpath(TEMPLATE).read_text()
        if path is None
        else Path(path).read_text()
    )


def _directive(text: str) -> str:
    """A value in a line of ``#SBATCH``, which Slurm splits at blanks, much as a shell would."""
    if not re.search(r"[\s\"'\\#]", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
