"""Two outputs compared, byte by byte."""

from __future__ import annotations

from pathlib import Path


def tree(output: Path) -> dict[str, bytes]:
    """All bytes of an output, but for the one file that tells runs apart."""
    return {
        path.relative_to(output).as_posix(): path.read_bytes()
        for path in sorted(output.rglob("*"))
        if path.is_file() and path != output / "provenance" / "run.json"
    }


def differing(a: Path, b: Path) -> list[str]:
    """Files that are not the same bytes in two outputs."""
    one, other = tree(a), tree(b)
    assert one
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))
