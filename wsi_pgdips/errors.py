"""The errors a user may meet: what was expected and found, where, and what to do.

Every exception a user may meet derives from :class:`WsiPgdipsError` and carries the exit code of
the command line: 2 for bad input or usage, 3 for a run that ended with failures. Anything else
that escapes is a bug of ours (exit code 1).
"""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any, NamedTuple, Self


class WsiPgdipsError(Exception):
    """Base of all expected errors; ``str()`` is one clear message without a traceback.

    Args:
        message: what went wrong, one sentence.
        expected: what was needed.
        found: what was there instead.
        where: file, option or place.
        hint: what to do about it.
    """

    exit_code = 2

    def __init__(
        self,
        message: str,
        *,
        expected: object = None,
        found: object = None,
        where: object = None,
        hint: str | None = None,
    ) -> None:
        self.message, self.expected, self.found, self.where, self.hint = (
            message,
            expected,
            found,
            where,
            hint,
        )
        lines = [message]
        for name, value in (("expected", expected), ("found", found), ("where", where)):
            if value is not None:
                lines.append(f"  {name}: {value}")
        if hint is not None:
            lines.append(f"  what to do: {hint}")
        super().__init__("\n".join(lines))

    @classmethod
    def like(cls, error: WsiPgdipsError, **parts: Any) -> Self:
        """Return an error with the text of another one, except for some of its parts."""
        kept = {name: getattr(error, name) for name in ("expected", "found", "where", "hint")}
        return cls(error.message, **{**kept, **parts})

    def __reduce__(self) -> tuple[object, ...]:
        # keyword-only arguments do not survive the default pickling between worker processes
        return (
            _rebuild,
            (type(self), self.message, self.expected, self.found, self.where, self.hint),
        )


def _rebuild(
    kind: type[WsiPgdipsError],
    message: str,
    expected: object,
    found: object,
    where: object,
    hint: str | None,
) -> WsiPgdipsError:
    return kind(message, expected=expected, found=found, where=where, hint=hint)


class SettingsError(WsiPgdipsError):
    """An option, a settings file or a combination of them that cannot be used."""


class SlideError(WsiPgdipsError):
    """A slide or image that is missing, unreadable, or lacks what is needed (mpp, tissue)."""


class StainError(WsiPgdipsError):
    """An unknown stain set, or a stain matrix that cannot be used."""


class OutputError(WsiPgdipsError):
    """An output that is in the way, not writable, or does not belong to this run."""


class AnotherRunError(OutputError):
    """An output of ours, but of another slide or other scientific settings."""


class DeviceError(WsiPgdipsError):
    """A compute device that was asked for and is not there."""


class ClusterError(WsiPgdipsError):
    """A cluster of dask that cannot be reached or used, was lost, or has no worker."""


class IncompleteRunError(WsiPgdipsError):
    """The run ended, but some tiles or blocks failed and are recorded (exit code 3)."""

    exit_code = 3


class NotReadyError(IncompleteRunError):
    """A stage cannot begin, because one before it is not finished."""


class SlurmError(WsiPgdipsError):
    """Slurm is not there, does not answer, or refuses a job."""


class Fault(NamedTuple):
    """An exception that a run survived, in words that outlive the process.

    Attributes:
        type: name of its class. message: its text, of an error of ours the first sentence.
        place: the innermost frame in this package, ``solver/fit.py:57 in fit_tiles``; empty for an
            exception that no code of ours has passed on.
    """

    type: str
    message: str
    place: str

    @classmethod
    def of(cls, error: BaseException) -> Self:
        message = error.message if isinstance(error, WsiPgdipsError) else str(error)
        package, place = Path(__file__).parent, ""
        for frame in traceback.extract_tb(error.__traceback__):
            if (path := Path(frame.filename)).is_relative_to(package):
                place = f"{path.relative_to(package).as_posix()}:{frame.lineno} in {frame.name}"
        return cls(type(error).__name__, message, place)
