"""Settings of a generation, as values; `None` means the default of the loaded model's arm."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lynx_video.errors import BadRequest

NEGATIVE_PROMPT = (
    "Bright tones, overexposed, blurred background, static, subtitles, style, works, paintings, images, overall gray, worst quality, "
    "low quality, JPEG compression residue, ugly, incomplete, extra fingers, poorly drawn hands, poorly drawn faces, deformed, "
    "disfigured, misshapen limbs, fused fingers, still picture, messy background, three legs, many people in the background, "
    "walking backwards"
)  # the terms both official scripts were released with; needed to get their videos


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What an arm runs with when nothing else is asked. Read from `lynx.json` beside the adapter where there is one."""

    num_frames: int = 81
    fps: float = 16.0
    height: int = 480
    width: int = 832
    num_inference_steps: int = 50
    guidance_scale: float = 5.0
    guidance_scale_i: float | None = 2.0
    negative_prompt: str = NEGATIVE_PROMPT
    reference_size: int = 256
    "pixels of the square reference crop"
    max_sequence_length: int = 512
    "prompt tokens"


FULL = Defaults()
LITE = Defaults(num_frames=121, fps=24.0, guidance_scale_i=None)


@dataclass(frozen=True, kw_only=True, slots=True)
class GenerateConfig:
    """One generation. Only what differs from the arm's defaults needs to be said."""

    negative_prompt: str | None = None
    "what the video should not be"
    num_frames: int | None = None
    "length in frames; one more than a multiple of the VAE's temporal factor (4k + 1 for Wan)"
    window_frames: int | None = None
    "a longer clip is made of overlapping windows of so many frames; by default the length the model was trained for"
    window_overlap: int | None = None
    "frames that neighbouring windows share at least; a quarter of a window by default"
    fps: float | None = None
    "frames per second of the file"
    height: int | None = None
    "height in pixels, a multiple of 16 for Wan"
    width: int | None = None
    "width in pixels, a multiple of 16 for Wan"
    seed: int = 42
    "seed of the noise; the same seed gives the same video"
    num_inference_steps: int | None = None
    "denoising steps"
    guidance_scale: float | None = None
    "how strongly the prompt pulls (g); 1 or less: one pass a step, no guidance"
    guidance_scale_i: float | Literal["none"] | None = None
    "how strongly the identity pulls (g_i); 'none': prompt and identity are guided together, two passes a step"
    ip_scale: float = 1.0
    "weight of the identity adapter, 1 as trained, 0 off"
    ip_start: float = 0.0
    "share of the steps after which the identity adapter comes on"
    ip_stop: float = 1.0
    "share of the steps after which the identity adapter goes off"
    ip_blocks: frozenset[int] | None = None
    "blocks in which the identity adapter is on, as 0-9,20; all by default"
    ref_scale: float = 1.0
    "weight of the reference adapter, 1 as trained, 0 off"
    ref_start: float = 0.0
    "share of the steps after which the reference adapter comes on"
    ref_stop: float = 1.0
    "share of the steps after which the reference adapter goes off"
    ref_blocks: frozenset[int] | None = None
    "blocks in which the reference adapter is on, as 0-9,20; all by default"
    reference_latent: Literal["sample", "mean"] | None = None
    "the reference crop's latent: a sample seeded with seed + 1, as the reference does (default), or the mean, the same for every seed"
    scheduler: Literal["unipc", "euler", "dpm"] = "unipc"
    "sampler: unipc (the base's own, on the reference's sigma grid), euler or dpm"
    flow_shift: float | None = None
    "shift of the noise schedule; the base's own by default (3 suits 480p, 5 720p)"
    guidance_stop: float = 1.0
    "share of the steps after which guidance ends: only the pass with prompt and identity is run from there on"
    step_cache: float | Literal["off"] = "off"
    "reuse what the blocks added in an earlier step while it has drifted by less than this share (0.05 to 0.3); off computes every step"
    idle_models: Literal["keep", "offload", "free"] = "keep"
    "text encoder and VAE while not in use: keep on the device, offload to host memory, or free the text encoder for good"

    def __post_init__(self) -> None:
        if self.seed == -1:
            raise BadRequest("seed must be a whole number from 0, got -1: no seed is drawn at random here; name one.")
        _whole("seed", self.seed, 0, 2**63 - 2)
        _whole("num_inference_steps", self.num_inference_steps, 1, 1000)
        _whole("num_frames", self.num_frames, 1, 100_000)
        _whole("window_frames", self.window_frames, 1, 100_000)
        _whole("window_overlap", self.window_overlap, 1, 100_000)
        _whole("height", self.height, 1, 16_384)
        _whole("width", self.width, 1, 16_384)
        _number("fps", self.fps, 0.1, 1000)
        _number("guidance_scale", self.guidance_scale, 0, 100)
        if self.guidance_scale_i != "none":
            _number("guidance_scale_i", self.guidance_scale_i, 0, 100)
        _number("flow_shift", self.flow_shift, 0.01, 100)
        _number("guidance_stop", self.guidance_stop, 0, 1)
        if self.step_cache != "off":
            _number("step_cache", self.step_cache, 0.0001, 10)
        _choice("reference_latent", self.reference_latent, ("sample", "mean", None))
        _choice("scheduler", self.scheduler, ("unipc", "euler", "dpm"))
        _choice("idle_models", self.idle_models, ("keep", "offload", "free"))


