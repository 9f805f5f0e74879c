"""From final latents to frames: the stock VAE's decoder, one latent frame at a time, as uint8.

`AutoencoderKLWan.decode` appends every chunk to all before it, a copy that grows with the square of the clip's length, and holds the
whole clip in floating point. Here each chunk is turned into pixels and handed on. The products are the same in the same order, so
the frames are equal to those of `vae.decode` bit for bit.

The decoder is causal: it remembers the last two frames of every convolution's input, in a cache that is passed to it. It belongs to
the call and not to the VAE, so a decode that is given up leaves nothing behind.

With tiling, tiles that overlap are decoded and blended as by `vae.tiled_decode`, with equal frames too, but still frame by frame: every
tile has a cache of its own, and those that are not in use wait in host memory. The device then holds, whatever the clip's size, the
activations and the cache of one tile, and of the current latent frame two rows of decoded tiles.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from lynx_video.pipeline.condition import latent_statistics

TILE, STRIDE = 256, 192  # pixels: how a stock VAE tiles, unless told otherwise
CACHED_FRAMES = 2
LIVE_LAYERS = 9  # measured: 7 of the largest layer's inputs at once, and what the convolution's kernel copies
Cache = list[Any]  # of a convolution each: a tensor, None before its first frame, or a mark


@torch.no_grad()
def decode_chunks(vae: Any, latents: Tensor, *, tiling: bool = False) -> Iterator[Tensor]:
    """The video in order, a chunk for each latent frame: uint8 [f, H, W, 3] on the CPU; the first has one frame.

    latents: final ones as the transformer sees them, [1, C, T, h, w]. tiling: decode in tiles where the VAE would, for less memory and
    more time; so does a VAE whose own tiling is on. Hooks that put the VAE's weights on a device while they are needed work as in
    `vae.decode`. Closing the generator frees what it holds.
    """
    from diffusers.utils.accelerate_utils import apply_forward_hook
    from diffusers.utils.torch_utils import get_module_execution_device

    assert latents.shape[0] == 1, "clips are decoded one by one"
    apply_forward_hook(lambda _: None)(vae)  # brings a VAE that was offloaded as a whole to its device, as vae.decode does
    mean, std = latent_statistics(vae, latents.device)
    raw = (latents * std + mean).to(get_module_execution_device(vae), vae.dtype)
    grid = Grid.of(vae)
    if (tiling or vae.use_tiling) and (raw.shape[3] > grid.tile[0] or raw.shape[4] > grid.tile[1]):
        yield from _tiled(vae, raw, grid)
    else:
        yield from _whole(vae, raw)


def decode(vae: Any, latents: Tensor, *, tiling: bool = False) -> Tensor:
    """The whole video, uint8 [F, H, W, 3] on the CPU; arguments as in `decode_chunks`."""
    frames = 1 + (latents.shape[2] - 1) * 2 ** sum(vae.config.temperal_downsample)
    video: Tensor | None = None
    filled = 0
    for chunk in decode_chunks(vae, latents, tiling=tiling):
        if video is None:
            video = torch.empty(frames, *chunk.shape[1:], dtype=torch.uint8)
        video[filled : filled + len(chunk)] = chunk
        filled += len(chunk)
    assert video is not None
    assert filled == frames
    return video


def _whole(vae: Any, raw: Tensor) -> Iterator[Tensor]:
    hidden = vae.post_quant_conv(raw)
    cache = _empty_cache(vae)
    for number, frame in enumerate(hidden.split(1, dim=2)):
        yield _pixels(vae, vae.decoder(frame, feat_cache=cache, feat_idx=[0], first_chunk=number == 0))


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """How a VAE divides a picture: each (down, across). tile and step in latents; stride and overlap in what the decoder puts out."""

    tile: tuple[int, int]
    step: tuple[int, int]
    stride: tuple[int, int]
    overlap: tuple[int, int]

    @staticmethod
    def of(vae: Any) -> Grid:
        """As `vae.tiled_decode` reckons it."""
        tiles = vae.tile_sample_min_height, vae.tile_sample_min_width
        strides = vae.tile_sample_stride_height, vae.tile_sample_stride_width
        factor, patch = vae.spatial_compression_ratio, vae.config.patch_size or 1
        return Grid(
            tile=(tiles[0] // factor, tiles[1] // factor),
            step=(strides[0] // factor, strides[1] // factor),
            stride=(strides[0] // patch, strides[1] // patch),
            overlap=(tiles[0] // patch - strides[0] // patch, tiles[1] // patch - strides[1] // patch),
        )


def _tiled(vae: Any, raw: Tensor, grid: Grid) -> Iterator[Tensor]:
    """The video, chunk by chunk, from tiles. A row is blended with the one above and each tile with the one on its left."""
    tops, lefts = (range(0, size, step) for size, step in zip(raw.shape[3:], grid.step, strict=True))
    caches = {(top, left): _empty_cache(vae) for top in tops for left in lefts}
    height, width = (size * vae.spatial_compression_ratio for size in raw.shape[3:])
    for number, frame in enumerate(raw.split(1, dim=2)):
        above: list[Tensor] = []
        strips: list[Tensor] = []
        for top in tops:
            row: list[Tensor] = []
            for place, left in enumerate(lefts):
                part = frame[..., top : top + grid.tile[0], left : left + grid.tile[1]]
                cache = caches[top, left]
                tile = vae.decoder(vae.post_quant_conv(part), feat_cache=cache, feat_idx=[0], first_chunk=number == 0)
                _park(cache)
                if above:
                    tile = vae.blend_v(above[place], tile, grid.overlap[0])
                if row:
                    tile = vae.blend_h(row[-1], tile, grid.overlap[1])
                row.append(tile)
            strips.append(_pixels(vae, torch.cat([tile[..., : grid.stride[0], : grid.stride[1]] for tile in row], dim=-1)))
            above = row
        del above, row, tile  # nothing but the caches is kept while the chunk is away
        yield torch.cat(strips, dim=1)[:, :height, :width]


def _empty_cache(vae: Any) -> Cache:
    vae.clear_cache()  # also drops what a decode that failed may have left
    return [None] * len(vae._feat_map)


def _park(cache: Cache) -> None:
    """Move a cache to host memory; the decoder fetches from it what it needs."""
    cache[:] = [one.cpu() if isinstance(one, Tensor) else one for one in cache]


def _pixels(vae: Any, decoded: Tensor) -> Tensor:
    """What the decoder puts out, [1, C, f, ., .], as uint8 [f, H, W, 3] on the CPU."""
    from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify

    if vae.config.patch_size is not None:
        decoded = unpatchify(decoded, patch_size=vae.config.patch_size)
    video = decoded[0].clamp(-1, 1)
    frames: Tensor = ((video.float() / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return frames.permute(1, 2, 3, 0).contiguous().cpu()


def decode_bytes(height: int, width: int, tiling: bool, vae_config: Mapping[str, Any], dtype: torch.dtype) -> int:
    """An estimate of the device memory a decode of height x width pixels needs beside the VAE's weights, whatever the clip's length.

    The cache is counted exactly; activations are taken as LIVE_LAYERS inputs of the largest layer. vae_config: the VAE's
    configuration; what it leaves out is as in Wan 2.1. With tiling, of one stock tile and the decoded tiles of two rows.
    """
    factor = int(vae_config.get("scale_factor_spatial") or 8)
    tiled = tiling and (height > TILE or width > TILE)
    rows, columns = (min(TILE, height), min(TILE, width)) if tiled else (height, width)
    cached, largest, frames = _decoder_sizes(vae_config, rows // factor, columns // factor)
    elements = cached + LIVE_LAYERS * largest
    if tiled:
        overlapping = width * TILE // STRIDE + TILE
        elements += 2 * 3 * frames * rows * overlapping
    return elements * dtype.itemsize


def _decoder_sizes(config: Mapping[str, Any], h: int, w: int) -> tuple[int, int, int]:
    """Elements in the cache, elements in the largest layer's input, and frames of a chunk, for latents of h x w."""
    multiples = list(config.get("dim_mult") or (1, 2, 4, 4))[::-1]
    base = int(config.get("decoder_base_dim") or config.get("base_dim") or 96)
    in_time = list(config.get("temperal_downsample") or (False, True, True))[::-1]
    residual, depth = bool(config.get("is_residual")), int(config.get("num_res_blocks") or 2) + 1
    widths = [base * multiple for multiple in (multiples[0], *multiples)]
    area, frames = h * w, 1
    cached = area * (int(config.get("z_dim") or 16) + 4 * widths[0])  # what comes in, and the middle block
    largest = area * widths[0]
    for number, (into, out) in enumerate(pairwise(widths)):
        into = into if residual or number == 0 else into // 2
        cached += area * (into + (2 * depth - 1) * out)
        largest = max(largest, frames * area * max(into, out))
        if number < len(multiples) - 1:
            if in_time[number]:
                cached += area * out
                frames *= 2
            area *= 4
    return CACHED_FRAMES * (cached + area * widths[-1]), largest, frames
