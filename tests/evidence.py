"""Evidence that a refactoring changes no output: hash what two checkouts write, and compare.

    python tests/evidence.py hash TREE OUT.json [--data DIR] [--only NAME ...] [--work DIR]
    python tests/evidence.py compare OLD.json NEW.json [--only NAME ...]

``hash`` runs the program of the checkout TREE in subprocesses, case by case, and writes the SHA-256
of every output file. It needs the packages of one virtual environment and nothing from TREE itself.
``--data`` (or WSI_PGDIPS_DATA) is a folder that holds ``slides/``; without it the cases on real
slides are skipped. ``--only`` takes names or patterns such as ``'export-*'``. ``--work`` keeps the
outputs in a new or empty folder. Compare only hashes of the same machine, since another CPU rounds
differently. ``compare`` prints what differs by case, and exits with 1 if anything does.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

Hashes = dict[str, dict[str, str]]  # case -> file -> SHA-256

IMAGE = """
import sys
import numpy as np
from PIL import Image
from wsi_pgdips import deconvolve_image
rgb = np.asarray(Image.open(sys.argv[1]).convert("RGB"))
for preset in ("fast", "balanced"):
    found = deconvolve_image(rgb, stains="he", preset=preset, device="cpu", threads=2, tile=256)
    names = ("concentration", "residual", "tissue", "stain_matrix", "background")
    arrays = {name: getattr(found, name) for name in names}
    arrays |= {f"fields-{k}": v for k, v in vars(found.fields).items() if isinstance(v, np.ndarray)}
    for name, array in arrays.items():
        np.save(f"{sys.argv[2]}/{preset}-{name}.npy", array)
"""
READER = """
import sys
from wsi_pgdips import NormalizedSlide
with NormalizedSlide(sys.argv[1], sys.argv[2], "he") as slide:
    slide.read_region((900, 1000), 0, (700, 300)).save(f"{sys.argv[3]}/region.png")
    slide.get_thumbnail((300, 300)).save(f"{sys.argv[3]}/thumbnail.png")
