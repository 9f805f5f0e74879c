"""How a model is laid out in memory for one generation: what lies on the device in each phase, and the least harmful way to keep
within a budget.

Every layout that fits is weighed, and the first in this order is taken:

1. what changes the clip least: nothing (exact), then tiles in the VAE (faint seams), then blocks stored in fp8, then in 4 bits
   where bitsandbytes is installed;
2. what takes least time: for a full-length clip blocks fetched from host memory come while the one before is computed, and cost
   next to nothing, so the exact layouts reach far down;
3. what moves least.

A budget never buys speed with likeness on its own: that is asked for (`quantize`, presets). So with more memory a layout is never
less exact, and among equally exact ones never slower.

Sizes are in bytes and a budget of 24 is that of a card sold with 24 GB: 24 * 2**30. Estimates hold the tensors, what the allocator
loses between them and, on CUDA, the context. Tests hold the activations against what the real modules keep alive.
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from lynx_video.config import RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.runtime.device import Device
from lynx_video.runtime.flops import Shape

Quantize = Literal["none", "fp8", "fp8-storage", "int8", "nf4"]
Offload = Literal["none", "block"]
Idle = Literal["keep", "offload", "free"]
By = Literal["whole", "block"]
Projections = Literal["keep", "park"]
GIB = 2**30
CONTEXT = 500_000_000
"""Bytes a CUDA context takes."""
LOSS = 0.04
"""What the allocator loses between tensors, as a share of them."""
PROCESS = {"cuda": 3_000_000_000, "cpu": 700_000_000}
"""Host memory of a process that has loaded torch and diffusers."""
AT_ONCE = 2
"""Blocks on the device under block offload: the one at work and the one that comes."""
UNPINNED = 0.3
"""Of the link's speed, where what is fetched goes through a copy first: expected, not measured."""
OVERLAP = 1.02
"""What fetching costs a forward that hides it."""
HARM = {"none": 0, "fp8-storage": 2, "int8": 3, "fp8": 3, "nf4": 4}
TILING_HARM = 1
SPEED = {"none": 1.0, "fp8-storage": 0.97, "int8": 1.3, "fp8": 1.6, "nf4": 0.9}
"""Of the blocks' linear layers against bf16: expected, not measured."""
PHASES = ("texts", "memories", "denoising", "decoding")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Bytes of everything that a generation holds, by part. Weights are those of one transformer and one process."""

    word: int
    "bytes of a number in the model's dtype"
    blocks: int
    linears: tuple[tuple[int, int], ...]
    "rows and columns of the linear layers of one block, without the text projections"
    text_linears: tuple[tuple[int, int], ...]
    "and of what turns text into keys and values"
    block_rest: int
    "biases, norms and modulation of one block: they stay on the device"
    outside: int
    "embedders and output layer"
    experts: int = 1
    "transformers of the base"
    stored: float | None = None
    "bytes a weight, where a file brings its own quantization"
    loras: int = 0
    text_encoder: int = 0
    encoder_layer: int = 0
    encoder_outside: int = 0
    "of the text encoder, outside of its layers"
    vae: int = 0
    adapter: int = 0
    adapter_piece: int = 0
    "largest part that can be computed on its own"
    memories: int = 0
    "keys and values of all texts and persons"
    encoding: int = 0
    "activations of the text encoder"
    remembering: int = 0
    "activations of the forward over the reference still"
    forward: int = 0
    "activations of one forward, all passes that run at once"
    latents: int = 0
    "the latents and what the sampler keeps of the steps before"
    kept: int = 0
    "what a step cache keeps"
    decode: int = 0
    decode_tiled: int = 0
    clip: int = 0
    "frames in host memory"
    tiles: int = 0
    "what waits in host memory while the VAE decodes in tiles"


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """Seconds of a generation with everything on the device, from what was measured; all zero: unknown."""

    forward: float = 0.0
    linear: float = 0.0
    "of a forward, in the linear layers of the blocks"
    forwards: float = 0
    texts: float = 0.0
    memories: float = 0.0
    decode: float = 0.0
    decode_tiled: float = 0.0
    link: float = math.inf
    "bytes a second from host to device"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What is held where, and what that takes."""

    quantize: Quantize = "none"
    offload: Offload = "none"
    pinned: bool = True
    "offloaded blocks lie in page-locked memory; False: they stay mapped from their files, slower to fetch"
    vae_tiling: bool = False
    idle_models: Idle = "keep"
    "text encoder, VAE and adapter while not in use, as in GenerateConfig"
    text_encoder: By = "whole"
    "how it comes to the device: at once, or layer by layer"
    adapter: By = "whole"
    "how it comes to the device for the memories: at once, or projection by projection"
    text_projections: Projections = "keep"
    "park: what turned text into keys and values is away from the device while denoising"
    device: Mapping[str, int] = field(default_factory=dict)
    "bytes at most in each of PHASES"
    host: int = 0
    "bytes of the process in host memory at most, mapped files aside"
    seconds: Mapping[str, float] = field(default_factory=dict)
    "expected in each of PHASES; loading aside"
    slowdown: float = 1.0
    "time over that with everything on the device"
    exact: bool = True
    "whether it leaves the clip as it is in the model's dtype"

    @property
    def peak(self) -> int:
        """Bytes of device memory at most."""
        return max(self.device.values(), default=0)

    @property
    def harm(self) -> int:
        """How much it changes the clip: 0 not at all."""
        return HARM[self.quantize] + TILING_HARM * self.vae_tiling

    @property
    def moves(self) -> int:
        """How much of the model is moved about."""
        apart = (self.text_encoder == "block", self.adapter == "block", self.text_projections == "park", not self.pinned)
        return (self.idle_models != "keep") + 2 * (self.offload == "block") + sum(apart)

    def __str__(self) -> str:
        """The layout in words."""
        found = []
        if self.quantize != "none":
            found.append(f"blocks in {self.quantize}")
        if self.offload == "block":
            where = "host memory" if self.pinned else "host memory, not pinned"
            found.append(f"blocks in {where}, each fetched while the one before is computed")
        if self.vae_tiling:
            found.append("VAE in tiles")
        if self.idle_models != "keep":
            layers = " (layer by layer)" if self.text_encoder == "block" else ""
            pieces = " (projection by projection)" if self.adapter == "block" else ""
            found.append(f"text encoder{layers}, VAE and adapter{pieces} on the device only while in use")
        if self.text_projections == "park":
            found.append("text projections away once the texts are remembered")
        return "; ".join(found) or "everything stays on the device"


