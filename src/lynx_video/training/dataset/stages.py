"""The two stages that workers do, as values that travel to them: looking at items, and encoding examples.

Each job ends as a file of the work folder, with what came out or why it was dropped. A job that is there already is not done again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video import work
from lynx_video.training.dataset.config import Bucket, DatasetConfig
from lynx_video.training.dataset.source import Drop, Dropped, Item, fingerprint_item
from lynx_video.work import Made, Shelf, keep

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.training.dataset.encode import Job

CONDITIONS = "conditions"
"""The job, and the key, of what stands for dropped conditions."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScanWork:
    """Jobs are items. survey: describes the model; shelf: where the findings go; the rest as in `scan.Scanner`."""

    survey: Callable[[], Blueprint]
    shelf: Shelf
    root: Path
    config: DatasetConfig
    buckets: tuple[Bucket, ...]
    same_person: float

    def open(self) -> Callable[[Item], None]:
        """Load the face models."""
        from lynx_video.training.dataset.scan import Scanner

        blueprint = self.survey()
        blueprint.faces.detector()
        blueprint.faces.encoder()
        scanner = Scanner(
            root=self.root,
            config=self.config,
            buckets=self.buckets,
            fps=blueprint.defaults.fps,
            reference_size=blueprint.defaults.reference_size,
            same_person=self.same_person,
            faces=blueprint.faces,
        )

        def do(item: Item) -> None:
            attempt(self.shelf, item.key, fingerprint_item(item, self.root), item.name, lambda: look(item))

        def look(item: Item) -> Made:
            import torch

            finding, evidence = scanner(item)
            return {"finding": finding.to_json()}, {name: torch.tensor(value) for name, value in evidence._asdict().items()}

        return do


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeWork:
    """Jobs are examples to be made, or CONDITIONS. scans: the findings; shelf: where examples go; augment: names of steps."""

    survey: Callable[[], Blueprint]
    scans: Shelf
    shelf: Shelf
    root: Path
    augment: tuple[str, ...]
    seed: int

    def open(self) -> Callable[[Job | str], None]:
        """Load text encoder and VAE."""
        from lynx_video.training.augment import steps
        from lynx_video.training.dataset.encode import Encoder, Job, load_encoders, pack_example

        encoder = Encoder(load_encoders(self.survey()), self.root, self.scans, steps(self.augment), self.seed)

        def do(job: Job | str) -> None:
            if isinstance(job, Job):
                attempt(self.shelf, job.key, job.stamp, job.item.name, lambda: pack_example(encoder(job)))
            elif self.shelf.value(CONDITIONS, "") is None:
                made = encoder.conditions()
                keep(self.shelf, CONDITIONS, "", ({}, {one.name: getattr(made, one.name) for one in fields(made)}))

        return do


def attempt(shelf: Shelf, key: str, stamp: str, name: str, make: Callable[[], Made]) -> None:
    """Make something and keep it, or keep why the item `name` was dropped. Raises as `work.attempt`."""

    def dropped(error: Exception | None) -> Made:
        if isinstance(error, Dropped):
            drop = Drop(item=name, reason=error.reason, detail=error.detail)
        elif error is None:
            drop = Drop(item=name, reason="failed", detail="its worker died each time it was tried")
        else:
            detail = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
            drop = Drop(item=name, reason="failed", detail=detail)
        return {"drop": asdict(drop)}, {}

    work.attempt(shelf, key, stamp, make, dropped, name)
