"""From a paired item to an example: pixels to latents, caption to embeddings, references to vectors and latents."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from lynx_video.errors import BadRequest, BadWeights
from lynx_video.face.align import reference_crop
from lynx_video.pipeline.condition import REFERENCE_PROMPT, encode_prompt, latent_statistics, reference_latents
from lynx_video.training.dataset.footage import frames_at
from lynx_video.training.dataset.framing import View, cut
from lynx_video.training.dataset.source import Dropped, Item
from lynx_video.training.shards import Conditions
from lynx_video.types import Example
from lynx_video.work import Shelf

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint
    from lynx_video.training.augment import Portrait, Step
    from lynx_video.types import Video

LATENT_DTYPE, TEXT_DTYPE = torch.float16, torch.bfloat16


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """An example to be made. references: keys of scanned items, sources: their files."""

    kind: Literal["clip", "still"]
    item: Item
    view: View
    person: str
    references: tuple[str, ...]
    sources: tuple[str, ...]
    contents: tuple[str, ...]
    "hashes of the files of the item and of the references"

    @property
    def key(self) -> str:
        """The example's key."""
        return f"{self.item.key}-{self.kind}"

    @property
    def stamp(self) -> str:
        """Changes with anything the example is made of."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoders:
    """What turns words and pixels into what the transformer sees; text_tokens: S of the conditions."""

    tokenizer: Any
    text_encoder: Any
    vae: Any
    text_tokens: int
    reference_size: int


def load_encoders(blueprint: Blueprint) -> Encoders:
    """Tokenizer, text encoder and VAE of a model, and not its transformer. Raises BadWeights if one cannot be loaded."""
    from transformers import AutoTokenizer, UMT5EncoderModel

    base = blueprint.base_name
    try:
        tokenizer = AutoTokenizer.from_pretrained(base, subfolder="tokenizer")
        text_encoder = UMT5EncoderModel.from_pretrained(base, subfolder="text_encoder", dtype=blueprint.dtype)
    except (OSError, ValueError, KeyError) as error:
        raise BadWeights(f"{base}: the text encoder can't be loaded ({error}); download the base again.") from error
    return Encoders(
        tokenizer=tokenizer,
        text_encoder=text_encoder.eval().requires_grad_(False).to(blueprint.device),
        vae=load_vae(blueprint),
        text_tokens=blueprint.defaults.max_sequence_length,
        reference_size=blueprint.defaults.reference_size,
    )


def load_vae(blueprint: Blueprint) -> Any:
    """The VAE of a model. Raises BadWeights if it cannot be loaded."""
    from diffusers import AutoencoderKLWan

    # half precision overflows in the VAE
    dtype = torch.float32 if blueprint.dtype == torch.float16 else blueprint.dtype
    try:
        vae = AutoencoderKLWan.from_pretrained(blueprint.base_name, subfolder="vae", torch_dtype=dtype)
    except (OSError, ValueError, KeyError) as error:
        raise BadWeights(f"{blueprint.base_name}: the VAE can't be loaded ({error}); download the base again.") from error
    return vae.eval().requires_grad_(False).to(blueprint.device)


class Encoder:
    """Makes examples. root: where the items' files are; scans: what was found in them; steps: changes to reference pictures."""

    def __init__(self, encoders: Encoders, root: Path, scans: Shelf, steps: Sequence[Step], seed: int) -> None:
        self.encoders, self.root, self.scans, self.steps, self.seed = encoders, root, scans, steps, seed
        self._embeddings = functools.lru_cache(maxsize=256)(self._embed)

    def __call__(self, job: Job) -> Example:
        """The example of a job. Raises Dropped if its file cannot be read any more."""
        latents = encode_frames(self.encoders.vae, self._frames(job))
        text = trim_text(self._embeddings(job.item.caption or ""))
        faces, references = zip(*(self._reference(job.key, n, key) for n, key in enumerate(job.references)), strict=True)
        frames, height, width = job.view.bucket
        return Example(
            key=job.key,
            latents=latents,
            frames=frames,
            height=height,
            width=width,
            text=text.clone(),
            caption=job.item.caption or "",
            faces=torch.stack(faces),
            references=torch.stack(references),
            person=job.person,
            source=job.item.file,
            sources=job.sources,
        )

    def conditions(self) -> Conditions:
        """What stands in the place of conditions that are dropped."""
        nobody = reference_latents(self.encoders.vae, None, self.encoders.reference_size, self.seed)[0]
        return Conditions(
            empty_text=self._embeddings(""),
            reference_text=self._embeddings(REFERENCE_PROMPT),
            nobody_reference=nobody.to(LATENT_DTYPE).cpu(),
        )

    def _embed(self, caption: str) -> Tensor:
        """[S, D] with zeros after the last token."""
        encoders = self.encoders
        hidden = encode_prompt(encoders.tokenizer, encoders.text_encoder, caption, encoders.text_tokens)
        return hidden[0].to(TEXT_DTYPE).cpu()

    def _frames(self, job: Job) -> Video:
        file = self.root / job.item.file
        try:
            if job.view.times:
                return np.stack([cut(picture, job.view) for picture in frames_at(file, job.view.times)])
            from lynx_video.media.image import read_picture

            return cut(read_picture(file), job.view)[None]
        except BadRequest as error:
            raise Dropped("unreadable", " ".join(str(error).replace(f"{self.root}/", "").split())) from error

    def _reference(self, example: str, number: int, key: str) -> tuple[Tensor, Tensor]:
        """The vector [512] of a reference as it is, and the latents [C, 1, h, w] of its crop after the steps."""
        from lynx_video.training.augment import Portrait, augment

        found = self.scans.tensors(key, "vector", "portrait", "points")
        portrait: Portrait = Portrait(picture=found["portrait"].numpy(), points=found["points"].numpy())
        draw = int.from_bytes(hashlib.sha256(f"{self.seed}/{example}/{number}".encode()).digest()[:7], "big")
        portrait = augment(portrait, self.steps, np.random.default_rng(draw))
        size = self.encoders.reference_size
        latents = reference_latents(self.encoders.vae, reference_crop(portrait.picture, portrait.points, size), size, draw)
        return found["vector"], latents[0].to(LATENT_DTYPE).cpu()


