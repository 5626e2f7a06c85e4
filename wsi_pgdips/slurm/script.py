"""The text of a batch script, and the resources that it asks for; nothing is submitted here."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.slurm.plan import REPORT, Job

TEMPLATE = "job.sbatch.j2"
_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_MEM = re.compile(r"\d+[KMGT]?", re.IGNORECASE)


@dataclass(frozen=True)
class Resources:
    """The options of ``sbatch``, named as in its manual; None for the site's default.

    Attributes:
        array_limit: tasks of an array that run at once. extra: further options, whole.
        setup: lines of shell before the program starts, such as ``module load``.
        program: how it is started; may be a command of a container.
        template: file of jinja2 in place of the package's own, None for that.
        signal_s: seconds before the time limit in which a job ends what it has in hand.
    """

    partition: str | None = None
    gpus_per_task: int = 0
    cpus_per_task: int = 4
    time: str = "04:00:00"
    mem: str = "16G"
    account: str | None = None
    qos: str | None = None
    array_limit: int | None = None
    extra: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    program: str = "wsi-pgdips"
    signal_s: int = 120
    template: str | None = None

    def __post_init__(self) -> None:
        for name, text, form, hint in (
            ("time", self.time, _TIME, "minutes, hours:minutes:seconds or days-hours"),
            ("mem", self.mem, _MEM, "a number and K, M, G or T, such as 16G"),
        ):
            if not form.fullmatch(text):
                raise SettingsError(
                    f"not a --{name} of Slurm", expected=hint, found=text, where=f"--{name}"
                )
        limit = seconds_of(self.time)
        if limit is not None and limit <= self.signal_s:
            raise SettingsError(
                "the time limit is over before a job would be told of it",
                expected=f"more than the {self.signal_s} s of --signal-before",
                found=f"{limit} s",
                where="--time",
            )
        for line in (*self.extra, *self.setup):
            if "\n" in line:
                raise SettingsError(
                    "an option of more than one line",
                    expected="one line each; the option may be given again",
                    found=repr(line),
                    where="--extra, --setup",
                )
        for option in self.extra:
            if not option.startswith("-"):
                raise SettingsError(
                    "not an option of sbatch",
                    expected="such as --constraint=a100",
                    found=option,
                    where="--extra",
                )


def seconds_of(time: str) -> int | None:
    """Return the seconds of a time limit as Slurm writes it; None for one without end."""
    if not time[0].isdecimal():
        return None
    days, dash, rest = time.rpartition("-")
    parts = [int(p) for p in rest.split(":")]
    if dash:  # days-hours[:minutes[:seconds]]
        hours, minutes, seconds = [*parts, 0, 0][:3]
    elif len(parts) == 3:
        hours, minutes, seconds = parts
    else:  # minutes[:seconds]
        hours, (minutes, seconds) = 0, [*parts, 0][:2]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def script_of(job: Job, resources: Resources, *, folder: Path, submission: str) -> str:
    """Return the script of a job; the jobs that it waits for go on the command line of ``sbatch``.

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
    """Quote a value in a line of ``#SBATCH``, which Slurm splits at blanks, much as a shell."""
    if not re.search(r"[\s\"'\\#]", text):
        return text
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
