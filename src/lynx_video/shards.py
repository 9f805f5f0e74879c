"""safetensors shards from float32 to bfloat16, one at a time: half the disk, and never more than one shard in memory.

What diffusers and transformers may keep in float32 stays float32, so a model loaded in bfloat16 from the converted files is
equal, bit for bit, to one loaded in bfloat16 from the originals, and in float16 what they keep is still whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lynx_video.errors import BadWeights

KEEP_FLOAT32 = ("rope", "time_embedder", "scale_shift_table", "norm1", "norm2", "norm3", "wo")
"""Parts of a parameter's name: `_keep_in_fp32_modules` of WanTransformer3DModel and of UMT5EncoderModel (`wo`); tests hold them
together."""


def to_bfloat16(source: Path, target: Path) -> bool:
    """Write `source` with its float32 tensors as bfloat16 to `target`, those of KEEP_FLOAT32 aside.

    The file appears under its name when it is whole. False, and nothing written, if there is nothing to convert.

    Raises:
        BadWeights: `source` is not a whole safetensors file.
    """
    import torch
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    beside = target.with_name(f".{target.name}.bf16.part")
    try:
        with safe_open(source, framework="pt") as shard:
            names = list(shard.keys())
            if not any(shard.get_slice(name).get_dtype() == "F32" and not _kept(name) for name in names):
                return False
            tensors = {}
            for name in names:
                tensor = shard.get_tensor(name)
                convert = tensor.dtype == torch.float32 and not _kept(name)
                tensors[name] = tensor.to(torch.bfloat16) if convert else tensor
            save_file(tensors, beside, metadata=shard.metadata())
            del tensors
        beside.replace(target)
    except SafetensorError as error:
        raise BadWeights(f"{source}: not a whole safetensors file ({error}).") from error
    finally:
        beside.unlink(missing_ok=True)
    return True


def update_index(index: Path) -> bool:
    """Set `total_size` of a `*.safetensors.index.json` to the bytes its shards hold now; whether it changed.

    Raises:
        BadWeights: the index is not readable, or a shard it names is missing or cut.
    """
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = sorted(set(content["weight_map"].values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{index}: not an index of safetensors shards ({error}).") from error
    total = sum(tensor_bytes(index.with_name(shard)) for shard in shards)
    content["metadata"] = content.get("metadata") or {}
    if content["metadata"].get("total_size") == total:
        return False
    content["metadata"]["total_size"] = total
    beside = index.with_name(f".{index.name}.part")
    try:
        beside.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        beside.replace(index)
    finally:
        beside.unlink(missing_ok=True)
    return True


def tensor_bytes(file: Path) -> int:
    """Bytes of all tensors in a safetensors file, from its header alone.

    Raises:
        BadWeights: missing, or not a safetensors file.
    """
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            if not 0 < length <= file.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            header: dict[str, Any] = json.loads(stream.read(length))
        return sum(
            entry["data_offsets"][1] - entry["data_offsets"][0] for name, entry in header.items() if name != "__metadata__"
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BadWeights(f"{file}: not a whole safetensors file ({error}).") from error


def _kept(name: str) -> bool:
    """diffusers and transformers match whole parts of the dotted name, not substrings."""
    return any(part in KEEP_FLOAT32 for part in name.split("."))
