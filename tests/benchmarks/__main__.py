"""Entry point of ``python tests/benchmarks``: makes this checkout importable, then runs a command.

Processes that a benchmark starts find the same checkout through ``PYTHONPATH``.
"""

import os
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PATHS = [str(HERE.parents[1]), str(HERE.parent)]

if __name__ == "__main__":
    # Python puts this folder itself on the path, where its modules could hide others
    sys.path[:] = PATHS + [p for p in sys.path if p not in PATHS and Path(p).resolve() != HERE]
    others = [path for path in [os.environ.get("PYTHONPATH")] if path]
    os.environ["PYTHONPATH"] = os.pathsep.join([*PATHS, *others])

    from benchmarks.commands import main

    main()