@torch.no_grad()
def encode_frames(vae: Any, frames: Video) -> Tensor:
    """uint8 [F, H, W, 3] -> the VAE's mean, normalised, float16 [C, T, h, w]."""
    parameter = next(vae.parameters())
    pixels = (torch.tensor(frames).permute(3, 0, 1, 2).float() / 127.5 - 1)[None]
    raw = vae.encode(pixels.to(parameter.device, parameter.dtype)).latent_dist.mean
    mean, std = latent_statistics(vae, raw.device)
    latents: Tensor = ((raw.float() - mean) / std)[0].to(LATENT_DTYPE).cpu()
    return latents


def trim_text(embeddings: Tensor) -> Tensor:
    """Embeddings [S, D] without the zeros after the last token; at least one row."""
    real = embeddings.float().abs().amax(dim=1).nonzero()
    return embeddings[: int(real[-1]) + 1 if len(real) else 1]


_WORDS = ("key", "frames", "height", "width", "caption", "person", "source", "sources")
_TENSORS = ("latents", "text", "faces", "references")


def pack_example(example: Example) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An example as it is kept in the work folder: words, tensors."""
    words = {name: getattr(example, name) for name in _WORDS}
    return {"example": words}, {name: getattr(example, name) for name in _TENSORS}


def read_example(shelf: Shelf, key: str, stamp: str) -> Example:
    """An example that was kept."""
    value = shelf.value(key, stamp)
    assert value is not None
    words, tensors = value["example"], shelf.tensors(key, *_TENSORS)
    return Example(**{**words, "sources": tuple(words["sources"]), **tensors})
