"""What a training step will take, before it is tried: parameters, memory of one process and arithmetic, as `--dry-run` prints them.

Parameters are counted on the real modules, made on torch's meta device, where they take no memory. Memory and arithmetic are
formulas; tests hold the arithmetic against torch's own counter and the activations against what autograd keeps. Not counted: the
VAE and the text encoder (needed for validation clips only), CUDA itself (about 1 GiB) and what the allocator loses between blocks.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from lynx_video.errors import BadRequest

if TYPE_CHECKING:
    from lynx_video.adapters.attach import Adapter, AdapterConfig

GIB = 2**30
BACKWARD_OF_ATTENTION = 2.5
"""Times its forward: four products in place of two, and the scores once more, which fused kernels do not keep."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What one process goes through in a step, and how the model lies in its memory."""

    sample_tokens: int
    "video tokens L of one sample; 32,760 for 480x832x81"
    pack_tokens: int = 33_600
    "most video tokens of a pack; it holds as many samples as fit, at least one"
    packs: int = 1
    "packs a step on each process, one after the other"
    text_tokens: int = 512
    "text tokens S of one sample"
    reference_tokens: int = 256
    "reference tokens R of one sample"
    processes: int = 1
    "over which the blocks, the adapter and its optimizer are split (FSDP2)"
    recompute: bool = True
    "keep only the input of each block for the backward (activation checkpointing)"
    precision: Literal["bf16", "fp32"] = "bf16"
    "of the frozen base and of the arithmetic; adapter, gradients and optimizer are float32"
    average: bool = True
    "averaged weights beside the trained ones"
    moments: int = 2
    "float32 numbers a weight that the optimizer keeps: 2 for AdamW, 1 for Muon"
    levels: Literal["pack", "sample"] = "pack"
    "one noise level for a pack, or one for each sample: then the modulation is there for every token"

    def __post_init__(self) -> None:
        for name in ("sample_tokens", "pack_tokens", "packs", "processes"):
            if getattr(self, name) < 1:
                raise BadRequest(f"{name} must be 1 or more, got {getattr(self, name)}.")

    @property
    def samples(self) -> int:
        """Samples in a pack."""
        return max(1, self.pack_tokens // self.sample_tokens)

    @property
    def word(self) -> int:
        """Bytes of a number in the base and in most activations."""
        return 2 if self.precision == "bf16" else 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The numbers, each under the words that `table` prints."""

    workload: Workload
    trained: Mapping[str, int]
    "parameters by part: resampler, identity, reference"
    frozen: int
    "parameters of the base"
    memory: Mapping[str, int]
    "bytes on one process"
    arithmetic: Mapping[str, int]
    "floating point operations of a step on one process"

    @property
    def total_trained(self) -> int:
        """Parameters that are trained."""
        return sum(self.trained.values())

    @property
    def total_memory(self) -> int:
        """Bytes on one process."""
        return sum(self.memory.values())

    @property
    def total_arithmetic(self) -> int:
        """Floating point operations of a step on one process."""
        return sum(self.arithmetic.values())

    def fits(self, available: int) -> str:
        """Whether it fits into so many bytes, in a sentence that says what would help if it does not."""
        need, there = f"{self.total_memory / GIB:.1f} GiB", f"{available / GIB:.1f} GiB"
        if self.total_memory <= 0.9 * available:
            return f"Fits: about {need} of {there} on each process."
        if self.total_memory <= available:
            return f"Tight: about {need} of {there} on each process, and the allocator loses some; it may run out of memory."
        largest = max(self.memory, key=lambda name: self.memory[name])
        kept = self.memory["kept for the backward"] if not self.workload.recompute else 0
        if kept > self.total_memory - available:
            advice = "recomputing the blocks (recompute) helps most"
        elif largest in ("kept for the backward", "one block at work"):
            advice = "a smaller pack or smaller clips help most"
        else:
            advice = "more processes to split the model over help most"
        return (
            f"Does not fit: about {need} are needed on each process and {there} are there; the largest part is {largest} "
            f"({self.memory[largest] / GIB:.1f} GiB), {advice}."
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Base:
    """A base as its config describes it. All counts are of parameters, all bytes those on the device before any split."""

    blocks: int
    width: int
    heads: int
    inner: int
    "width of the feed-forward layers"
    entry: int
    "multiplications a video token when latents become tokens"
    exit: int
    "and when tokens become latents"
    parameters: int
    block_bytes: int
    "of one block"
    other_bytes: int
    "of all that lies outside of the blocks"


def estimate(transformer: Mapping[str, Any], adapter: AdapterConfig, workload: Workload) -> Estimate:
    """What training `adapter` on a base takes. transformer: its config, as in the base's `transformer/config.json`."""
    import torch

    from lynx_video.adapters.attach import Adapter

    base = _base(transformer, workload.word)
    with torch.device("meta"):
        made = Adapter(adapter)
    trained = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in (("resampler", made.resampler), ("identity", made.identity), ("reference", made.reference))
        if part is not None
    }
    return Estimate(
        workload=workload,
        trained=trained,
        frozen=base.parameters,
        memory=_memory(base, made, sum(trained.values()), workload),
        arithmetic=_arithmetic(base, made, int(transformer["text_dim"]), workload),
    )


