"""Who would work on a slide, without anybody being started."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from wsi_pgdips.config import ExecutionSettings


@dataclass(frozen=True)
class Crew:
    """Who would work: what ``pool.make_pool`` decides, without anybody being started.

    Attributes:
        device, workers, threads: as of ``Estimate``. lanes: blocks at a time in each worker.
    """

    device: str
    workers: int
    threads: int
    lanes: int

    @classmethod
    def of(cls, how: ExecutionSettings) -> Self:
        """The workers of a run with these settings.

        Raises:
            DeviceError: a device that is not there.
        """
        from wsi_pgdips.machine import choose_device
        from wsi_pgdips.pipeline.pool import who_works

        device = choose_device(how.device)
        return cls(device, *who_works(device, how.workers, how.threads))

    @property
    def all_threads(self) -> int:
        """Of the stages that one process does alone, while the workers wait."""
        return self.workers * self.threads

    def seconds(
        self, computed: Sequence[float], written: Sequence[float] = (), slowing: float = 0.0
    ) -> float:
        """Of a stage.

        Args:
            computed, written: seconds that each block takes.
            slowing: seconds of computing that a second of writing costs where both go on.
        """
        written = written or [0.0] * len(computed)
        shares: list[list[int]] = [[] for _ in range(self.workers)]
        for i in sorted(range(len(computed)), key=lambda i: -computed[i]):
            min(shares, key=lambda share: sum(computed[j] for j in share)).append(i)
        longest = 0.0
        for share in filter(None, shares):
            writing = sum(written[i] for i in share)
            if self.lanes > 1:  # beside the next block, but for the last
                writing = max(writing * slowing, written[share[-1]])
            longest = max(longest, sum(computed[i] for i in share) + writing)
        return longest
