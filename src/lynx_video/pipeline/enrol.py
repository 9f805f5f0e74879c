"""The identity file: a person enrolled once, with the memories for a named base and adapter, in one safetensors file.

With it a generation needs no face model and no adapter weights. The reference latent is its mean, so it serves every seed.
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lynx_video.adapters.memory import Memory
from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadRequest, BadWeights, LynxWarning
from lynx_video.face.align import ARCFACE_SIZE
from lynx_video.types import FACE_WIDTH, Identity

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint, Components

FORMAT = "lynx-video identity 1"


@dataclass(frozen=True, kw_only=True, slots=True)
class Enrolment:
    """An identity and what it was enrolled for. memories: of "person" and "nobody"."""

    identity: Identity
    memories: dict[str, Memory]
    base_name: str
    base_hash: str
    adapter_hash: str
    arm: str


def enrol(components: Components, identity: Identity, *, idle_models: str = "keep") -> Enrolment:
    """Project an identity for the loaded base and adapter. idle_models: as in GenerateConfig.

    Raises BadRequest for a base of two experts: a file holds the memories of one transformer.
    """
    from lynx_video.pipeline.memories import remember

    if len(components.adapters) > 1:
        raise BadRequest(
            "an identity file holds the memories of one transformer, this base has two: generate from the portrait."
        )
    memories = remember(components, identity, reference_seed=None, idle_models=idle_models)
    return Enrolment(
        identity=identity,
        memories=memories[0],
        base_name=components.base_name,
        base_hash=components.base_hash,
        adapter_hash=components.adapter_hash,
        arm=components.arm,
    )


def save_enrolment(path: str | Path, enrolment: Enrolment) -> None:
    """Write an identity file beside its place, then rename it there. Raises BadOutput if it cannot be written."""
    from safetensors.torch import save

    identity = enrolment.identity
    tensors = {"embedding": identity.embedding.float().contiguous()}
    for name in ("crop", "aligned"):
        if (picture := getattr(identity, name)) is not None:
            tensors[name] = torch.tensor(picture)
    for who, memory in enrolment.memories.items():
        tensors |= {f"{who}.{name}": tensor.cpu() for name, tensor in memory.tensors().items()}
    about = {
        "format": FORMAT,
        "base_name": enrolment.base_name,
        "base_hash": enrolment.base_hash,
        "adapter_hash": enrolment.adapter_hash,
        "arm": enrolment.arm,
        "portrait_hash": identity.portrait_hash,
        "consent": identity.consent,
        "encoder": identity.encoder,
        "blocks": _blocks(enrolment.memories["person"]),
    }
    try:
        with draft(Path(path)) as partial:
            partial.write_bytes(save(tensors, metadata={"lynx_video": json.dumps(about)}))
    except OSError as error:
        raise BadOutput(f"{path}: cannot be written ({error.strerror or error}).") from error


def load_enrolment(path: str | Path) -> Enrolment:
    """Read an identity file. Raises BadWeights for one that is missing, cut or no identity file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise BadWeights(f"{path} is not there; `lynx-video enroll PORTRAIT -o {path.name}` writes an identity file.")
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("lynx_video", "{}"))
            if not isinstance(about, dict) or about.get("format") != FORMAT:
                raise BadWeights(f"{path} is a safetensors file but no identity file; `lynx-video enroll` writes one.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return _enrolment(about, tensors)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if isinstance(error, BadWeights):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise BadWeights(f"{path} is not a complete identity file ({what}); enroll the portrait again.") from error


def _blocks(memory: Memory) -> dict[str, list[int]]:
    return {"identity": sorted(memory.identity), "reference": sorted(memory.reference)}


def _check(about: dict[str, Any], tensors: dict[str, torch.Tensor], memories: dict[str, Memory]) -> None:
    """Raises ValueError for texts, pictures, an embedding or memories that cannot be those of one person."""
    for name in ("base_name", "base_hash", "adapter_hash", "arm", "portrait_hash", "consent"):
        if not isinstance(about[name], str):
            raise ValueError(f"{name} is no text")
    embedding = tensors["embedding"]
    if embedding.shape != (FACE_WIDTH,) or not embedding.is_floating_point() or not bool(embedding.isfinite().all()):
        raise ValueError(f"embedding is {embedding.dtype} {list(embedding.shape)}, expected {FACE_WIDTH} finite numbers")
    for name in ("crop", "aligned"):
        if name in tensors:
            size = ARCFACE_SIZE if name == "aligned" else (*tensors[name].shape, 0)[0]
            if tensors[name].dtype != torch.uint8 or tensors[name].shape != (size, size, 3):
                raise ValueError(f"{name} is {tensors[name].dtype} {list(tensors[name].shape)}, expected a square picture")
    person, nobody = (memories[who].tensors() for who in ("person", "nobody"))
    if not person or not nobody:
        raise ValueError(f"the memories of {'nobody' if person else 'person'} are missing")
    if {name: tensor.shape for name, tensor in person.items()} != {name: tensor.shape for name, tensor in nobody.items()}:
        raise ValueError("the memories of person and nobody differ in their blocks or shapes")
    for part in (memories["person"].identity, memories["person"].reference):
        shapes = {pair.key.shape for pair in part.values()} | {pair.value.shape for pair in part.values()}
        if len(shapes) > 1 or any(len(shape) != 4 or shape[0] != 1 for shape in shapes):
            raise ValueError(
                f"the memories have shapes {[list(shape) for shape in shapes]}, expected one [1, tokens, heads, width]"
            )
    if "blocks" in about and about["blocks"] != _blocks(memories["person"]):
        raise ValueError("the memories of some blocks are missing")


def _enrolment(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Enrolment:
    stored: dict[str, dict[str, torch.Tensor]] = {"person": {}, "nobody": {}}
    for key, tensor in tensors.items():
        who, _, name = key.partition(".")
        if who in stored:
            stored[who][name] = tensor
    memories = {who: Memory.from_tensors(found) for who, found in stored.items()}
    _check(about, tensors, memories)
    identity = Identity(
        embedding=tensors["embedding"],
        crop=tensors["crop"].numpy() if "crop" in tensors else None,
        aligned=tensors["aligned"].numpy() if "aligned" in tensors else None,
        portrait_hash=about["portrait_hash"],
        consent=about["consent"],
        encoder=str(about.get("encoder", "")),
    )
    return Enrolment(
        identity=identity,
        memories=memories,
        base_name=about["base_name"],
        base_hash=about["base_hash"],
        adapter_hash=about["adapter_hash"],
        arm=about["arm"],
    )


def usable_memories(components: Components | Blueprint, enrolment: Enrolment) -> dict[str, Memory] | None:
    """The file's memories if they fit the loaded models; None if they must be computed anew from the crops.

    Raises BadRequest where neither can be done, BadWeights for memories that cannot be this base's.
    """
    same_base = enrolment.base_hash == components.base_hash
    has_weights = bool(components.adapter_hash)
    if same_base and (not has_weights or enrolment.adapter_hash == components.adapter_hash):
        _check_shapes(components, enrolment)
        return enrolment.memories
    if has_weights and enrolment.identity.aligned is not None and enrolment.identity.crop is not None:
        return None
    what = "adapter" if same_base else "base"
    raise BadRequest(
        f"the identity was enrolled for another {what} ({enrolment.base_name}): name the adapter's files with --adapter-path so that "
        f"it can be projected again, or enroll the portrait for {components.base_name}."
    )


def reprojected(components: Components, identity: Identity) -> Identity:
    """The identity of a file as the adapter at hand needs it: its embedding, or one anew if another face encoder made that one.

    Warns if the embedding is taken anew: it is then that of the aligned crop, the first photo's, alone.
    """
    from lynx_video.face.embed import embed_crop, encoder_hash

    encoder = components.faces.encoder()
    if identity.encoder and identity.encoder == encoder_hash(encoder):
        return identity
    assert identity.aligned is not None, "usable_memories has looked"
    warnings.warn(
        "the identity file's embedding comes from "
        + (
            "a face record"
            if identity.encoder == "record"
            else "another face encoder"
            if identity.encoder
            else "an unknown encoder"
        )
        + " and from another base: it was taken anew from the file's first photo; enroll the portraits again to use all of them.",
        LynxWarning,
        stacklevel=2,
    )
    return replace(identity, embedding=embed_crop(encoder, identity.aligned), encoder=encoder_hash(encoder))


def _check_shapes(components: Components | Blueprint, enrolment: Enrolment) -> None:
    shape = components.shape
    for memory in enrolment.memories.values():
        for blocks in (memory.identity, memory.reference):
            for block, pair in blocks.items():
                if not 0 <= block < shape.blocks or pair.key.shape[2:] != (shape.heads, shape.width // shape.heads):
                    raise BadWeights(
                        f"the identity's memory of block {block} is {list(pair.key.shape)}; {components.base_name} has "
                        f"{shape.blocks} blocks of {shape.heads} heads of {shape.width // shape.heads}: enroll the portrait again."
                    )