def table(estimate: Estimate) -> str:
    """The estimate as text, for a terminal."""
    work = estimate.workload
    parts = ", ".join(f"{name} {_count(number)}" for name, number in estimate.trained.items() if number)
    where = f"on each of {work.processes} processes" if work.processes > 1 else "on one process"
    lines = [
        f"Trained parameters  {_count(estimate.total_trained)} ({parts})",
        f"Frozen parameters   {_count(estimate.frozen)}",
        f"A step              {work.packs} x {work.samples} x {work.sample_tokens:,} video tokens {where}",
        "",
        "Memory of one process, about",
        *(f"  {name:<28}{size / GIB:>8.1f} GiB" for name, size in estimate.memory.items() if size),
        f"  {'together':<28}{estimate.total_memory / GIB:>8.1f} GiB",
        "",
        "Arithmetic of a step on one process, about",
        *(f"  {name:<28}{number / 1e12:>8.1f} TFLOP" for name, number in estimate.arithmetic.items() if number),
        f"  {'together':<28}{estimate.total_arithmetic / 1e12:>8.1f} TFLOP",
    ]
    return "\n".join(lines)


def _base(config: Mapping[str, Any], word: int) -> _Base:
    """The base made on the meta device and counted; what diffusers keeps in float32 has four bytes."""
    import torch
    from diffusers import WanTransformer3DModel

    known = {name: value for name, value in config.items() if not name.startswith("_")}
    try:
        with torch.device("meta"):
            model = WanTransformer3DModel(**known)
    except TypeError as error:
        raise BadRequest(f"the transformer's config does not describe a Wan transformer ({error}).") from error
    whole = tuple(model._keep_in_fp32_modules or ())
    sizes = [
        (name, parameter.numel(), 4 if any(part in whole for part in name.split(".")) else word)
        for name, parameter in model.named_parameters()
    ]
    width = model.config.num_attention_heads * model.config.attention_head_dim
    inside = sum(number * size for name, number, size in sizes if name.startswith("blocks."))
    patch = math.prod(model.config.patch_size)
    return _Base(
        blocks=len(model.blocks),
        width=width,
        heads=model.config.num_attention_heads,
        inner=model.config.ffn_dim,
        entry=patch * width * model.config.in_channels,
        exit=patch * width * model.config.out_channels,
        parameters=sum(number for _, number, _ in sizes),
        block_bytes=inside // len(model.blocks),
        other_bytes=sum(number * size for name, number, size in sizes if not name.startswith("blocks.")),
    )


