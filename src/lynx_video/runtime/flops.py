"""Arithmetic of a generation from configurations alone: no model is made, no weight is read, torch is not needed.

Two operations for each multiplication of a matrix product or a convolution, as `torch.utils.flop_counter` counts them; tests hold
the two together. What a kernel that only reads and writes does (norms, modulation, rotary embeddings) is not arithmetic: `moved`
says how many bytes that is.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lynx_video.errors import BadRequest

MOVED = {2: 194, 4: 84}
"""Numbers a video token and width that the elementwise operations of one block read and write, by the bytes of a number: what stock
diffusers does in eager mode with an adapter. In half precision most are there because norms and modulation run in float32."""
MOVED_COMPILED = 40
"""The same where each run of elementwise operations is one kernel; expected, not counted."""
OPERATIONS = 80
"""Operations of one block, each of which takes its time to be started."""
TILE, STRIDE = 256, 192
"""Pixels of a tile of the VAE and from one tile to the next, as diffusers has them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """A Wan transformer as its config describes it."""

    blocks: int
    width: int
    heads: int
    inner: int
    "width of the feed-forward layers"
    text_width: int
    time_width: int
    patch: tuple[int, int, int]
    in_channels: int
    out_channels: int
    cross_norm: bool = True
    "a norm with weights before the attention to the text"

    @property
    def head_width(self) -> int:
        """K."""
        return self.width // self.heads

    @property
    def block_linear(self) -> int:
        """Numbers in the linear weights of one block, without those that turn text into keys and values."""
        return 6 * self.width**2 + 2 * self.width * self.inner

    @property
    def block_text(self) -> int:
        """Numbers in what turns text into keys and values of one block: two matrices and their biases."""
        return 2 * self.width * (self.width + 1)

    @property
    def block_half(self) -> int:
        """Other numbers of one block in the model's precision: biases and the norms of queries and keys."""
        return 6 * self.width + self.inner + self.width + 4 * self.width

    @property
    def block_float(self) -> int:
        """Numbers of one block that stay float32: modulation, and the norm before the attention to the text."""
        return 6 * self.width + (2 * self.width if self.cross_norm else 0)

    @property
    def outside_half(self) -> int:
        """Numbers outside of the blocks in the model's precision: patches in and out, text, modulation."""
        width, volume = self.width, math.prod(self.patch)
        entry, leave = volume * self.in_channels * width + width, volume * self.out_channels * (width + 1)
        return entry + leave + (self.text_width + 1) * width + (width + 1) * width + (width + 1) * 6 * width

    @property
    def outside_float(self) -> int:
        """Numbers outside of the blocks that stay float32: the embedding of the timestep, the last modulation."""
        return (self.time_width + 1) * self.width + (self.width + 1) * self.width + 2 * self.width

    @property
    def parameters(self) -> int:
        """All numbers."""
        block = self.block_linear + self.block_text + self.block_half + self.block_float
        return self.blocks * block + self.outside_half + self.outside_float

    def tokens(self, frames: int, height: int, width: int) -> int:
        """Video tokens L of latents of T frames, h x w."""
        in_time, down, across = self.patch
        return (frames // in_time) * (height // down) * (width // across)


def shape_of(config: Mapping[str, Any]) -> Shape:
    """The shape in a base's `transformer/config.json`. Raises BadRequest if that describes no Wan transformer."""
    try:
        heads = int(config["num_attention_heads"])
        in_time, down, across = config.get("patch_size") or (1, 2, 2)
        return Shape(
            blocks=int(config["num_layers"]),
            width=heads * int(config["attention_head_dim"]),
            heads=heads,
            inner=int(config["ffn_dim"]),
            text_width=int(config["text_dim"]),
            time_width=int(config["freq_dim"]),
            patch=(int(in_time), int(down), int(across)),
            in_channels=int(config.get("in_channels") or 16),
            out_channels=int(config.get("out_channels") or config.get("in_channels") or 16),
            cross_norm=bool(config.get("cross_attn_norm", True)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise BadRequest(f"the transformer's config does not describe a Wan transformer ({error}).") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Terms:
    """What a forward attends to besides its video tokens, in tokens of one person and one text; 0 blocks: no such term."""

    text: int = 512
    identity: int = 0
    "identity tokens of a block, registers included"
    identity_width: int = 0
    "width W of an identity token before its projection"
    identity_blocks: int = 0
    reference: int = 0
    reference_blocks: int = 0


def forward(shape: Shape, tokens: int, terms: Terms) -> dict[str, int]:
    """Operations of one forward over so many video tokens, by term; keys and values of text and person are in memory."""
    width, volume = shape.width, math.prod(shape.patch)
    linear = tokens * shape.blocks * 2 * shape.block_linear
    linear += tokens * 2 * volume * width * (shape.in_channels + shape.out_channels)
    # once a forward: the timestep, and the one token of text that the stock forward wants to see
    linear += 2 * width * (shape.time_width + width + 6 * width) + 2 * width * (shape.text_width + width)
    return {
        "linear layers": linear,
        "self-attention": shape.blocks * _attention(tokens, tokens, width),
        "text attention": shape.blocks * _attention(tokens, terms.text, width),
        "identity attention": terms.identity_blocks * _attention(tokens, terms.identity, width),
        "reference attention": terms.reference_blocks * _attention(tokens, terms.reference, width),
    }


def once(shape: Shape, terms: Terms) -> dict[str, int]:
    """Operations of what is computed once for a generation: for one text, and for one person.

    The resampler, which turns a face into tokens, is left out: it is a few GFLOP.
    """
    width, square = shape.width, 2 * shape.width**2
    found = {
        "text K/V": terms.text * (2 * shape.text_width * width + square + shape.blocks * 2 * square),
        "identity K/V": terms.identity_blocks * terms.identity * 2 * 2 * terms.identity_width * width,
        "reference K/V": terms.reference_blocks * terms.reference * 2 * square,
        "reference features": 0,
    }
    if terms.reference_blocks:
        # a forward of the plain base over the still, which projects its own text
        seen = forward(shape, terms.reference, Terms(text=terms.text))
        found["reference features"] = sum(seen.values()) + found["text K/V"] - 2 * width * (shape.text_width + width)
    return found


def moved(shape: Shape, tokens: int, word: int, *, compiled: bool = False) -> int:
    """Bytes that the elementwise operations of one forward read and write; word: bytes of a number."""
    return (MOVED_COMPILED if compiled else MOVED[word]) * shape.blocks * tokens * shape.width * word


def encode(config: Mapping[str, Any], tokens: int) -> int:
    """Operations of the text encoder (UMT5) over one text of so many tokens."""
    heads = int(config["num_heads"]) * int(config["d_kv"])
    attention = int(config["num_layers"]) * _attention(tokens, tokens, heads)
    return tokens * 2 * int(config["num_layers"]) * _encoder_layer(config) + attention


def encoder_numbers(config: Mapping[str, Any]) -> tuple[int, int]:
    """Numbers of one layer of the text encoder (UMT5), and of all that lies outside of its layers."""
    width, heads, buckets = int(config["d_model"]), int(config["num_heads"]), int(config["relative_attention_num_buckets"])
    return _encoder_layer(config) + 2 * width + buckets * heads, int(config["vocab_size"]) * width + width


def _encoder_layer(config: Mapping[str, Any]) -> int:
    """Numbers in the linear weights of a layer: four of the attention, three of the gated feed-forward."""
    width, heads = int(config["d_model"]), int(config["num_heads"]) * int(config["d_kv"])
    return 4 * width * heads + 3 * width * int(config["d_ff"])


class Conv(NamedTuple):
    """A convolution of the VAE's decoder. `rate` and `scale`: its frames and pixels for one of the latents; taps: of its kernel."""

    inputs: int
    outputs: int
    taps: int
    scale: int
    rate: int
    on_first: bool = True
    "runs on the first latent frame, too, on one frame"


def decode(config: Mapping[str, Any], frames: int, height: int, width: int) -> int:
    """Operations of the VAE's decoder over latents of T frames, h x w."""
    pixels = height * width
    total = sum(
        2 * one.inputs * one.outputs * one.taps * pixels * one.scale * (one.rate * (frames - 1) + one.on_first)
        for one in decoder(config)
    )
    channels = _decoder_width(config) * int(config["dim_mult"][-1])
    return total + frames * (2 * 4 * channels**2 * pixels + _attention(pixels, pixels, channels))


def decoder(config: Mapping[str, Any]) -> Iterator[Conv]:
    """The convolutions of the VAE's decoder, in order; the two of the attention in its middle aside."""
    base, multiples, latent = _decoder_width(config), list(config["dim_mult"]), int(config["z_dim"])
    residual, in_time = bool(config.get("is_residual")), list(config["temperal_downsample"])[::-1]
    widths = [base * multiple for multiple in (multiples[-1], *reversed(multiples))]
    yield Conv(latent, latent, 1, 1, 1)
    yield Conv(latent, widths[0], 27, 1, 1)
    for _ in range(4):
        yield Conv(widths[0], widths[0], 27, 1, 1)
    scale, rate = 1, 1
    for stage, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        inputs = inputs if stage == 0 or residual else inputs // 2
        for _ in range(int(config["num_res_blocks"]) + 1):
            if inputs != outputs:
                yield Conv(inputs, outputs, 1, scale, rate)
            yield Conv(inputs, outputs, 27, scale, rate)
            yield Conv(outputs, outputs, 27, scale, rate)
            inputs = outputs
        if stage == len(multiples) - 1:
            break
        if in_time[stage]:
            yield Conv(outputs, 2 * outputs, 3, scale, rate, on_first=False)
            rate *= 2
        scale *= 4
        yield Conv(outputs, outputs if residual else outputs // 2, 9, scale, rate)
    yield Conv(widths[-1], int(config.get("out_channels") or 3), 27, scale, rate)


def tiles(config: Mapping[str, Any], height: int, width: int) -> list[tuple[int, int]]:
    """Height and width, in latents, of each tile in which the VAE decodes h x w latents when it does so in tiles."""
    factor = int(config.get("scale_factor_spatial") or 8)
    tile, stride = TILE // factor, STRIDE // factor
    if height <= tile and width <= tile:
        return [(height, width)]
    return [
        (min(tile, height - top), min(tile, width - left))
        for top in range(0, height, stride)
        for left in range(0, width, stride)
    ]


def _decoder_width(config: Mapping[str, Any]) -> int:
    return int(config.get("decoder_base_dim") or config["base_dim"])


def _attention(queries: int, keys: int, width: int) -> int:
    return 4 * queries * keys * width
