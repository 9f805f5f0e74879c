"""Whole configurations as functions. The docstring of each: the command, what it takes, what to expect.

Stages come in pairs: the video stage starts from the adapter of the image stage, `--start RUN/adapter`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lynx_video.evaluation.grid import GridConfig
from lynx_video.training.config import TrainConfig


def lynx_image() -> TrainConfig:
    """The paper's first stage: 40,000 steps of 128 packs of 33,600 tokens, on stills.

    torchrun ... -m lynx_video train SET RUN --model lynx-full --preset lynx-image --resampler ip-adapter.bin
    128 GPUs of 80 GB in the paper; never run by us at that size. The paper sees likeness after about 10,000 steps.
    """
    return TrainConfig(stage="image", steps=40_000, packs=128)


def lynx_video() -> TrainConfig:
    """The paper's second stage: 60,000 steps on clips and stills, from the first stage's adapter.

    torchrun ... -m lynx_video train SET RUN --model lynx-full --preset lynx-video --start IMAGE_RUN/adapter
    """
    return TrainConfig(stage="video", steps=60_000, packs=128)


def nano_image() -> TrainConfig:
    """Stills for the toy model: lynx-video train SET RUN --preset nano-image. Minutes on a CPU core."""
    return TrainConfig(
        stage="image",
        steps=900,
        tokens=4096,
        learning_rate=1e-3,
        matrix_rate=3e-3,
        beta2=0.98,
        warmup=50,
        decay=0.3,
        average=0.995,
        timesteps="sample",
        sampling_mean=0.2,
        sampling_shift=1.0,
        drop_identity=0.22,
        drop_reference=0.30,
        alone=1.0,
        initial_value=0.5,
        resampler_depth=2,
        resampler_width=192,
        queries=8,
        registers=4,
        token_width=128,
        recompute=False,
        compile=True,
        checkpoint_every=200,
        validate_every=300,
        held_out=64,
    )


def nano_video() -> TrainConfig:
    """Clips for the toy model, from the stills: lynx-video train SET RUN --preset nano-video --start IMAGE_RUN/adapter."""
    return replace(nano_image(), stage="video", steps=1000, tokens=4480, matrix_rate=2.5e-3, average=0.997, decay=0.7)


def paper_grid() -> GridConfig:
    """The paper's size, 40 subjects x 20 prompts = 800 clips: lynx-video evaluate run OUT.

    Nano: about 20 minutes on two CPU cores. The 14B model: 800 times what one clip takes.
    """
    return GridConfig(people=40, tasks=20)


def quick_grid() -> GridConfig:
    """8 subjects x 5 prompts = 40 clips, to see that everything works: lynx-video evaluate run OUT --grid quick. Nano: a minute."""
    return GridConfig(people=8, tasks=5)


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedPreset:
    """What a preset of `generate --preset` sets, by the names of GenerateConfig's and RuntimeConfig's fields.

    few_step: it runs the model's few-step LoRA, unless another is named.
    """

    generation: Mapping[str, Any] = field(default_factory=dict)
    runtime: Mapping[str, Any] = field(default_factory=dict)
    few_step: bool = False


def exact() -> SpeedPreset:
    """What the paper computes, with every lever that changes no result: lynx-video generate ..."""
    return SpeedPreset()


def balanced() -> SpeedPreset:
    """Guidance in the first 60% of the steps, and a step cache: lynx-video generate --preset balanced ..."""
    return SpeedPreset(generation={"guidance_stop": 0.6, "step_cache": 0.2})


def fast() -> SpeedPreset:
    """As balanced with a wider cache, and the blocks' linear layers in 8 bits: lynx-video generate --preset fast ...

    fp8 where the GPU computes it, on the command line int8 elsewhere.
    """
    return SpeedPreset(generation={"guidance_stop": 0.6, "step_cache": 0.3}, runtime={"quantize": "fp8"})


def few_steps() -> SpeedPreset:
    """4 steps of one pass with a few-step LoRA: lynx-video generate --preset draft ... A look at a prompt, not the last word on it.

    Such LoRAs have guidance in them; on nano guidance at full strength on top of one costs likeness (docs/speed.md).
    """
    return SpeedPreset(generation={"num_inference_steps": 4, "guidance_scale": 1.0}, few_step=True)


SPEED: dict[str, Callable[[], SpeedPreset]] = {"exact": exact, "balanced": balanced, "fast": fast, "draft": few_steps}
EVALUATION: dict[str, Callable[[], GridConfig]] = {"paper": paper_grid, "quick": quick_grid}
TRAINING: dict[str, Callable[[], TrainConfig]] = {
    "lynx-image": lynx_image,
    "lynx-video": lynx_video,
    "nano-image": nano_image,
    "nano-video": nano_video,
}