def activations(shape: Shape, tokens: int, word: int) -> int:
    """Bytes alive at most in one forward in eager mode, its weights and inputs aside.

    In half precision that is the end of a block, where the stream is added up in float32; in float32 it is attention with an adapter's
    term beside it; with wide feed-forward layers it is their activation function. And the rotary tables.
    """
    widths = 11 if word == 2 else 10.1
    block = max(math.ceil(widths * shape.width * word), 4 * shape.width * word + 2 * shape.inner * word)
    return tokens * (block + 2 * 4 * shape.head_width)


def choose_layout(
    sizes: Sizes,
    budget: int | None,
    asked: RuntimeConfig,
    device: Device,
    *,
    idle_models: Idle = "keep",
    pace: Pace = Pace(),
) -> Layout:
    """The least harmful layout whose device memory stays within `budget` bytes; without a budget the one that is asked for.

    What `asked` says of quantize, offload and vae_tiling holds, and so does an `idle_models` other than keep. A layout whose host
    memory is not there is taken only if no other fits. Raises BadRequest, with the smallest budget that would do, if none does.
    """
    if budget is None:
        plain = Layout(
            quantize=asked.quantize or "none",
            offload=asked.offload or "none",
            vae_tiling=bool(asked.vae_tiling),
            idle_models=idle_models,
            text_projections="keep" if idle_models == "keep" else "park",
        )
        return _measured(plain, sizes, device, pace)
    candidates = [_measured(one, sizes, device, pace) for one in _candidates(asked, idle_models, sizes)]
    fitting = [one for one in candidates if one.peak <= budget]
    if not fitting:
        raise BadRequest(_too_little(budget, candidates, sizes, device, pace, idle_models))

    return min(fitting, key=lambda one: (crowded(one, device), one.harm, one.slowdown, one.moves))


def least_budget(sizes: Sizes, device: Device) -> int:
    """Bytes of device memory without which no layout will do."""
    return min(_measured(one, sizes, device, Pace()).peak for one in _candidates(RuntimeConfig(), "keep", sizes))


def has_four_bits() -> bool:
    """Whether weights can be held in 4 bits here."""
    return importlib.util.find_spec("bitsandbytes") is not None


def crowded(layout: Layout, device: Device) -> bool:
    """Whether it wants more host memory than there is."""
    return device.apart and 0 < device.host_free < layout.host


