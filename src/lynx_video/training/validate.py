"""Validation: losses of people never trained on at fixed noise levels, and clips of portraits, scored.

The losses are taken with nobody, with each adapter alone and with both, so that they show what each has learned.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from lynx_video import flow
from lynx_video.errors import BadData
from lynx_video.training.feed import draw_sample
from lynx_video.training.objective import step
from lynx_video.training.order import stable_seed, video_tokens
from lynx_video.training.parallel import whole
from lynx_video.training.sample import Sample
from lynx_video.training.shards import Entry, Shards

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components
    from lynx_video.training.trainer import Trainer
    from lynx_video.types import Video

LEVELS = (0.3, 0.6, 0.9)
MODES = {"none": (0.0, 0.0), "identity": (1.0, 0.0), "reference": (0.0, 1.0), "both": (1.0, 1.0)}
Follow = Callable[["Video", str], float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """A portrait and what its person is to do."""

    portrait: Path
    prompt: str


def read_subjects(file: Path) -> list[Subject]:
    """Subjects from a JSONL file of {"portrait": path relative to the file, "prompt": text}. Raises BadData naming the line."""
    subjects = []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise BadData(
            f"{file}: can't be read ({error.strerror or error}); expected a JSONL file of portraits and prompts."
        ) from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            values = json.loads(line)
            subject = Subject(portrait=file.parent / values["portrait"], prompt=str(values["prompt"]))
        except (ValueError, KeyError, TypeError) as error:
            raise BadData(f'{file}, line {number}: expected {{"portrait": PATH, "prompt": TEXT}} ({error!r}).') from error
        if not subject.portrait.is_file():
            raise BadData(f"{file}, line {number}: {subject.portrait} is not there.")
        subjects.append(subject)
    if not subjects:
        raise BadData(f'{file} names no subject; expected lines of {{"portrait": PATH, "prompt": TEXT}}.')
    return subjects


class Validator:
    """What a trainer calls. Clips need `components` whose adapter is the trained one; `follow` scores how well a clip obeys."""

    def __init__(
        self,
        shards: Shards,
        held_out: Sequence[Entry],
        *,
        components: Components | None = None,
        subjects: Sequence[Subject] = (),
        follow: Follow | None = None,
    ) -> None:
        self.shards, self.held_out = shards, held_out
        self.components, self.subjects, self.follow = components, subjects, follow

    def __call__(self, trainer: Trainer, number: int) -> tuple[dict[str, float], dict[str, Path]]:
        facts: dict[str, float] = {}
        with torch.no_grad(), trainer.precision():
            facts |= self.losses(trainer)
            clips: dict[str, Path] = {}
            if self.components is not None and self.subjects:
                scores, clips = self.clips(trainer, number)
                facts |= scores
        return facts, clips

    def losses(self, trainer: Trainer) -> dict[str, float]:
        """Mean losses over the held-out examples of the stage: by mode, and for both adapters by noise level."""
        config, patch = trainer.config, trainer.model.transformer.config.patch_size
        chosen = [
            e for e in self.held_out if (e.frames > 1) == (config.stage == "video") and video_tokens(e, patch) <= config.tokens
        ]
        mine = chosen[trainer.among.rank :: trainer.among.count]
        # every process goes through the model equally often; a repeated example has no weight
        rounds = -(-len(chosen) // trainer.among.count)
        modes = {m: on for m, on in MODES.items() if m in ("none", "both") or config.arm == "full"}
        sums = torch.zeros(len(modes) * len(LEVELS), dtype=torch.float64)
        plain = replace(config, drop_text=0.0, drop_identity=0.0, drop_reference=0.0)
        for i in range(rounds):
            entry = mine[i] if i < len(mine) else chosen[0]
            generator = torch.Generator().manual_seed(stable_seed("validation", entry.key))
            sample = draw_sample(self.shards.read(entry), self.shards.conditions, plain, generator)
            # one pack holds all modes and levels: as many video tokens as the budget allows
            cases = [(mode, level) for mode in modes for level in LEVELS]
            room = max(1, config.tokens // video_tokens(entry, patch))
            losses: list[float] = []
            for at in range(0, len(cases), room):
                part = cases[at : at + room]
                samples = [_in_mode(sample, *modes[mode]) for mode, _ in part]
                timesteps = torch.tensor([level * flow.TIMESTEPS for _, level in part])
                with torch.compiler.set_stance("force_eager"):
                    result = step(trainer.model, samples, timesteps, trainer.among.device, trainer.dtype)
                losses += result.losses.tolist()
            if i < len(mine):
                sums += torch.tensor(losses, dtype=torch.float64)
        if not chosen:
            return {}
        means = (trainer.among.sum(sums) / len(chosen)).view(len(modes), len(LEVELS))
        facts = {f"loss_{mode}": float(row.mean()) for mode, row in zip(modes, means, strict=True)}
        both = means[list(modes).index("both")]
        return facts | {f"loss_both_at_{level:g}": float(value) for level, value in zip(LEVELS, both, strict=True)}

    def clips(self, trainer: Trainer, number: int) -> tuple[dict[str, float], dict[str, Path]]:
        """A clip of each subject, divided among the processes, with similarity, coverage and prompt following where they can be had."""
        from lynx_video.config import GenerateConfig
        from lynx_video.media.image import read_picture, write_picture
        from lynx_video.media.video import write_video
        from lynx_video.pipeline.generate import generate

        assert self.components is not None
        folder = trainer.folder / "validation"
        rows: list[dict[str, float]] = []
        made: dict[str, Path] = {}
        with whole(trainer.model), torch.compiler.set_stance("force_eager"):
            for i, subject in enumerate(self.subjects):
                if i % trainer.among.count != trainer.among.rank:
                    continue
                clip = generate(self.components, subject.portrait, subject.prompt, GenerateConfig(seed=i))
                name = f"{i:02d}-{subject.portrait.stem}"
                made[name] = folder / f"{name}-{number:06d}.mp4"
                write_video(made[name], clip.frames, clip.fps, clip.settings)
                write_picture(folder / f"{name}-reference.png", read_picture(subject.portrait))
                row = {"similarity": clip.similarity, "coverage": clip.coverage}
                if self.follow is not None:
                    row["prompt_following"] = self.follow(clip.frames, subject.prompt)
                rows.append({name: value for name, value in row.items() if value is not None})
        everywhere = trainer.among.gather((rows, made))
        rows = [row for some, _ in everywhere for row in some]
        made = {name: path for _, some in everywhere for name, path in some.items()}
        names = sorted({name for row in rows for name in row})
        return {name: sum(row[name] for row in rows if name in row) / sum(name in row for row in rows) for name in names}, made


def _in_mode(sample: Sample, identity: float, reference: float) -> Sample:
    return replace(sample, identity_scale=identity, reference_scale=reference)