@dataclass(frozen=True, kw_only=True, slots=True)
class RuntimeConfig:
    """How a model is held and run: memory, kernels, processes. What is None is decided by the budget, and off without one."""

    vram_budget: float | None = None
    "GB of device memory to stay within (24, 16, 12, 8): chooses offload, quantize and vae-tiling where they are not given"
    quantize: Literal["none", "fp8", "fp8-storage", "int8", "nf4"] | None = None
    "linear layers of the blocks: computed in fp8 or int8 (torchao), stored in fp8, or in 4 bits (bitsandbytes)"
    offload: Literal["none", "block"] | None = None
    "block: the blocks lie in host memory and are fetched one ahead of their turn"
    vae_tiling: bool | None = field(default=None, metadata={"switch": True})
    "decode the clip in tiles: less memory, faint seams"
    attention_backend: str = "auto"
    "attention kernel: auto (the fastest exact one here), native, cudnn, flash, flash3, flex, sage, xformers, or a name of diffusers"
    compile: bool = False
    "compile the blocks: minutes once, faster from then on"
    passes: Literal["auto", "sequential", "batched"] = "auto"
    "the passes of a step one after the other, or as one batch: auto takes the batch where it is small"
    gguf: Path | None = None
    "transformer weights from a GGUF file instead of the base's own"
    lora_path: tuple[str, ...] = ()
    "LoRA of the transformer as PATH or PATH:SCALE; may be given several times"
    lora_passes: Literal["all", "prompt"] = "all"
    "the passes of a step in which the LoRAs are on"
    pass_degree: int | None = None
    "with torchrun: processes that share the passes of a step; by default what fits"
    ulysses_degree: int | None = None
    "with torchrun: processes that share the heads of a pass; by default what is left"
    ring_degree: int | None = None
    "with torchrun: processes that share the tokens of a pass by ring attention; 1 by default"

    def __post_init__(self) -> None:
        _number("vram_budget", self.vram_budget, 0.001, 10_000)
        _choice("quantize", self.quantize, (None, "none", "fp8", "fp8-storage", "int8", "nf4"))
        _choice("offload", self.offload, (None, "none", "block"))
        _choice("passes", self.passes, ("auto", "sequential", "batched"))
        _choice("lora_passes", self.lora_passes, ("all", "prompt"))
        for name in ("pass_degree", "ulysses_degree", "ring_degree"):
            _whole(name, getattr(self, name), 1, 4096)
        loras: object = self.lora_path
        if not isinstance(loras, tuple):
            raise BadRequest(f"lora_path is a tuple of PATH or PATH:SCALE, got {loras!r}.")
        file: object = self.gguf
        if not (file is None or isinstance(file, Path)):
            raise BadRequest(f"gguf is a pathlib.Path, got {file!r}.")

    def shaping(self) -> dict[str, Any]:
        """What of it shows in the clips, as plain JSON values; the rest changes no more than the last bits."""
        return {
            "quantize": self.quantize if self.quantize != "none" else None,
            "vae_tiling": bool(self.vae_tiling),
            "attention_backend": self.attention_backend,
            "gguf": self.gguf and self.gguf.name,
            "loras": [Path(one).name for one in self.lora_path],
            "lora_passes": self.lora_passes,
        }


def _whole(name: str, value: int | None, low: int, high: int) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high):
        raise BadRequest(f"{name} must be a whole number from {low} to {high}, got {value!r}.")


def _number(name: str, value: float | None, low: float, high: float) -> None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high):
        raise BadRequest(f"{name} must be a number from {low} to {high}, got {value!r}.")


def _choice(name: str, value: object, options: tuple[object, ...]) -> None:
    if value not in options:
        raise BadRequest(f"{name} must be one of {', '.join(str(o) for o in options if o)}, got {value!r}.")
