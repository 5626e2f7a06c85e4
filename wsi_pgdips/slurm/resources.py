"""What a job of a cohort asks Slurm for."""

from __future__ import annotations

import re
from dataclasses import dataclass

from wsi_pgdips.errors import SettingsError

_TIME = re.compile(r"(\d+-)?\d+(:\d+){0,2}|UNLIMITED|INFINITE", re.IGNORECASE)
_MEM = re.compile(r"\d+[KMGT]?", re.IGNORECASE)


@dataclass(frozen=True)
class Resources:
    """Options of ``sbatch``, as its manual names them; None where the site's default is taken.

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
    """Of a time limit as Slurm writes it; None for one without end."""
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
