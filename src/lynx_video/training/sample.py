"""One training sample, and several of them as the pack that one forward takes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lynx_video import flow
from lynx_video.errors import BadRequest
from lynx_video.types import FACE_WIDTH


@dataclass(frozen=True, slots=True)
class Sample:
    """A clean latent, its noise, and the conditions it is predicted under.

    latents, noise: [C, T, h, w], a still has T = 1. text: [S, D] prompt embeddings. face: [512], zeros are the unconditional
    identity, None leaves the identity term out. reference: [C, 1, h, w], latents of the reference crop, None leaves the reference
    term out. reference_text: [S, D] embeddings of the reference prompt, needed with `reference`. identity_scale, reference_scale:
    weights of the two terms, 1 as used; 0 is the same as leaving the term out, at the same shapes (a compiled block stays as it is).
    Raises BadRequest for shapes that cannot be.
    """

    latents: Tensor
    noise: Tensor
    text: Tensor
    face: Tensor | None = None
    reference: Tensor | None = None
    reference_text: Tensor | None = None
    identity_scale: float = 1.0
    reference_scale: float = 1.0

    def __post_init__(self) -> None:
        if self.latents.ndim != 4 or self.noise.shape != self.latents.shape:
            raise BadRequest(
                f"a sample needs latents [C, T, h, w] and noise of the same shape, got {list(self.latents.shape)} and "
                f"{list(self.noise.shape)}."
            )
        if self.text.ndim != 2:
            raise BadRequest(f"a sample's text is [S, D], got {list(self.text.shape)}.")
        if self.face is not None and self.face.shape != (FACE_WIDTH,):
            raise BadRequest(f"a sample's face is [{FACE_WIDTH}], got {list(self.face.shape)}.")
        if self.reference is None:
            return
        if self.reference.ndim != 4 or self.reference.shape[1] != 1:
            raise BadRequest(f"a sample's reference is [C, 1, h, w], got {list(self.reference.shape)}.")
        if self.reference_text is None or self.reference_text.ndim != 2:
            raise BadRequest("a sample with a reference needs reference_text [S, D], the embeddings of the reference prompt.")


@dataclass(frozen=True, kw_only=True, slots=True)
class Pack:
    """Samples as the model sees them. Lists have an entry a sample; None where a sample goes without.

    noisy: [C, T, h, w] each. timesteps: [1] shared by the pack, or [n], 0 to 1000. identity_scales, reference_scales: [n].
    """

    noisy: list[Tensor]
    timesteps: Tensor
    texts: list[Tensor]
    faces: list[Tensor | None]
    references: list[Tensor | None]
    reference_texts: list[Tensor | None]
    identity_scales: Tensor
    reference_scales: Tensor

    @staticmethod
    def of(samples: Sequence[Sample], timesteps: Tensor, device: torch.device, dtype: torch.dtype) -> Pack:
        """Noise the samples to `timesteps` (float32 [1] or [n], 0 to 1000) and bring them to the model's device and dtype."""
        if not samples:
            raise BadRequest("a pack needs at least one sample.")
        if timesteps.shape not in ((1,), (len(samples),)):
            raise BadRequest(
                f"a pack of {len(samples)} samples needs 1 or {len(samples)} timesteps, got {list(timesteps.shape)}."
            )
        if not bool(((timesteps >= 0) & (timesteps <= flow.TIMESTEPS)).all()):
            raise BadRequest(f"timesteps are 0 to {flow.TIMESTEPS}, got {timesteps.tolist()}.")

        def there(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device, dtype)

        sigmas = (timesteps.float() / flow.TIMESTEPS).expand(len(samples))
        return Pack(
            noisy=[
                flow.interpolate(one.latents.float(), one.noise.float(), sigma).to(device, dtype)
                for one, sigma in zip(samples, sigmas, strict=True)
            ],
            timesteps=timesteps.float().to(device),
            texts=[one.text.to(device, dtype) for one in samples],
            faces=[None if one.face is None else one.face.float().to(device) for one in samples],
            references=[there(one.reference) for one in samples],
            reference_texts=[there(one.reference_text) if one.reference is not None else None for one in samples],
            identity_scales=torch.tensor([one.identity_scale for one in samples], dtype=dtype).to(device),
            reference_scales=torch.tensor([one.reference_scale for one in samples], dtype=dtype).to(device),
        )


def runs(values: Sequence[object]) -> Iterator[slice]:
    """Slices of consecutive equal values, in order: what can be computed as one batch."""
    start = 0
    for i in range(1, len(values) + 1):
        if i == len(values) or values[i] != values[start]:
            yield slice(start, i)
            start = i
