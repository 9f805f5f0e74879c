"""The best of several seeds by a stated score: face similarity x coverage, x prompt following where that can be told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lynx_video.config import GenerateConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline.generate import generate
from lynx_video.types import Clip, Identity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lynx_video.pipeline.components import Components
    from lynx_video.pipeline.denoise import Step
    from lynx_video.pipeline.enrol import Enrolment
    from lynx_video.types import Video

Follow = Callable[["Video", str], float | None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One seed and what its clip was worth.

    similarity: None if no face was found. prompt: how far the prompt was followed, 0 to 1, None where that could not be told.
    score: similarity x coverage (x prompt); 0 without a face, and never below 0.
    """

    seed: int
    similarity: float | None
    coverage: float
    prompt: float | None
    score: float


def generate_best(
    components: Components,
    who: Identity | Enrolment,
    prompt: str,
    config: GenerateConfig,
    count: int,
    *,
    follow: Follow | None = None,
    on_step: Callable[[Step], None] | None = None,
    on_candidate: Callable[[Candidate], None] = lambda _: None,
    facts: Mapping[str, Any] | None = None,
) -> tuple[Clip, list[Candidate]]:
    """The best clip of the seeds config.seed to config.seed + count - 1, and what each was worth; of equals the lowest seed.

    Its settings hold the candidates as `best_of`. Raises BadRequest without a recogniser to score with; otherwise as `generate`.
    """
    identity = who if isinstance(who, Identity) else who.identity
    if components.faces.judge is None or identity.aligned is None:
        raise BadRequest("the best of several clips needs a recogniser to score them, and an identity with its aligned crop.")
    if count < 1:
        raise BadRequest(f"the best of how many? At least 1 clip is needed, got {count}.")
    # What is freed after the first clip is missing for the second.
    frees = "free" in (config.idle_models, components.idle_models)
    config = replace(config, idle_models="offload" if frees and count > 1 else config.idle_models)
    best: tuple[Clip, Candidate] | None = None
    candidates = []
    for seed in range(config.seed, config.seed + count):
        clip = generate(components, who, prompt, replace(config, seed=seed), on_step=on_step, facts=facts)
        candidate = worth(clip, follow(clip.frames, prompt) if follow is not None else None)
        candidates.append(candidate)
        on_candidate(candidate)
        if best is None or candidate.score > best[1].score:
            best = clip, candidate
    assert best is not None
    clip = replace(best[0], settings={**best[0].settings, "best_of": [asdict(one) for one in candidates]})
    return clip, candidates


def worth(clip: Clip, prompt: float | None) -> Candidate:
    """What a clip that was scored is worth."""
    coverage = clip.coverage or 0.0
    score = max(0.0, clip.similarity or 0.0) * coverage * (1.0 if prompt is None else prompt)
    return Candidate(seed=clip.seed, similarity=clip.similarity, coverage=coverage, prompt=prompt, score=score)