def _candidates(asked: RuntimeConfig, idle_models: Idle, sizes: Sizes) -> list[Layout]:
    """Every layout that keeps to what is asked; int8 and fp8 change more than fp8-storage and save no more."""
    quantize: tuple[Quantize, ...] = ("none",)
    if sizes.stored is None:
        quantize = ("none", "fp8-storage", "nf4") if has_four_bits() else ("none", "fp8-storage")
    offload: tuple[Offload, ...] = ("none", "block")
    tiling: tuple[bool, ...] = (False, True)
    idle: tuple[Idle, ...] = ("keep", "offload")
    by: tuple[By, ...] = ("whole", "block")
    if asked.compile and asked.quantize in ("int8", "fp8"):  # torchao's tensors, which no longer move once a compiler saw them
        offload = ("none",)
    plain = [
        Layout(
            quantize=one,
            offload=place,
            pinned=pinned,
            vae_tiling=tiles,
            idle_models=rest,
            text_projections="keep" if rest == "keep" else "park",
        )
        for one in ((asked.quantize,) if asked.quantize is not None else quantize)
        for place in ((asked.offload,) if asked.offload is not None else offload)
        for pinned in ((True, False) if place == "block" else (True,))
        for tiles in ((asked.vae_tiling,) if asked.vae_tiling is not None else tiling)
        for rest in ((idle_models,) if idle_models != "keep" else idle)
    ]
    return plain + [
        replace(one, text_encoder=encoder, adapter=adapter)
        for one in plain
        if one.idle_models != "keep"
        for encoder in by
        for adapter in by
        if (encoder, adapter) != ("whole", "whole")
    ]


def _measured(layout: Layout, sizes: Sizes, device: Device, pace: Pace) -> Layout:
    """The same layout with what it takes."""
    seconds = _seconds(layout, sizes, pace)
    ideal = sum(_seconds(Layout(), sizes, pace).values())
    tiled = layout.vae_tiling and sizes.decode_tiled < sizes.decode
    return replace(
        layout,
        device=_device_bytes(layout, sizes, device),
        host=_host_bytes(layout, sizes, device),
        seconds=seconds if ideal else {},
        slowdown=max(1.0, round(sum(seconds.values()) / ideal, 2)) if ideal else 1.0,
        exact=HARM[layout.quantize] == 0 and not tiled and sizes.stored is None,
    )


