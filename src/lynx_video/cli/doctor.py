"""`lynx-video doctor`: what this machine has, which models it can run, and what is missing."""

from __future__ import annotations

import math
import os
import platform
import shutil
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from lynx_video.cli.console import Console
from lynx_video.cli.options import options

GIB = 2**30
# What `lynx-video download NAME` brings, as far as it tells whether the part is there.
FILES = {
    "base": tuple(
        f"Wan2.1-T2V-14B-Diffusers/{name}"
        for name in (
            "transformer/config.json",
            "vae/config.json",
            "text_encoder/config.json",
            "tokenizer/tokenizer_config.json",
            "scheduler/scheduler_config.json",
        )
    ),
    "full": tuple(f"lynx_full/{name}.safetensors" for name in ("resampler", "ip_layers", "ref_layers")),
    "lite": tuple(f"lynx_lite/{name}.safetensors" for name in ("resampler", "ip_layers")),
    "face": ("face/recognition_arcface_ir_se50.pth", "face/buffalo_l/det_10g.onnx"),
    "safety": ("safety_checker/config.json", "safety_checker/preprocessor_config.json", "safety_checker/model.safetensors"),
}
NEEDS = {"lynx-full": ("base", "full", "face", "safety"), "lynx-lite": ("base", "lite", "face", "safety")}
NANO_PARTS = ("base/transformer", "base/vae", "base/text_encoder", "face")
NANO_ADAPTERS = {"nano": "lynx_full", "nano-lite": "lynx_lite"}
PACKAGES = ("torch", "diffusers", "transformers", "safetensors", "onnxruntime", "opencv-python-headless", "av", "pillow-heif")


@dataclass(frozen=True, kw_only=True, slots=True)
class DoctorFlags:
    """Where to look, and how to answer."""

    models: Path = Path("models")
    "folder of the downloaded models"
    quiet: bool = False
    "only which models run here, without the table above it"
    json: bool = False
    "one JSON object on stdout instead of the table"


@click.command()
@options(DoctorFlags)
def doctor(flags: DoctorFlags) -> None:
    """Say what this machine can run and what is missing."""
    machine, packages = look_at_machine(flags.models), look_at_packages()
    weights = look_at_weights(flags.models)
    verdicts = judge(machine, packages, weights, flags.models)
    rows = [(name, value) for name, value in machine.items() if not name.endswith("_bytes")]
    rows += list(packages.items())
    rows += [(f"weights: {name}", "there" if there else "missing") for name, there in weights.items()]
    width = max(len(name) for name, _ in rows)
    lines = [] if flags.quiet else [*(f"{name:<{width}}  {value}" for name, value in rows), ""]
    lines += [f"{name}: {text}" for name, text in verdicts.items()]
    Console(quiet=flags.quiet, as_json=flags.json).result(
        "\n".join(lines), {"machine": machine, "packages": packages, "weights": weights, "models": verdicts}
    )


def look_at_machine(models: Path) -> dict[str, Any]:
    """Python, processor, GPU, memory and disk; names that end in `_bytes` are for programs."""
    import torch

    from lynx_video.runtime.device import host_bytes

    flags = ""
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    memory, _ = host_bytes()
    folder = models.resolve()
    while not folder.exists():
        folder = folder.parent
    disk = shutil.disk_usage(folder).free
    found: dict[str, Any] = {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPU cores",
        "CPU bf16": "in hardware" if any(name in flags for name in ("avx512_bf16", "amx_bf16", " bf16")) else "not in hardware",
        "memory": f"{memory / GIB:.0f} GiB" if memory else "unknown",
        "memory_bytes": memory,
        "disk": f"{disk / GIB:.0f} GiB free for {models}",
        "disk_bytes": disk,
        "GPU": "none that torch can use",
        "gpu_bytes": 0,
    }
    if torch.cuda.is_available():
        gpu = torch.cuda.get_device_properties(0)
        found["GPU"] = f"{gpu.name}, {gpu.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}"
        found["gpu_bytes"] = gpu.total_memory
    return found


def look_at_packages() -> dict[str, str]:
    """Versions of what is needed, and whether videos can be encoded."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            extra = {"onnxruntime": "face", "pillow-heif": "heif"}.get(name)
            found[name] = f"missing: pip install 'lynx-video[{extra}]'" if extra else f"missing: pip install {name}"
    try:
        import av

        found["H.264 encoder"] = (
            "libx264" if "libx264" in av.codecs_available else "missing: av without libx264, use --ext webp"
        )
    except ImportError:
        found["H.264 encoder"] = "missing: pip install av"
    return found


def look_at_weights(models: Path) -> dict[str, bool]:
    """Whether each part is there: nano's in the package, the others as `download` lays them out."""
    from lynx_video.pipeline.models import NANO

    found = {
        name: all(any((NANO / part).glob("*.safetensors")) for part in (*NANO_PARTS, adapter))
        for name, adapter in NANO_ADAPTERS.items()
    }
    for part, files in FILES.items():
        found[part] = all((models / file).is_file() for file in files)
    weights = (models / "Wan2.1-T2V-14B-Diffusers" / name for name in ("transformer", "vae", "text_encoder"))
    found["base"] = found["base"] and all(any(folder.glob("*.safetensors")) for folder in weights)
    return found


def judge(machine: dict[str, Any], packages: dict[str, str], weights: dict[str, bool], models: Path) -> dict[str, str]:
    """For each model, in plain words: whether it runs here, and what would make it run."""
    from lynx_video.pipeline.forecast import needs

    verdicts = {}
    for name in NANO_ADAPTERS:
        gone = "its weights are missing from the package; install it again, or train them with make nano"
        verdicts[name] = (
            f"runs here, on the CPU too: lynx-video demo --model {name}" if weights[name] else f"cannot run: {gone}"
        )
    elsewhere = "" if models == Path("models") else f" --models {models}"
    for name, parts in NEEDS.items():
        missing = [part for part in parts if not weights[part]]
        there, need = machine["gpu_bytes"], needs(name)
        budget = math.floor(10 * there / GIB) / 10
        if not there:
            fit = (
                f"no CUDA GPU: it would take days on this CPU; it needs about {_gib(need.kept)} GiB of GPU memory, or "
                f"{_gib(need.least)} with --vram-budget (an estimate)"
            )
        elif there >= need.kept:
            fit = "fits this GPU, by estimate"
        elif there >= need.idle:
            fit = "fits this GPU with --idle-models free, by estimate"
        elif budget * GIB >= need.least:
            fit = f"fits this GPU with --vram-budget {budget:g}, by estimate"
        else:
            fit = (
                f"does not fit this GPU: {there / GIB:.1f} GiB, about {_gib(need.least)} are needed with --vram-budget "
                "(an estimate)"
            )
        texts = [fit]
        if missing:
            texts.append(f"missing {', '.join(missing)}: lynx-video download {' '.join(missing)}{elsewhere}")
        if packages["onnxruntime"].startswith("missing"):
            texts.append("the face detector needs onnxruntime: pip install 'lynx-video[face]'")
        verdicts[name] = "; ".join(texts)
    return verdicts


def _gib(size: int) -> int:
    """Whole GiB, never less than it is."""
    return math.ceil(size / GIB)
