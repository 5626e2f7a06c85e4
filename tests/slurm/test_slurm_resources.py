"""What a job asks Slurm for, as Slurm writes it."""

from __future__ import annotations

from typing import Any

import pytest

from wsi_pgdips.errors import SettingsError
from wsi_pgdips.slurm.script import Resources, seconds_of


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        ("30", 1800),
        ("2:30", 150),
        ("1:02:03", 3723),
        ("1-1", 90000),
        ("1-1:30", 91800),
        ("2-00:00:05", 172805),
        ("UNLIMITED", None),
    ],
)
def test_times_of_slurm(time: str, seconds: int | None) -> None:
    assert seconds_of(time) == seconds
    assert Resources(time=time).time == time


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"time": "soon"}, "not a --time of Slurm"),
        ({"time": "2"}, "over before a job would be told"),
        ({"mem": "16 GB"}, "not a --mem of Slurm"),
        ({"extra": ("constraint=a100",)}, "not an option of sbatch"),
        ({"setup": ("module load a\nrm x",)}, "more than one line"),
    ],
)
def test_what_slurm_would_not_take(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Resources(**wrong)
