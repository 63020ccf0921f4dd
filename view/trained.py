"""What training has computed of each token of a rollout, found by prompt and sample among the files of all ranks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from soundrl.view.arrow import Part
from soundrl.view.plain import finite

NAME = re.compile(r"trained-(\d{1,6})\.arrows")


class TrainedStep:
    """The files of one step, and where each rollout stands in them."""

    def __init__(self, folder: Path) -> None:
        found = {int(match[1]): file for file in folder.iterdir() if (match := NAME.fullmatch(file.name))} if folder.is_dir() else {}
        self.parts = [Part(found[rank], rank, "") for rank in sorted(found)]
        self.at: dict[tuple[str, int], tuple[int, int]] = {}
        """(part, row) by prompt and sample"""
        for number, part in enumerate(self.parts):
            row = 0
            for batch in part.scan(("prompt_id", "sample")):
                for id, sample in zip(batch.column("prompt_id").to_pylist(), batch.column("sample").to_pylist(), strict=True):
                    self.at[id, sample] = (number, row)
                    row += 1
        self.faults = [part.fault for part in self.parts if part.fault]

    @property
    def size(self) -> int:
        """Bytes in memory, about."""
        return 300 * len(self.at) + 1000

    def of(self, prompt_id: str, sample: int) -> tuple[list[float | None], list[float | None]] | None:
        """Log-probability and entropy (nats) of each token; None where the rollout trained nothing. ValueError where it is damaged."""
        if (prompt_id, sample) not in self.at:
            return None
        number, row = self.at[prompt_id, sample]
        batch, within = self.parts[number].batch(row, ("logprobs", "entropy"))

        def values(name: str) -> list[float | None]:
            found: Any = batch.column(name)[within].as_py()
            return [finite(float(value)) for value in found or ()]

        return values("logprobs"), values("entropy")
