"""An endless training set from the drawing code: clips and stills of people nobody else draws, encoded as training reads them.

Example number n of a seed is the same whichever range it is asked in. To make that exact and fast at once, examples are made in whole
blocks of 32 that begin at multiples of 32: what a network gives for a row may depend, in its last bits, on the rows beside it.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lynx_video.errors import BadRequest
from lynx_video.nano import faces, model
from lynx_video.nano.captions import caption
from lynx_video.nano.faces import People, Scenes
from lynx_video.nano.recipe import base as recipe_base
from lynx_video.nano.recipe import data
from lynx_video.nano.recipe.speed import autocast, short
from lynx_video.nano.recipe.vae import flat
from lynx_video.types import Example

Kind = Literal["still", "clip", "mixed"]

BLOCK = 32
PORTRAITS = 2
REFERENCE_PROMPT = "image of a face"
FIRST, SPAN = 2**31, 2**24
"where the generators' seeds begin, above those of every other purpose, and how many of them a seed has"
SEEDS = (2**32 - FIRST) // SPAN
"the seeds there are: torch's CPU generator knows 32 bits"
_CLIPS_AT_ONCE, _PORTRAITS_AT_ONCE = 4, 8  # people drawn together: what fits in a core's cache
_STREAMS = {"people": 0, "still": 1, "clip": 2}  # the generators of a block, each with a seed of its own


class Drawn:
    """Training examples without end, of drawn people.

    base: a folder with vae, text_encoder and tokenizer in the diffusers layout. encoder: aligned crops [B, 3, 112, 112] in [-1, 1]
    -> vectors [B, 512] of unit length (`face.embed.load_arcface`). seed: from 0 to 127; each draws people of its own.
    stills_share: the share of stills where stills and clips are mixed, 0 to 1. Raises BadRequest for a seed or share out of range.
    """

    def __init__(self, base: Path, encoder: Callable[[Tensor], Tensor], seed: int, *, stills_share: float) -> None:
        if not 0 <= seed < SEEDS:
            raise BadRequest(f"the seed of drawn examples must be from 0 to {SEEDS - 1}, not {seed}.")
        if not 0 <= stills_share <= 1:
            raise BadRequest(f"stills_share must be from 0 to 1, not {stills_share}.")
        self.seed, self.stills_share = seed, stills_share
        self._encoder = encoder
        self._vae = _fast_vae(base)
        self._text = _Text(base)

    def examples(self, start: int, count: int, kind: Kind = "mixed") -> Iterator[Example]:
        """Examples number `start` to `start + count - 1`.

        Stills and clips are numbered apart: still n and clip n show the same person. "mixed" goes through both, `stills_share` of it
        stills, evenly spread. Ranges that begin and end at multiples of 32 waste nothing. Raises BadRequest past the last example.
        """
        if start < 0 or count < 0 or start + count > SPAN // len(_STREAMS) * BLOCK:
            raise BadRequest(f"there is no range of {count} drawn examples from number {start}.")
        if kind != "mixed":
            yield from self._numbered(start, count, kind)
            return
        before, after = self._stills_before(start), self._stills_before(start + count)
        stills = self._numbered(before, after - before, "still")
        clips = self._numbered(start - before, count - (after - before), "clip")
        for number in range(start, start + count):
            yield next(stills if self._stills_before(number + 1) > self._stills_before(number) else clips)

    def _stills_before(self, number: int) -> int:
        return math.floor(number * self.stills_share)

    def _numbered(self, start: int, count: int, kind: str) -> Iterator[Example]:
        for block in range(start // BLOCK, -(-(start + count) // BLOCK)):
            first = block * BLOCK
            yield from self._block(block, kind)[max(0, start - first) : start + count - first]

    @torch.no_grad()
    def _block(self, block: int, kind: str) -> list[Example]:
        who, rng = faces.people(BLOCK, self._generator(block, "people")), self._generator(block, kind)
        scene, motion, latents = self._clips(who, rng) if kind == "clip" else self._stills(who, rng)
        vectors, references = self._portraits(who, scene, rng)
        numbers = range(block * BLOCK, (block + 1) * BLOCK)
        captions = []
        for row, number in enumerate(numbers):
            words = random.Random(f"{self.seed} {kind} {number}")
            captions.append(caption(scene, row, None if motion is None else int(motion[row]), "", words))
        texts = self._text(captions)
        return [
            Example(
                key=f"{kind}{number:08d}",
                latents=latents[row].clone(),
                frames=model.FRAMES if kind == "clip" else 1,
                height=model.SIZE,
                width=model.SIZE,
                text=texts[row],
                caption=captions[row],
                faces=vectors[row].clone(),
                references=references[row].clone(),
                person=f"p{number:06d}",
                source="drawn",
                sources=("drawn",) * PORTRAITS,
            )
            for row, number in enumerate(numbers)
        ]

    def _generator(self, block: int, stream: str) -> torch.Generator:
        number = block * len(_STREAMS) + _STREAMS[stream]
        return torch.Generator().manual_seed(FIRST + self.seed * SPAN + number)

    def _clips(self, who: People, rng: torch.Generator) -> tuple[Scenes, Tensor, Tensor]:
        scene = faces.scenes(who, rng)
        motion = torch.multinomial(torch.tensor(recipe_base.SHARES), len(who), True, generator=rng)
        frames = []
        for start in range(0, len(who), _CLIPS_AT_ONCE):
            some = slice(start, start + _CLIPS_AT_ONCE)
            part = data.clips(faces.select(who, some), rng, motion=motion[some], scene=faces.select(scene, some))
            frames.append(part.frames)
        return scene, motion, recipe_base.to_latents(self._vae, torch.cat(frames))

    def _stills(self, who: People, rng: torch.Generator) -> tuple[Scenes, None, Tensor]:
        pictures, scene, _ = data.stills(who, rng)
        return scene, None, self._picture_latents(pictures)

    def _portraits(self, who: People, scene: Scenes, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Face vectors [N, P, 512] and latents of reference crops [N, P, C, 1, h, w], each in a scene that is not `scene`."""
        import numpy as np

        from lynx_video.face.align import arcface_crop, reference_crop

        twice = torch.arange(len(who)).repeat_interleave(PORTRAITS)
        sitters, taken = faces.select(who, twice), faces.select(scene, twice)
        places = elsewhere(faces.scenes(sitters, rng), taken)
        pose = faces.poses(len(sitters), rng)
        noise = torch.randn(len(sitters), 5, 2, generator=rng) * 0.7  # a detector is not exact
        points = ((faces.landmarks(sitters, pose) + 1) * data.PORTRAIT / 2 - 0.5 + noise).numpy()
        small, crops = [], []
        for start in range(0, len(sitters), _PORTRAITS_AT_ONCE):
            some = slice(start, start + _PORTRAITS_AT_ONCE)
            drawn = faces.draw(faces.select(sitters, some), faces.select(places, some), faces.select(pose, some), data.PORTRAIT)
            images = (drawn * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
            for image, spots in zip(images, points[some], strict=True):
                small.append(arcface_crop(image, spots))
                crops.append(reference_crop(image, spots, model.REFERENCE))
        with autocast():
            vectors = self._encoder(data.to_signed(torch.tensor(np.stack(small)).permute(0, 3, 1, 2)))
        latents = self._picture_latents(torch.tensor(np.stack(crops)).permute(0, 3, 1, 2))
        return vectors.float().unflatten(0, (-1, PORTRAITS)), latents.unflatten(0, (-1, PORTRAITS))

    def _picture_latents(self, pictures: Tensor) -> Tensor:
        with flat(self._vae):
            return recipe_base.to_latents(self._vae, pictures[:, None])


def elsewhere(scene: Scenes, taken: Scenes) -> Scenes:
    """The scenes, with another shirt where wall and shirt are those of `taken`."""
    same = (scene.wall == taken.wall) & (scene.shirt == taken.shirt)
    return dataclasses.replace(scene, shirt=torch.where(same, (scene.shirt + 1) % len(faces.SHIRTS), scene.shirt))


@torch.no_grad()
def conditions(base: Path) -> dict[str, Tensor]:
    """What stands for a dropped condition, by name: empty_text and reference_text [S, D] bfloat16, with the zeros after their last
    token, and nobody_reference [C, 1, h, w] float16, the latents of an all-grey crop."""
    text, vae = _Text(base), recipe_base.load_vae(base)
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    grey = vae.encode(torch.zeros(1, 3, 1, model.REFERENCE, model.REFERENCE)).latent_dist.mean
    empty, reference = text.padded(["", REFERENCE_PROMPT])[0]
    return {
        "empty_text": empty.clone(),
        "reference_text": reference.clone(),
        "nobody_reference": ((grey - mean) / std)[0].to(torch.float16),
    }


class _Text:
    """Captions to embeddings, many at once."""

    def __init__(self, base: Path) -> None:
        from transformers import AutoTokenizer, UMT5EncoderModel

        self.tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
        self.encoder = UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=torch.bfloat16).eval()

    def __call__(self, texts: list[str]) -> list[Tensor]:
        """Embeddings [S, D] of each, as long as it is."""
        embeddings, lengths = self.padded(texts)
        return [one[:length].clone() for one, length in zip(embeddings, lengths.tolist(), strict=True)]

    def padded(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """Embeddings [B, 48, D], zero after each last token, and the lengths [B]."""
        tokens = self.tokenizer(texts, padding="max_length", max_length=model.TEXT_TOKENS, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask
        hidden = self.encoder(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state
        return hidden * mask[..., None].to(hidden.dtype), mask.sum(1)


def _fast_vae(base: Path) -> Any:
    """The VAE in `short` with its weights laid out channels last: as exact as autocast, and half again as fast on a core."""
    from diffusers import AutoencoderKLWan

    vae = AutoencoderKLWan.from_pretrained(base / "vae", torch_dtype=short()).eval()
    for module in vae.modules():
        if isinstance(module, torch.nn.Conv3d):
            module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last_3d)
    return vae