"""
SNIPPETS = {"image": IMAGE, "reader": READER}

# A case is a list of commands of the program, or ``python SNIPPET ARGUMENT...``. ``> FILE`` keeps
# what a command prints. $here is the folder of the case, whose files are hashed; Bench.place names
# the inputs.
RUN = "-q --device cpu --stains"
DEMO = f"run $phantom $out {RUN} $stains --mpp native --block 1024"
HE, DAB = f"run $cmu $out {RUN} he --threads 2", f"run $dab $out {RUN} hdab --threads 2"
STAGES = "calibrate, fit --part 1/2, fit --part 2/2, blend, render --part 1/2, render --part 2/2"
NORMALIZE = "normalize $layers -q --slide $source --reference he"
CASES: dict[str, list[str]] = {
    "phantom": ["phantom $here/phantom.tiff -q"],
    "fast-phantom": [f"{DEMO} --preset fast --threads 2"],
    "balanced-phantom": [f"{DEMO} --preset balanced --threads 2"],
    "balanced-workers": [f"{DEMO} --preset balanced --workers 2 --threads 1"],
    "fast-stages": [
        f"{DEMO} --preset fast --threads 2 --stage {stage}"
        for stage in f"{STAGES}, finalize".split(", ")
    ],
    "fast-settings": [
        f"run $phantom $out {RUN} $stains --preset fast --threads 2 --mpp 1.0 --tile 256 "
        "--block 1024 --store-residual --masker morphological"
    ],
    "fast-cmu": [f"{HE} --preset fast"],
    "balanced-cmu": [f"{HE} --preset balanced"],
    "fast-dab": [f"{DAB} --preset fast"],
    "balanced-dab": [f"{DAB} --preset balanced"],
    "paper": [
        f"run $crop $out {RUN} he --preset paper --iterations 20 --threads 2 --mpp-source 0.5 "
        "--mpp native --tile 256 --block 1024 --store-residual"
    ],
    "cohort": [
        *(f"phantom $here/{k}.tiff -q --size 1024 --seed {i}" for i, k in enumerate("abc", 1)),
        f"cohort run $here $here/job {RUN} $here/a.stains.toml --mpp native --preset fast "
        "--tile 256 --block 1024 --workers 1 --threads 2 --reference he",
    ],
    "export-tiff": [f"{NORMALIZE} -o $here/a.tiff", "compare $source $here/a.tiff --json > a.json"],
    "export-zarr05": [f"{NORMALIZE} -o $here/a.ome.zarr --ngff 0.5"],
    "export-zarr04": [f"{NORMALIZE} -o $here/a.ome.zarr --ngff 0.4"],
    "export-png": [f"{NORMALIZE} -o $here/tiles --form png"],
    "export-jpeg": [f"{NORMALIZE} -o $here/tiles --form jpeg --method percentile --keep-amounts"],
    "export-concentration": ["export $layers -q -o $here/a.ome.zarr --profile ngff04"],
    "export-only": ["normalize $layers -q --slide $source --only Eosin -o $here/a.tiff"],
    "export-layers-alone": ["normalize $layers -q --reference he -o $here/a.tiff"],
    "reference": [
        "reference fit $layers -q -o $here/look.json --name look",
        "reference convert $here/look.json $here/look.toml",
        "reference convert $here/look.json $here/look.groovy",
    ],
    "stains": [
        "stains show hdab > hdab.toml",
        "stains fit $source --region 900,1200,200,200 --label Eosin -o $here/eosin.toml",
    ],
    "image": ["python image $crop $here"],
    "reader": ["python reader $source $layers $here"],
}
# the way a run is carried out must not change its bytes
EQUAL = [("balanced-phantom", "balanced-workers"), ("fast-phantom", "fast-stages")]
# these files hold times, hosts, paths or process ids
SKIPPED = re.compile(r"(.*/)?provenance/run\.json|job/(?!layers/).*")
JSON_NAMES = (".zattrs", ".zgroup", ".zarray")
VERSION = re.compile(rb"wsi-pgdips \d[\w.]*")
CROP = ((800, 1000), 0, (512, 256))  # tissue with some glass: two tiles of 256


class Bench:
    """Runs the cases of one checkout in one folder.

    Args:
        tree: the checkout. work: folder for the outputs. data: real slides; None if absent.
    """

    def __init__(self, tree: Path, work: Path, data: Path | None) -> None:
        self.tree, self.work, self.data = tree.resolve(), work.resolve(), data
        # bytecode and compiled kernels stay out of the checkout
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "NUMBA_CACHE_DIR": str(self.work / "numba"),
            "CUDA_VISIBLE_DEVICES": "",
        }
        where = "import wsi_pgdips; print(wsi_pgdips.__file__)"
        found = Path(self._call(["-c", where]).stdout.decode().strip())
        if not found.is_relative_to(self.tree):
            sys.exit(f"the program is imported from {found}, not from {self.tree}")

    def place(self, name: str, case: str) -> str:
        """The path that a placeholder stands for; what has to be made first is made."""
        if name in ("phantom", "stains"):
            ending = ".tiff" if name == "phantom" else ".stains.toml"
            return f"{self.need('phantom')}/phantom{ending}"
        if name == "layers":
            return f"{self.need('fast-cmu' if self.data else 'fast-phantom')}/layers.ome.zarr"
        if name == "source":
            return self.place("cmu" if self.data else "phantom", case)
        if name == "crop":
            return self._crop(self.place("source", case))
        return {
            "here": f"{self.work}/{case}",
            "out": f"{self.work}/{case}/layers.ome.zarr",
            "cmu": f"{self.data}/slides/CMU-1-Small-Region.svs",
            "dab": f"{self.data}/slides/metaplasia_trypsin_DAB_20x.svs",
        }[name]

    def need(self, case: str) -> Path:
        """The folder of a case, which runs if it has not yet run."""
        folder = self.work / case
        if not folder.exists():
            folder.mkdir()
            begun = time.monotonic()
            for command in CASES[case]:
                self._command(command, case)
            print(f"{case:22}{time.monotonic() - begun:7.1f} s", file=sys.stderr, flush=True)
        return folder

    def _crop(self, source: str) -> str:
        import openslide

        path = self.work / "crop.png"
        if not path.exists():
            with openslide.OpenSlide(source) as slide:
                slide.read_region(*CROP).convert("RGB").save(path)
        return str(path)

    def _command(self, command: str, case: str) -> None:
        words = [
            re.sub(r"\$(\w+)", lambda found: self.place(found[1], case), word)
            for word in shlex.split(command)
        ]
        kept = words.pop() if ">" in words else None
        if kept is not None:
            words.pop()  # the sign before the name
        if words[0] == "python":
            arguments = ["-c", SNIPPETS[words[1]], *words[2:]]
        else:
            arguments = ["-m", "wsi_pgdips", *words]
        done = self._call(arguments)
        if done.returncode:
            print(f"{case}: exit code {done.returncode}: {command}", file=sys.stderr)
            print(done.stderr.decode(errors="replace")[-3000:], file=sys.stderr, flush=True)
            with (self.work / case / "failed.txt").open("a") as stream:
                stream.write(f"exit code {done.returncode}: {command}\n")
        if kept is not None:
            (self.work / case / kept).write_bytes(done.stdout)

    def _call(self, arguments: list[str]) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=self.tree,
            env=self.environment,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )


def without_software(value: Any) -> Any:
    """The JSON value without the keys ``software``, at any depth."""
    if isinstance(value, dict):
        return {k: without_software(v) for k, v in value.items() if k != "software"}
    return [without_software(v) for v in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """SHA-256 of a file's content, apart from the versions of software in it."""
    data = path.read_bytes()
    if path.suffix == ".json" or path.name in JSON_NAMES:
        value = without_software(json.loads(data))
        if path.name == "checksums.json":  # the zarr.json files hold versions
            value = {k: v for k, v in value.items() if not k.endswith("zarr.json")}
        data = json.dumps(value, sort_keys=True).encode()
    elif path.suffix == ".tiff":
        data = VERSION.sub(b"wsi-pgdips", data)
    return hashlib.sha256(data).hexdigest()


