"""The identity file: a person enrolled once, with the memories for a named base and adapter, in one safetensors file.

With it a generation needs no face model and no adapter weights. The reference latent is its mean, so it serves every seed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lynx_video.adapters.memory import Memory
from lynx_video.errors import BadRequest, BadWeights
from lynx_video.types import Identity

if TYPE_CHECKING:
    from lynx_video.pipeline.load import Blueprint, Components

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


def enrol(components: Components, identity: Identity) -> Enrolment:
    """Project an identity for the loaded base and adapter."""
    from lynx_video.pipeline.generate import remember

    return Enrolment(
        identity=identity,
        memories=remember(components, identity, reference_seed=None),
        base_name=components.base_name,
        base_hash=components.base_hash,
        adapter_hash=components.adapter_hash,
        arm=components.arm,
    )


def save_enrolment(path: str | Path, enrolment: Enrolment) -> None:
    """Write an identity file beside its place, then rename it there."""
    from safetensors.torch import save

    from lynx_video.media.draft import draft

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
    }
    with draft(Path(path)) as partial:
        partial.write_bytes(save(tensors, metadata={"lynx_video": json.dumps(about)}))


def load_enrolment(path: str | Path) -> Enrolment:
    """Read an identity file. Raises BadWeights for one that is missing, cut or no identity file."""
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise BadWeights(f"{path} is not there; `lynx-video enroll PORTRAIT -o {path.name}` writes an identity file.")
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads((file.metadata() or {}).get("lynx_video", "{}"))
            if about.get("format") != FORMAT:
                raise BadWeights(f"{path} is a safetensors file but no identity file; `lynx-video enroll` writes one.")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        return _enrolment(about, tensors)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        if isinstance(error, BadWeights):
            raise
        what = f"{error} is missing" if isinstance(error, KeyError) else error
        raise BadWeights(f"{path} is not a complete identity file ({what}); enroll the portrait again.") from error


def _enrolment(about: dict[str, Any], tensors: dict[str, torch.Tensor]) -> Enrolment:
    memories: dict[str, dict[str, torch.Tensor]] = {"person": {}, "nobody": {}}
    for key, tensor in tensors.items():
        who, _, name = key.partition(".")
        if who in memories:
            memories[who][name] = tensor
    identity = Identity(
        embedding=tensors["embedding"],
        crop=tensors["crop"].numpy() if "crop" in tensors else None,
        aligned=tensors["aligned"].numpy() if "aligned" in tensors else None,
        portrait_hash=about["portrait_hash"],
        consent=about["consent"],
    )
    return Enrolment(
        identity=identity,
        memories={who: Memory.from_tensors(found) for who, found in memories.items()},
        base_name=about["base_name"],
        base_hash=about["base_hash"],
        adapter_hash=about["adapter_hash"],
        arm=about["arm"],
    )


def usable_memories(components: Components | Blueprint, enrolment: Enrolment) -> dict[str, Memory] | None:
    """The file's memories if they fit the loaded models; None if they must be computed anew from the crops.

    Raises BadRequest where neither can be done.
    """
    same_base = enrolment.base_hash == components.base_hash
    has_weights = bool(components.adapter_hash)
    if same_base and (not has_weights or enrolment.adapter_hash == components.adapter_hash):
        return enrolment.memories
    if has_weights and enrolment.identity.aligned is not None and enrolment.identity.crop is not None:
        return None
    what = "adapter" if same_base else "base"
    raise BadRequest(
        f"the identity was enrolled for another {what} ({enrolment.base_name}): name the adapter's files with --adapter-path so that "
        f"it can be projected again, or enroll the portrait for {components.base_name}."
    )
