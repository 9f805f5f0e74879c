"""Official adapter files <-> our parameter names, as a table; what is there is read from headers and checked before anything is loaded.

Official layout: `resampler`, `ip_layers` and (full only) `ref_layers` `.safetensors`. The repacked names `blocks.N.cross_attn.
ip_adapter.*` and `blocks.N.self_attn.ref_adapter.*` are understood too, whatever the files are called: there N is the block
number, while the official lite file counts entries (entry i belongs to block 2i).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lynx_video.adapters.attach import Adapter, AdapterConfig
from lynx_video.adapters.projection import ProjectionConfig
from lynx_video.adapters.resampler import ResamplerConfig
from lynx_video.draft import draft
from lynx_video.errors import BadWeights
from lynx_video.types import FACE_WIDTH

if TYPE_CHECKING:
    import torch
    from torch import nn

OFFICIAL_FILES = {
    "resampler": "resampler.safetensors",
    "identity": "ip_layers.safetensors",
    "reference": "ref_layers.safetensors",
}
# (part, official name within its file, our name); {e} is the entry in the official file, {b} the block
_TABLE = (
    ("identity", "{e}.to_k_ip.weight", "identity.{b}.to_k.weight"),
    ("identity", "{e}.to_k_ip.bias", "identity.{b}.to_k.bias"),
    ("identity", "{e}.to_v_ip.weight", "identity.{b}.to_v.weight"),
    ("identity", "{e}.to_v_ip.bias", "identity.{b}.to_v.bias"),
    ("identity", "{e}.registers", "identity.{b}.registers"),
    ("reference", "{e}.to_k_ref.weight", "reference.{b}.to_k.weight"),
    ("reference", "{e}.to_k_ref.bias", "reference.{b}.to_k.bias"),
    ("reference", "{e}.to_v_ref.weight", "reference.{b}.to_v.weight"),
    ("reference", "{e}.to_v_ref.bias", "reference.{b}.to_v.bias"),
)
_ENTRY = re.compile(r"^(\d+)\.((?:to_[kv]_(?:ip|ref)\.(?:weight|bias))|registers)$")
_REPACKED = re.compile(r"^blocks\.(\d+)\.(cross_attn\.ip_adapter|self_attn\.ref_adapter)\.(.+)$")
_RESAMPLER = re.compile(r"^(latents|proj_in\.|proj_out\.|norm_out\.|layers\.\d)")


@dataclass(frozen=True, kw_only=True, slots=True)
class BaseShape:
    """What an adapter must know of its base: width D, heads N, number of blocks."""

    width: int
    heads: int
    blocks: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Stored:
    """One tensor in a file."""

    file: Path
    key: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.key}"


@dataclass(frozen=True, kw_only=True, slots=True)
class AdapterFiles:
    """A checked set of files: the adapter they make, and where each of our parameters is stored."""

    config: AdapterConfig
    arm: str
    "full or lite: how the identity part is built; a reference part alone is full"
    tensors: dict[str, Stored]

    @property
    def files(self) -> tuple[Path, ...]:
        """The files the adapter is read from, in a fixed order."""
        return tuple(sorted({stored.file for stored in self.tensors.values()}))


def inspect(paths: Sequence[Path], base: BaseShape, parts: frozenset[str] | None = None) -> AdapterFiles:
    """Recognise and check the adapter in `paths` (folders or safetensors files) against a base, from file headers alone.

    parts: {"identity"}, {"reference"} or both; None: what the arm consists of (full: both; lite: identity, and a reference part
    if one is given). Raises BadWeights naming file and key.
    """
    found = _collect(paths)
    where = ", ".join(str(path) for path in paths)
    wanted = parts if parts is not None else _parts_of(found)
    if not wanted:
        raise BadWeights(f"{where}: no adapter weights found; expected {', '.join(OFFICIAL_FILES.values())}.")
    tensors: dict[str, Stored] = {}
    arm, resampler, identity = "full", None, None
    identity_blocks: tuple[int, ...] = ()
    if "identity" in wanted:
        for part in ("resampler", "identity"):
            if not found.get(part):
                raise _absent(part, where)
        resampler = _check_resampler(found["resampler"], tensors)
        arm = _arm(found["identity"])
        identity, identity_blocks = _check_identity(found["identity"], arm, resampler, base, tensors)
    reference_blocks: tuple[int, ...] = ()
    if "reference" in wanted:
        if not found.get("reference"):
            raise _absent("reference", where)
        reference_blocks = tuple(range(base.blocks))
        _check_reference(found["reference"], base, tensors)
    config = AdapterConfig(
        width=base.width,
        heads=base.heads,
        resampler=resampler,
        identity=identity,
        identity_blocks=identity_blocks,
        reference_blocks=reference_blocks,
    )
    return AdapterFiles(config=config, arm=arm, tensors=tensors)


def load_adapter(files: AdapterFiles, *, dtype: torch.dtype, device: str | torch.device = "cpu") -> Adapter:
    """The adapter of a checked set of files, on `device` in `dtype`, in evaluation mode, frozen."""
    import torch

    with torch.device("meta"):
        adapter = Adapter(files.config)
    by_file: dict[Path, list[tuple[str, str]]] = {}
    for name, stored in files.tensors.items():
        by_file.setdefault(stored.file, []).append((name, stored.key))
    state: dict[str, torch.Tensor] = {}
    for file, names in by_file.items():
        for name, tensor in _read(file, names):
            state[name] = tensor.to(device, dtype)
    adapter.load_state_dict(state, strict=True, assign=True)
    return adapter.requires_grad_(False).eval()


def _read(file: Path, names: Sequence[tuple[str, str]]) -> Iterator[tuple[str, torch.Tensor]]:
    """Each name with the tensor of its key, in host memory. Raises BadWeights; a lack of memory comes through as it is."""
    import torch
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            for name, key in names:
                yield name, tensors.get_tensor(key)
    except torch.OutOfMemoryError:
        raise
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise BadWeights(f"{file} can't be read ({error}); download it again.") from error


def save_adapter(adapter: Adapter, folder: Path) -> None:
    """Write an adapter in the official layout, each file beside its place and then renamed."""
    from safetensors.torch import save_file

    files: dict[str, dict[str, torch.Tensor]] = {}
    for name, parameter in official_parameters(adapter).items():
        file, key = name.split(".", 1)
        files.setdefault(file, {})[key] = parameter.detach().contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    for file, tensors in files.items():
        with draft(folder / f"{file}.safetensors") as partial:
            save_file(tensors, partial)


def official_parameters(adapter: Adapter) -> dict[str, nn.Parameter]:
    """Every parameter under its official name: `resampler.latents`, `ip_layers.0.to_k_ip.weight`, `ref_layers.0.to_k_ref.bias`."""
    named = {}
    ours = dict(adapter.named_parameters())
    for name in ours:
        if name.startswith("resampler."):
            named[name] = ours[name]
    for part, blocks in (("identity", adapter.config.identity_blocks), ("reference", adapter.config.reference_blocks)):
        stem = OFFICIAL_FILES[part].removesuffix(".safetensors")
        for entry, block in enumerate(blocks):
            for its_part, official, own in _TABLE:
                name = own.format(b=block)
                if its_part == part and name in ours:
                    named[f"{stem}.{official.format(e=entry)}"] = ours[name]
    return named


def read_header(file: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file. Raises BadWeights if it is missing, cut or not safetensors."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise BadWeights(f"{file} is not there.")
    try:
        with safe_open(file, framework="pt") as tensors:
            return {key: tuple(tensors.get_slice(key).get_shape()) for key in tensors.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        raise BadWeights(f"{file} is not a complete safetensors file ({error}); download it again.") from error


def _collect(paths: Sequence[Path]) -> dict[str, dict[str, Stored]]:
    """Every adapter tensor in `paths` by part, under its official name (entries still as in the file)."""
    found: dict[str, dict[str, Stored]] = {}
    for path in paths:
        if not path.exists():
            raise BadWeights(f"{path} is not there; expected a folder with {', '.join(OFFICIAL_FILES.values())}.")
        files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
        for file in files:
            header = read_header(file)
            ours = file.name in OFFICIAL_FILES.values() and any(_RESAMPLER.match(key) for key in header)
            if not ours and not any(_ENTRY.match(key) or _REPACKED.match(key) or key == "latents" for key in header):
                if path.is_dir() and file.name not in OFFICIAL_FILES.values():
                    continue  # something else that lies in the same folder
                raise BadWeights(f"{file} holds no Lynx adapter (its first key is {next(iter(header), 'none')!r}).")
            for key, shape in header.items():
                part, name = _place(file, key)
                others = found.setdefault(part, {})
                if name in others:
                    raise BadWeights(f"{file}: {key} is also in {others[name].file}; name the one file that is meant.")
                others[name] = Stored(file=file, key=key, shape=shape)
    return found


def _place(file: Path, key: str) -> tuple[str, str]:
    """Part and name of a key. Repacked names keep their block number as `block.N.rest`."""
    if match := _REPACKED.match(key):
        part = "identity" if match[2].startswith("cross") else "reference"
        return part, f"block.{match[1]}.{match[3]}"
    if match := _ENTRY.match(key):
        return ("reference" if "_ref." in match[2] else "identity"), key
    if _RESAMPLER.match(key):
        return "resampler", key
    raise BadWeights(f"{file}: unexpected key {key!r}; a Lynx adapter has none of that name.")


def _parts_of(found: dict[str, dict[str, Stored]]) -> frozenset[str]:
    identity = bool(found.get("identity") or found.get("resampler"))
    full = bool(found.get("identity")) and _arm(found["identity"]) == "full"
    reference = bool(found.get("reference"))
    return frozenset({"identity"} if identity else ()) | frozenset({"reference"} if reference or full else ())


def _absent(part: str, where: str) -> BadWeights:
    file = OFFICIAL_FILES[part]
    hint = "To do without the reference part say --ref-scale 0." if part == "reference" else ""
    if part in ("resampler", "identity"):
        hint = "To do without the identity part say --ip-scale 0."
    return BadWeights(f"{where}: {file} is missing; `lynx-video download full` or `lite` fetches it. {hint}")


def _arm(identity: dict[str, Stored]) -> str:
    return "full" if any(name.endswith(("registers", "bias")) for name in identity) else "lite"


def _check_resampler(found: dict[str, Stored], tensors: dict[str, Stored]) -> ResamplerConfig:
    import torch

    from lynx_video.adapters.resampler import Resampler

    needed = {"latents": 3, "proj_in.weight": 2, "proj_out.weight": 2, "layers.0.0.to_q.weight": 2}
    for key, dimensions in needed.items():
        if key not in found:
            raise BadWeights(f"{next(iter(found.values())).file}: key {key!r} is missing.")
        if len(found[key].shape) != dimensions:
            raise BadWeights(f"{found[key]} has shape {list(found[key].shape)}; expected {dimensions} dimensions.")
    latents, face, output, query = (found[key].shape for key in needed)
    depth = 1 + max(int(name.split(".")[1]) for name in found if name.startswith("layers."))
    config = ResamplerConfig(depth=depth, width=latents[2], queries=latents[1], output=output[0], face=face[1], inner=query[0])
    if config.face != FACE_WIDTH:
        raise BadWeights(f"{found['proj_in.weight']} takes face vectors of {config.face}; the face encoder gives {FACE_WIDTH}.")
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in Resampler(config).named_parameters()}
    _match(found, {name: (name, shape) for name, shape in shapes.items()}, "resampler.", tensors)
    return config


def _check_identity(
    found: dict[str, Stored], arm: str, resampler: ResamplerConfig, base: BaseShape, tensors: dict[str, Stored]
) -> tuple[ProjectionConfig, tuple[int, ...]]:
    step = 1 if arm == "full" else 2
    blocks = tuple(range(0, base.blocks, step))
    width = resampler.output
    sample = next((s for name, s in found.items() if name.endswith("to_k_ip.weight")), None)
    if sample is None:
        raise BadWeights(f"{next(iter(found.values())).file}: key '0.to_k_ip.weight' is missing.")
    if len(sample.shape) == 2 and sample.shape[1] != width and sample.shape[0] == base.width:
        raise BadWeights(
            f"{sample} takes tokens of width {sample.shape[1]}, but the resampler gives {width}: "
            f"files of two different adapters (full and lite?) are mixed."
        )
    registers = next((s.shape for name, s in found.items() if name.endswith("registers")), (1, 0, width))
    count = registers[1] if len(registers) == 3 else 0
    config = ProjectionConfig(tokens=width, width=base.width, bias=arm == "full", registers=count, own_key_norm=arm == "lite")
    shapes: dict[str, tuple[int, ...]] = {"to_k_ip.weight": (base.width, width), "to_v_ip.weight": (base.width, width)}
    if arm == "full":
        shapes |= {"to_k_ip.bias": (base.width,), "to_v_ip.bias": (base.width,), "registers": (1, count, width)}
    _match_blocks("identity", found, blocks, shapes, tensors, base)
    return config, blocks


def _check_reference(found: dict[str, Stored], base: BaseShape, tensors: dict[str, Stored]) -> None:
    square, line = (base.width, base.width), (base.width,)
    shapes = {"to_k_ref.weight": square, "to_k_ref.bias": line, "to_v_ref.weight": square, "to_v_ref.bias": line}
    _match_blocks("reference", found, tuple(range(base.blocks)), shapes, tensors, base)


def _match_blocks(
    part: str,
    found: dict[str, Stored],
    blocks: tuple[int, ...],
    shapes: dict[str, tuple[int, ...]],
    tensors: dict[str, Stored],
    base: BaseShape,
) -> None:
    first = next(iter(found.values()))
    if first.key.startswith("blocks."):
        places = {block: f"block.{block}" for block in blocks}
    else:
        places = {block: str(entry) for entry, block in enumerate(blocks)}
    sample = next((s for name, s in found.items() if name.endswith(".weight")), first)
    if len(sample.shape) == 2 and sample.shape[0] != base.width:
        raise BadWeights(
            f"{sample} has shape {list(sample.shape)}: the adapter is made for a base of width {sample.shape[0]}, "
            f"this base has width {base.width}."
        )
    entries = {name.rsplit(".to_", 1)[0].removesuffix(".registers"): stored for name, stored in found.items()}
    if len(entries) != len(blocks):
        beyond = next((stored for entry, stored in entries.items() if entry not in places.values()), None)
        raise BadWeights(
            f"{first.file} has entries for {len(entries)} blocks{f' (such as {beyond.key})' if beyond else ''}; "
            f"this base has {base.blocks} blocks and needs {len(blocks)} entries."
        )
    rows = {own: official for its_part, official, own in _TABLE if its_part == part}
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for own, official in rows.items():
        kind = official.removeprefix("{e}.")
        for block in blocks if kind in shapes else ():
            wanted[own.format(b=block)] = (f"{places[block]}.{kind}", shapes[kind])
    _match(found, wanted, "", tensors)


def _match(
    found: dict[str, Stored], wanted: dict[str, tuple[str, tuple[int, ...]]], prefix: str, tensors: dict[str, Stored]
) -> None:
    """Every wanted name (ours -> official, shape) must be there in that shape, and nothing else."""
    file = next(iter(found.values())).file
    for own, (official, shape) in wanted.items():
        if official not in found:
            raise BadWeights(f"{file}: key {_spelled(official)!r} is missing.")
        if found[official].shape != shape:
            raise BadWeights(f"{found[official]} has shape {list(found[official].shape)}, expected {list(shape)}.")
        tensors[prefix + own] = found[official]
    surplus = set(found) - {official for official, _ in wanted.values()}
    if surplus:
        raise BadWeights(f"{found[min(surplus)]} is unexpected: this base needs no such key.")


def _spelled(name: str) -> str:
    """A wanted name as its file spells it."""
    match = re.match(r"block\.(\d+)\.(.+)", name)
    if match is None:
        return name
    part = "self_attn.ref_adapter" if "_ref." in name else "cross_attn.ip_adapter"
    return f"blocks.{match[1]}.{part}.{match[2]}"
