"""Errors say expected, found, where and what to do, and survive the way between processes."""

from __future__ import annotations

import pickle

import pytest

from wsi_pgdips import errors

KINDS = [
    errors.SettingsError,
    errors.SlideError,
    errors.StainError,
    errors.OutputError,
    errors.DeviceError,
    errors.IncompleteRunError,
]


def test_message_has_every_part_in_order():
    error = errors.SlideError("no scale", expected="an mpp", found=0, where="a.svs", hint="--mpp 1")
    assert str(error).splitlines() == [
        "no scale",
        "  expected: an mpp",
        "  found: 0",
        "  where: a.svs",
        "  what to do: --mpp 1",
    ]


def test_parts_not_given_are_left_out():
    assert str(errors.SlideError("no scale")) == "no scale"


@pytest.mark.parametrize("kind", KINDS)
def test_pickling_keeps_kind_and_parts(kind: type[errors.WsiPgdipsError]):
    error = kind("m", expected=1, found="two", where="three", hint="four")
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is kind
    assert str(back) == str(error)
    assert (back.expected, back.found, back.where, back.hint) == (1, "two", "three", "four")


def test_exit_codes():
    codes = {kind.__name__: kind.exit_code for kind in KINDS}
    assert codes.pop("IncompleteRunError") == 3
    assert set(codes.values()) == {2}
