"""From portraits to an Identity: read, find the face, crop, embed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from lynx_video.errors import BadRequest
from lynx_video.face.align import arcface_crop, reference_crop
from lynx_video.face.record import FaceRecord
from lynx_video.types import Face, Identity

if TYPE_CHECKING:
    from lynx_video.pipeline.models import FaceModels
    from lynx_video.types import Picture, Points


class Sitter(NamedTuple):
    """A person as found in a portrait: the identity, the face it came from (None with a record) and what to warn of."""

    identity: Identity
    face: Face | None
    warnings: list[str]


def identify(
    faces: FaceModels,
    portrait: str | Path | Picture,
    *,
    reference_size: int = 256,
    face_index: int | None = None,
    record: FaceRecord | None = None,
    consent: str = "",
) -> Sitter:
    """The person in a portrait (a path, or uint8 [H, W, 3] RGB).

    record: points and embedding that replace detection and encoding; no face model is loaded then. Raises BadPicture, NoFace, or
    BadRequest for a face index that does not exist.
    """
    from lynx_video.face.detect import choose_face, find_faces
    from lynx_video.face.embed import embed_crop, encoder_hash
    from lynx_video.face.quality import face_warnings
    from lynx_video.media.image import file_hash, pixels_hash, read_picture

    if isinstance(portrait, (str, Path)):
        picture, portrait_hash = read_picture(portrait), file_hash(portrait)
    else:
        picture, portrait_hash = portrait, pixels_hash(portrait)
    face, warnings = None, []
    points: Points
    if record is not None:
        points, embedding, encoder = record.points, torch.tensor(record.embedding), "record"
        aligned = arcface_crop(picture, points)
    else:
        found = find_faces(picture, faces.detector())
        face = choose_face(found, face_index)
        warnings = face_warnings(picture, face)
        points = face.points
        aligned = arcface_crop(picture, points)
        embedding, encoder = embed_crop(faces.encoder(), aligned), encoder_hash(faces.encoder())
    identity = Identity(
        embedding=embedding,
        crop=reference_crop(picture, points, reference_size),
        aligned=aligned,
        portrait_hash=portrait_hash,
        consent=consent,
        encoder=encoder,
    )
    return Sitter(identity, face, warnings)


def merge(identities: Sequence[Identity]) -> Identity:
    """One person from several photos: the mean of the embeddings, at unit length; the crops of the first."""
    if not identities:
        raise BadRequest("at least one portrait is needed.")
    first = identities[0]
    mean = torch.stack([one.embedding for one in identities]).mean(0)
    return Identity(
        embedding=mean / mean.norm(),
        crop=first.crop,
        aligned=first.aligned,
        portrait_hash="+".join(one.portrait_hash for one in identities),
        consent=first.consent,
        encoder=first.encoder if all(one.encoder == first.encoder for one in identities) else "",
    )