def _device_bytes(layout: Layout, sizes: Sizes, device: Device) -> dict[str, int]:
    """By phase, at most."""
    text = _layers(layout, sizes, sizes.text_linears)
    blocks = min(AT_ONCE, sizes.blocks) if layout.offload == "block" else sizes.blocks * sizes.experts
    base = sizes.experts * (sizes.outside + sizes.blocks * sizes.block_rest) + sizes.loras
    base += blocks * (_layers(layout, sizes, sizes.linears) + text)
    if layout.quantize == "nf4" and layout.offload == "block":  # the scales of all blocks stay
        everything = (*sizes.linears, *sizes.text_linears)
        halves = sum(rows * columns // 2 for rows, columns in everything)
        base += (sizes.blocks * sizes.experts - blocks) * (_layers(layout, sizes, everything) - halves)
    away = blocks * text if layout.text_projections == "park" else 0
    largest = max((rows * columns for rows, columns in (*sizes.linears, *sizes.text_linears)), default=0) * sizes.word
    widened = {"fp8-storage": 2 * largest, "nf4": largest}.get(layout.quantize, largest if sizes.stored is not None else 0)
    encoder, adapter = sizes.text_encoder, sizes.adapter
    if layout.text_encoder == "block":
        encoder = sizes.encoder_outside + AT_ONCE * sizes.encoder_layer
    if layout.adapter == "block":
        adapter = AT_ONCE * sizes.adapter_piece
    idle = encoder + sizes.vae + adapter if layout.idle_models == "keep" else 0
    phases = {
        "texts": base + widened + sizes.memories + sizes.encoding + (0 if idle else encoder),
        "memories": base + widened + sizes.memories + sizes.remembering + (0 if idle else max(adapter, sizes.vae)),
        "denoising": base - away + widened + sizes.memories + sizes.latents + sizes.forward + sizes.kept,
        "decoding": base
        - away
        + sizes.latents
        + (sizes.decode_tiled if layout.vae_tiling else sizes.decode)
        + (0 if idle else sizes.vae),
    }
    context = CONTEXT if device.kind == "cuda" else 0
    loss = 1 + LOSS if device.apart else 1.0
    return {phase: math.ceil((size + idle) * loss) + context for phase, size in phases.items()}


def _host_bytes(layout: Layout, sizes: Sizes, device: Device) -> int:
    """Pinned memory is counted as torch gives it: a tensor takes the next power of two.

    What is mapped from files counts where every forward reads it: it has to stay in memory to be there in time.
    """
    found = PROCESS.get(device.kind, PROCESS["cuda"]) + sizes.clip + (sizes.tiles if layout.vae_tiling else 0)
    everywhere = sizes.blocks * sizes.experts
    if layout.offload == "block":
        pinned = layout.pinned and device.apart
        found += everywhere * _layers(layout, sizes, (*sizes.linears, *sizes.text_linears), pinned=pinned)
    elif layout.text_projections == "park":
        found += everywhere * _layers(layout, sizes, sizes.text_linears)
    if layout.idle_models != "keep":
        found += sizes.vae + sizes.adapter + (sizes.text_encoder if layout.text_encoder == "whole" else 0)
    return found if device.apart else found + max(_device_bytes(layout, sizes, device).values())


def _seconds(layout: Layout, sizes: Sizes, pace: Pace) -> dict[str, float]:
    """By phase."""
    text = _layers(layout, sizes, sizes.text_linears)
    block = _layers(layout, sizes, sizes.linears) + text
    forward = pace.forward + pace.linear * (1 / SPEED[layout.quantize] - 1)
    texts, memories = pace.texts, pace.memories
    decode = pace.decode_tiled if layout.vae_tiling else pace.decode
    if layout.offload == "block":
        link = pace.link if layout.pinned else UNPINNED * pace.link
        fetched = (block - text if layout.text_projections == "park" else block) / link
        forward = fetched + sizes.blocks * max(forward / sizes.blocks * OVERLAP, fetched)
        memories += 2 * sizes.experts * sizes.blocks * block / pace.link
        texts += 2 * sizes.experts * sizes.blocks * text / pace.link
    if layout.idle_models != "keep":
        # there and back, once for the reference's text and once for the prompts; layer by layer, there alone
        texts += (3 if layout.text_encoder == "block" else 4) * sizes.text_encoder / pace.link
        memories += ((1 if layout.adapter == "block" else 2) * sizes.adapter + 2 * sizes.vae) / pace.link
        decode += 2 * sizes.vae / pace.link
        if layout.offload == "none":  # the text projections, away before the first step and back after the clip
            texts += 2 * sizes.experts * sizes.blocks * text / (UNPINNED * pace.link)
    return dict(zip(PHASES, (texts, memories, pace.forwards * forward, decode), strict=True))


def _layers(layout: Layout, sizes: Sizes, linears: tuple[tuple[int, int], ...], *, pinned: bool = False) -> int:
    """Bytes of the weights of some linear layers."""
    from lynx_video.runtime.quantize import quantized_bytes

    if sizes.stored is not None:
        each = [math.ceil(rows * columns * sizes.stored) for rows, columns in linears]
    else:
        each = [quantized_bytes(layout.quantize, rows, columns, sizes.word) for rows, columns in linears]
    return sum(1 << (size - 1).bit_length() if pinned else size for size in each)


def _too_little(budget: int, candidates: list[Layout], sizes: Sizes, device: Device, pace: Pace, idle_models: Idle) -> str:
    least = min(candidates, key=lambda one: one.peak)
    phase = max(least.device, key=lambda name: least.device[name])
    sentence = (
        f"--vram-budget {budget / GIB:.4g} is too little for this request: at least {_upward(least.peak / GIB)} is needed "
        f"(for {phase}); fewer frames or a smaller size need less"
    )
    free = min(_measured(one, sizes, device, pace).peak for one in _candidates(RuntimeConfig(), idle_models, sizes))
    if free < least.peak:
        sentence += f", and without the given --quantize, --offload or --vae-tiling {_upward(free / GIB)} would do"
    return sentence + "."


def _upward(number: float) -> str:
    """Three digits, never less than it is."""
    step = 10.0 ** (math.floor(math.log10(number)) - 2)
    return f"{math.ceil(number / step - 1e-9) * step:.3g}"


def gib(size: float) -> str:
    """Bytes in words: `23.4 GiB`."""
    unit, name = (GIB, "GiB") if size >= GIB / 10 else (2**20, "MiB")
    return f"{size / unit:.1f} {name}"