def hash_folder(folder: Path) -> dict[str, str]:
    """Digests of all files below a folder, but for those that tell one run from another."""
    names = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    return {
        name: digest(path) for name, path in sorted(names.items()) if not SKIPPED.fullmatch(name)
    }


def wanted(names: list[str], only: list[str] | None) -> list[str]:
    """The names that one of the patterns matches; all without patterns."""
    return [n for n in names if only is None or any(fnmatch(n, pattern) for pattern in only)]


def hash_tree(tree: Path, out: Path, data: Path | None, only: list[str] | None, work: Path) -> int:
    """Run the cases, write their hashes; 1 if a command failed or two equal cases differ."""
    bench = Bench(tree, work, data)
    hashes: Hashes = {}
    for case in wanted(list(CASES), only):
        if data is None and re.search(r"\$(cmu|dab)\b", " ".join(CASES[case])):
            print(f"{case:22}skipped: no real slides (--data)", file=sys.stderr, flush=True)
            continue
        hashes[case] = hash_folder(bench.need(case))
    out.write_text(json.dumps(hashes, indent=1) + "\n")
    failed = [case for case, files in hashes.items() if "failed.txt" in files]
    pairs = [(a, b) for a, b in EQUAL if a in hashes and b in hashes]
    unequal = [f"{a} and {b}" for a, b in pairs if hashes[a] != hashes[b]]
    for text, cases in (("failed", failed), ("should be equal", unequal)):
        if cases:
            print(f"{text}: {', '.join(cases)}", file=sys.stderr)
    return 1 if failed or unequal else 0


def compare(old: Hashes, new: Hashes, only: list[str] | None) -> int:
    """Print what differs, by case; 1 if anything does."""
    differs = False
    for case in wanted(sorted(old.keys() | new.keys()), only):
        if case not in old or case not in new:
            lines = [f"the whole case is only in {'NEW' if case in new else 'OLD'}"]
        else:
            a, b = old[case], new[case]
            lines = [f"missing  {name}" for name in sorted(a.keys() - b.keys())]
            lines += [f"extra    {name}" for name in sorted(b.keys() - a.keys())]
            lines += [f"differs  {name}" for name in sorted(a.keys() & b) if a[name] != b[name]]
        if lines:
            differs = True
            print(case, *(f"  {line}" for line in lines), sep="\n")
    return 1 if differs else 0


def main() -> int:
    """Parse the command line and do what it asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    commands = parser.add_subparsers(dest="command", required=True)
    hasher = commands.add_parser("hash", help="hash the outputs of a checkout")
    hasher.add_argument("tree", type=Path)
    hasher.add_argument("out", type=Path)
    data = os.environ.get("WSI_PGDIPS_DATA")
    hasher.add_argument("--data", type=Path, default=Path(data) if data else None)
    hasher.add_argument("--work", type=Path, help="keep the outputs in this folder")
    comparer = commands.add_parser("compare", help="print what differs between two hash files")
    comparer.add_argument("old", type=Path)
    comparer.add_argument("new", type=Path)
    for command in (hasher, comparer):
        command.add_argument("--only", nargs="+", metavar="NAME", help="names or patterns")
    given = parser.parse_args()
    if given.only and (unknown := [n for n in given.only if not wanted(list(CASES), [n])]):
        parser.error(f"no case is called {', '.join(unknown)}; the cases are {', '.join(CASES)}")
    if given.command == "compare":
        old, new = (json.loads(path.read_text()) for path in (given.old, given.new))
        return compare(old, new, given.only)
    slides = None if given.data is None else given.data.resolve()
    if slides is not None and not (slides / "slides").is_dir():
        parser.error(f"{slides} does not hold a folder slides")
    if given.work is None:
        with tempfile.TemporaryDirectory(prefix="evidence-") as work:
            return hash_tree(given.tree, given.out, slides, given.only, Path(work))
    given.work.mkdir(parents=True, exist_ok=True)
    if any(given.work.iterdir()):
        parser.error(f"{given.work} is not empty")
    return hash_tree(given.tree, given.out, slides, given.only, given.work)


if __name__ == "__main__":
    sys.exit(main())
