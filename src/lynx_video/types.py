"""The values that travel between the layers, and the letters used for shapes.

    B batch     C channels   F frames        H W pixels       T h w latent frames, rows, columns
    L video tokens   S text tokens   I identity tokens   R reference tokens
    D width     N heads      K head width    E face vector (512)

As suffixes they name the layout of a local tensor: `query_BLNK`. Pictures outside the model are uint8 RGB [H, W, 3], videos
[F, H, W, 3]; inside they are float [B, C, F, H, W] in [-1, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

FACE_WIDTH = 512  # E, the length of a face vector

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Picture = NDArray[np.uint8]  # [H, W, 3] RGB
    Video = NDArray[np.uint8]  # [F, H, W, 3] RGB
    Points = NDArray[np.float32]  # [5, 2] x, y in pixels: left eye, right eye, nose, left and right mouth corner


@dataclass(frozen=True, kw_only=True, slots=True)
class Face:
    """One detected face.

    box: left, top, right, bottom in pixels of the picture it was found in (may lie partly outside).
    points: float32 [5, 2], x and y in pixels: left eye, right eye, nose, left and right mouth corner (as the viewer sees them).
    score: the detector's confidence, 0 to 1.
    """

    box: tuple[float, float, float, float]
    points: Points
    score: float

    @property
    def size(self) -> float:
        """Area of the box in square pixels."""
        return max(0.0, self.box[2] - self.box[0]) * max(0.0, self.box[3] - self.box[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """Who: everything the adapters need to know of one person.

    embedding: float32 [512] of unit length, from the face encoder the adapter was trained with.
    crop: uint8 [S, S, 3] RGB, the aligned reference crop (S = 256 for the official adapters), or None.
    aligned: uint8 [112, 112, 3] RGB, the crop that face encoders and judges see, or None.
    portrait_hash: sha256 of the portrait file(s), hex; empty if unknown.
    consent: free text: who agreed to the use of this face, and how.
    encoder: what the embedding comes from: the hash of a face encoder's weights, "record" for a face record; empty if unknown.
    """

    embedding: Tensor
    crop: Picture | None = None
    aligned: Picture | None = None
    portrait_hash: str = ""
    consent: str = ""
    encoder: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """A finished video and how it came about.

    frames: uint8 [F, H, W, 3] RGB. fps: frames per second.
    initial_latents, latents: float32 [1, C, T, h, w], the noise it started from and the final latents as the transformer sees them.
    settings: everything needed to make it again (plain JSON values).
    similarity: cosine of the clip's faces to the portrait by a recogniser the model was not conditioned on, or None.
    coverage: the share of frames in which a face was found, 0 to 1, or None if nobody looked.
    """

    frames: Video
    fps: float
    initial_latents: Tensor
    latents: Tensor
    seed: int
    seconds: float
    settings: dict[str, Any] = field(default_factory=dict)
    similarity: float | None = None
    coverage: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    """One thing to learn from: a clip (or a still, one frame), what it shows, and other pictures of the person in it.

    latents: [C, T, h, w], the VAE's mean, normalised as the transformer sees it. frames, height, width: the pixels they stand for.
    text: embeddings [S, D] of the caption, without the zeros after its last token. caption: the text itself.
    faces: float32 [P, 512] of unit length and references: [P, C, 1, h, w], normalised latents of the reference crops: P other
    pictures of the same person, in the same order. sources: where each of these P comes from.
    person: who, as the set that holds the example names people. source: the file the target comes from.
    """

    key: str
    latents: Tensor
    frames: int
    height: int
    width: int
    text: Tensor
    caption: str
    faces: Tensor
    references: Tensor
    person: str
    source: str
    sources: tuple[str, ...] = ()