def _memory(base: _Base, adapter: Adapter, trained: int, work: Workload) -> dict[str, int]:
    """Bytes by part on one process, in the forward and backward of one pack."""
    config, width, word = adapter.config, base.width, work.word
    video = work.samples * work.sample_tokens
    among = work.processes
    identity, reference = len(config.identity_blocks), len(config.reference_blocks)
    faces, references = work.samples * _identity_tokens(adapter), work.samples * work.reference_tokens
    # Kept of a block for its backward, in numbers a video token. The frozen linear layers need nothing: norms keep their input in
    # float32 (norm1 to norm3, both norms of the query and that of the key), attention its query, key, value and result, and GELU
    # its input. A memory adds its result and, in self-attention, the query before its rotary embedding.
    per_token = 6 * 4 * width + word * (6 * width + base.inner)
    one_block = video * (per_token + (2 * word * width if reference else 0) + (word * width if identity else 0))
    one_block += (4 + 2 * word) * width * (references * bool(reference) + faces * bool(identity))
    at_work = video * (
        2 * word * base.inner + (2 * word + 8) * width
    )  # gradients in flight, the widest in the feed-forward layers
    shared = video * 4 * width  # the last norm
    if work.levels == "sample":
        one_block += video * 6 * 4 * width
        shared += video * (4 + 7 * word) * width
    gathered = copies = 0
    if among > 1:
        own = sum(p.numel() for one in (adapter.identity, adapter.reference) for p in one.parameters()) * 4
        gathered = 2 * base.block_bytes + 3 * own // max(identity, reference, 1)
    if word == 2:
        copies = 2 * trained
    return {
        "frozen base": base.other_bytes + base.blocks * base.block_bytes // among,
        "blocks gathered from others": gathered,
        "adapter": 4 * trained // among,
        "its copy in bfloat16": copies,  # autocast keeps each weight it has cast until the pack is done, split or not
        "gradients": 4 * trained // among,
        "optimizer": 4 * work.moments * trained // among,
        "averaged weights": 4 * trained // among if work.average else 0,
        "reference features": base.blocks * references * width * word if reference else 0,
        "kept for the backward": shared + base.blocks * (video * word * width if work.recompute else one_block),
        "one block at work": at_work + (one_block if work.recompute else 0),
    }


def _arithmetic(base: _Base, adapter: Adapter, text_width: int, work: Workload) -> dict[str, int]:
    """Floating point operations by part: two for each multiplication of a matrix product."""
    width, blocks = base.width, base.blocks
    identity, reference = len(adapter.config.identity_blocks), len(adapter.config.reference_blocks)
    video, text, faces, references = work.sample_tokens, work.text_tokens, _identity_tokens(adapter), work.reference_tokens
    square = 2 * width * width

    def linear(tokens: int) -> int:
        """Forward of all linear layers on tokens of the stream: six of the width in a block, and the feed-forward pair."""
        return tokens * (blocks * (6 * square + 4 * width * base.inner) + 2 * (base.entry + base.exit))

    def context(tokens: int) -> int:
        """Embedding of text, and its keys and values."""
        return tokens * (2 * text_width * width + square + blocks * 2 * square)

    def attention(queries: int, keys: int) -> int:
        return 4 * queries * keys * width

    inside = blocks * (attention(video, video) + attention(video, text))
    extra = identity * attention(video, faces) + reference * attention(video, references)
    token_width = adapter.config.identity.tokens if adapter.config.identity else 0
    of_faces = identity * faces * 2 * 2 * token_width * width
    of_references = reference * references * 2 * square
    seen = linear(references) + context(text) + blocks * (attention(references, references) + attention(references, text))
    # Back through the frozen layers goes one product where the forward has one; the first block's input asks for no gradient.
    back = linear(video) - video * (2 * base.entry + 3 * square) + 2 * of_faces + of_references
    back_attention = BACKWARD_OF_ATTENTION * (inside + extra - attention(video, video))
    again = (
        linear(video)
        - 2 * video * (base.entry + base.exit)
        + blocks * text * 2 * square
        + inside
        + extra
        + of_faces
        + of_references
    )
    each = {
        "linear layers": linear(video) + context(text),
        "attention": inside,
        "terms of the adapter": extra + of_faces + of_references,
        "references through the base": seen if reference else 0,
        "blocks computed again": again if work.recompute else 0,
        "backward": back + int(back_attention),
    }
    return {name: work.packs * work.samples * number for name, number in each.items()}


def _identity_tokens(adapter: Adapter) -> int:
    """Identity tokens of one face in a block, with the registers."""
    config = adapter.config
    if config.resampler is None or config.identity is None:
        return 0
    return config.resampler.queries + config.identity.registers


def _count(number: int) -> str:
    """4_283_000_000 -> 4.28 B."""
    for size, letter in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:.3g} {letter}"
    return str(number)
