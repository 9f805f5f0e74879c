"""Everything that is chosen about a training run, as one value; the string under a field is its command-line help."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from lynx_video.errors import BadRequest
from lynx_video.flow import TimestepSampling


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A stage of training. The defaults are the paper's where it names them (AdamW, 1e-5, 0.01, 33,600 tokens), ours elsewhere."""

    arm: Literal["full", "lite"] = "full"
    "full: identity and reference adapters; lite: a smaller identity adapter alone"
    stage: Literal["image", "video"] = "image"
    "image: stills only; video: clips, and stills for a share of the tokens"
    steps: int = 40_000
    "optimizer steps"
    packs: int = 1
    "packs a step, over all processes; each process takes its part one after the other"
    tokens: int = 33_600
    "most video tokens in a pack"
    still_share: float = 0.2
    "video stage: share of the tokens that are stills"
    learning_rate: float = 1e-5
    "peak learning rate of AdamW"
    matrix_rate: float | None = None
    "peak learning rate of Muon, which then takes all matrices; AdamW keeps the rest"
    weight_decay: float = 0.01
    "weight decay"
    beta2: float = 0.999
    "AdamW's decay of the squared gradient"
    warmup: int = 500
    "steps over which the rate rises"
    decay: float = 0.0
    "share of the run over which the rate falls to zero at the end"
    clip: float = 1.0
    "largest norm of the gradient"
    average: float = 0.999
    "decay of the averaged weights, which are what is validated and exported; 0 keeps no average"
    timesteps: Literal["pack", "sample"] = "pack"
    "one noise level for a pack, as the paper trains, or one for each sample (costs memory: modulation is then per token)"
    sampling: Literal["uniform", "logit-normal"] = "logit-normal"
    "how noise levels are drawn"
    sampling_mean: float = 0.0
    "mean of the normal draw; above 0 favours noise"
    sampling_spread: float = 1.0
    "standard deviation of the normal draw"
    sampling_shift: float = 3.0
    "flow shift of the noise levels; 1 leaves them"
    drop_text: float = 0.1
    "share of samples that see the empty prompt"
    drop_identity: float = 0.1
    "share of samples whose face vector is the unconditional one"
    drop_reference: float = 0.1
    "share of samples whose reference is the unconditional one"
    alone: float = 0.0
    "of the samples that lose one of the two: share in which that adapter is off, as with a scale of 0, instead of unconditional"
    initial: Literal["clone", "zero", "random"] = "clone"
    "where new keys and values start: the block's own, zero values, or small random ones"
    initial_value: float = 0.1
    "clone and random: factor on the values, so that a new term begins small"
    resampler: Path | None = None
    "InstantID checkpoint (.bin or .safetensors) whose resampler the identity tokens start from"
    resampler_depth: int = 4
    "layers of a new resampler"
    resampler_width: int = 1280
    "width of a new resampler"
    queries: int = 16
    "identity tokens of a new resampler"
    registers: int = 16
    "full: learned tokens a block that follow the identity tokens"
    token_width: int = 2048
    "lite: width of the identity tokens"
    precision: Literal["bf16", "fp32"] = "bf16"
    "bf16: frozen base in bfloat16 and autocast, adapters and optimizer in float32"
    recompute: bool = field(default=True, metadata={"switch": True})
    "keep only the input of each block for the backward (activation checkpointing)"
    compile: bool = field(default=False, metadata={"switch": True})
    "compile each block; packs of one shape share a graph, mixed packs run without"
    seed: int = 0
    "seed of the order, the noise and every other draw"
    held_out: int = 32
    "examples of people kept out of training, for the validation losses; 0 keeps none"
    checkpoint_every: int = 500
    "steps between checkpoints"
    keep: int = 2
    "checkpoints kept"
    validate_every: int = 1000
    "steps between validations"
    max_skipped: int = 10
    "steps in a row with a loss or gradient that is no number, after which the run stops"

    def __post_init__(self) -> None:
        for name in ("steps", "packs", "tokens", "resampler_depth", "resampler_width", "queries", "token_width",
                     "checkpoint_every", "keep", "validate_every", "max_skipped"):  # fmt: skip
            if getattr(self, name) < 1:
                raise BadRequest(f"{_flag(name)} must be 1 or more, got {getattr(self, name)}.")
        for name in ("warmup", "registers", "held_out", "seed"):
            if getattr(self, name) < 0:
                raise BadRequest(f"{_flag(name)} must be 0 or more, got {getattr(self, name)}.")
        for name in ("decay", "drop_text", "drop_identity", "drop_reference", "alone"):
            if not 0 <= getattr(self, name) <= 1:
                raise BadRequest(f"{_flag(name)} is a share between 0 and 1, got {getattr(self, name)}.")
        for name in ("average", "still_share", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise BadRequest(f"{_flag(name)} must be at least 0 and below 1, got {getattr(self, name)}.")
        for name in ("learning_rate", "clip", "initial_value"):
            if not (getattr(self, name) > 0 and math.isfinite(getattr(self, name))):
                raise BadRequest(f"{_flag(name)} must be above 0, got {getattr(self, name)}.")
        if self.matrix_rate is not None and not self.matrix_rate > 0:
            raise BadRequest(f"--matrix-rate must be above 0, got {self.matrix_rate}.")
        _ = self.timestep_sampling

    @property
    def timestep_sampling(self) -> TimestepSampling:
        """How noise levels are drawn."""
        return TimestepSampling(
            kind=self.sampling, mean=self.sampling_mean, spread=self.sampling_spread, shift=self.sampling_shift
        )

    def rate(self, step: int) -> float:
        """Factor on the learning rates at `step`: up over `warmup` steps, down to zero over the last `decay` of the run."""
        rise = (step + 1) / self.warmup if self.warmup else 1.0
        fall = (self.steps - step) / (self.steps * self.decay) if self.decay else 1.0
        return min(1.0, rise, fall)

    def as_json(self) -> dict[str, Any]:
        """Plain JSON values by field."""
        return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(self).items()}


FREE = frozenset({"checkpoint_every", "keep", "validate_every", "max_skipped", "recompute", "compile"})
"fields that a resumed run may change, since they do not change what is learned"


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
