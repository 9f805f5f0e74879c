"""Right before fast: small shapes on a device against float32 on the CPU, in every way that the bench times.

    python -m lynx_video.bench.check [--device cuda] [--output FILE.md]

Both arms: memories, passes one by one and as a batch, denoising, decoding, compiled blocks, block offload, the step cache; each
attention kernel and each quantization that this machine has. Distances are relative to the norm of what is wanted. Ends with exit
code 1 if one is larger than it may be.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video.bench import turn
from lynx_video.bench.made import Scene, Source, draw_scene, make
from lynx_video.bench.ours import Ours
from lynx_video.bench.plain import Plain
from lynx_video.bench.side import Side, hold, twin_of
from lynx_video.bench.size import SIZES
from lynx_video.bench.way import Clock
from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.draft import draft
from lynx_video.errors import LynxError

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Blueprint, Components

CPU = torch.device("cpu")
STEPS = 4
SAME, DEVICES, HALF = 1e-5, 1e-4, 3e-2
"""What float32 may differ by on one device and between two, and half precision from float32."""
BACKENDS = {"native": HALF, "cudnn": HALF, "flash": HALF, "flash3": HALF, "flex": HALF, "xformers": HALF, "sage": 1e-1}
QUANTIZED = {"fp8-storage": 8e-2, "int8": 8e-2, "fp8": 1e-1, "nf4": 3e-1}


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One check. difference: None where it could not be made, for the reason in `missing`."""

    name: str
    most: float
    difference: float | None = None
    missing: str = ""

    @property
    def wrong(self) -> bool:
        """Whether it was made and failed; nan fails."""
        return self.difference is not None and not self.difference <= self.most


def check(device: torch.device, note: Callable[[str], None] = lambda _: None) -> list[Finding]:
    """All of them."""
    found: list[Finding] = []
    with _exact_products(), tempfile.TemporaryDirectory() as folder:
        for arm in ("full", "lite"):
            for finding in _of_arm(arm, device, Path(folder) / arm):
                note(_line(finding))
                found.append(finding)
    return found


def _of_arm(arm: str, device: torch.device, folder: Path) -> Iterator[Finding]:
    components, blueprint = make(Source(arm=arm, dtype="fp32", device="cpu"), folder, size=_small())
    config, scene = GenerateConfig(num_inference_steps=STEPS), draw_scene(components)
    plain, on_cpu = Plain(twin_of(components), scene, config), Ours(twin_of(components), scene, config)
    on_cpu.memories()
    wanted = turn.predict(plain)
    latents, frames = _film(plain)
    single = _Bench(*moved(components, blueprint, device, torch.float32), scene, config)
    here = single.ours()
    exact = turn.predict(here)

    def whole() -> tuple[Tensor, Tensor]:
        return _film(single.ours())

    told = f"{arm}, float32: "
    kept = _at(on_cpu.remembered, device)
    yield _find(f"{told}memories, from the CPU's", DEVICES, lambda: turn.difference(here.remembered, kept))
    yield _find(f"{told}passes, from the CPU's plain ones", DEVICES, lambda: turn.difference(exact, _at(wanted, device)))
    yield _find(f"{told}passes, from plain ones here", SAME, lambda: turn.difference(exact, single.plain()))
    yield _find(f"{told}{STEPS} steps, from the CPU's", 10 * DEVICES, lambda: _distance(whole()[0].cpu(), latents))
    yield _find(f"{told}frames, grey levels from the CPU's", 1, lambda: _levels(whole()[1], frames))
    yield _find(f"{told}frames in chunks, from the VAE's own", 0, single.decoded)
    for name, runtime, most in (
        ("as a batch", RuntimeConfig(passes="batched"), SAME),
        ("one by one", RuntimeConfig(passes="sequential"), SAME),
        ("blocks offloaded", RuntimeConfig(offload="block"), SAME),
        ("compiled", RuntimeConfig(compile=True), SAME),
    ):
        yield _find(f"{told}{name}", most, partial(single.distance, runtime, exact))
    yield _find(f"{told}compiled again for other steps and passes", 0, single.recompiled)
    yield _find(f"{told}step cache, every step computed", 0, single.cached)
    yield _find(f"{told}host syncs in a forward", 0, single.syncs)
    half = _Bench(*moved(components, blueprint, device, torch.bfloat16), scene, config)
    rounded = turn.predict(half.ours())
    told = f"{arm}, bfloat16: "
    yield _find(f"{told}passes, from the CPU's in float32", HALF, lambda: turn.difference(rounded, _at(wanted, device)))
    for name, most in BACKENDS.items():
        runtime = RuntimeConfig(attention_backend=name, compile=name == "flex")
        yield _find(
            f"{told}attention by {name}",
            most,
            partial(half.distance, runtime, rounded),
            optional=True,
        )
    for kind, most in QUANTIZED.items():
        runtime = RuntimeConfig(quantize=kind)  # type: ignore[arg-type]
        yield _find(f"{told}{kind}", most, partial(half.distance, runtime, rounded), optional=True)


@dataclass(frozen=True, slots=True)
class _Bench:
    """A model on the device, and what is asked of it."""

    components: Components
    blueprint: Blueprint
    scene: Scene
    config: GenerateConfig

    def ours(self, runtime: RuntimeConfig = RuntimeConfig()) -> Any:  # noqa: B008 (a frozen value)
        """Our way on a twin."""
        return hold(self.components, self.blueprint, Side(name="", config=self.config, runtime=runtime), self.scene).way

    def distance(self, runtime: RuntimeConfig, wanted: Mapping[str, Tensor]) -> float:
        """From what is wanted to the predictions of a model held so."""
        return turn.difference(turn.predict(self.ours(runtime)), wanted)

    def plain(self) -> Mapping[str, Tensor]:
        """The plain way's predictions."""
        return turn.predict(Plain(twin_of(self.components), self.scene, self.config))

    def decoded(self) -> float:
        """Largest distance, in grey levels, of frames decoded in chunks from those of the VAE's own decode."""
        from lynx_video.bench.plain import decode_whole
        from lynx_video.pipeline import decoding

        noise = self.ours().noise
        return _levels(decoding.decode(self.components.vae, noise), decode_whole(self.components.vae, noise))

    def recompiled(self) -> float:
        """Graphs that a second clip of the same size asks for."""
        from lynx_video.runtime.compiling import count_compilations

        way = self.ours(RuntimeConfig(compile=True))
        turn.predict(way)
        with count_compilations() as count:
            _film(way)
        return float(count.graphs)

    def cached(self) -> float:
        """Distance of the predictions with a step cache that computes every step."""
        from lynx_video.runtime.cache import cache_

        way = self.ours()
        way.components.cache = cache_(way.components.transformer)
        return self.distance(RuntimeConfig(), turn.predict(way))

    def syncs(self) -> float:
        """Host syncs in a forward."""
        from lynx_video.runtime.syncs import count_host_syncs

        way = self.ours()
        turn.predict(way)
        with count_host_syncs(way.device) as syncs:
            way.forward()
        return float(len(syncs))


def moved(
    components: Components, blueprint: Blueprint, device: torch.device, dtype: torch.dtype
) -> tuple[Components, Blueprint]:
    """A copy on a device, in a dtype; what stays in float32 in a loaded model stays so."""
    twin = twin_of(components, apart=True)
    for part in (twin.transformer, twin.adapter, twin.vae, twin.text_encoder):
        torch.nn.Module.to(part, device, dtype)  # diffusers' own warns of what is put right below
    for name, parameter in twin.transformer.named_parameters():
        if any(kept in name for kept in twin.transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.float()
    return replace(twin, device=device, dtype=dtype), replace(blueprint, device=str(device), dtype=dtype)


def table(findings: Sequence[Finding], device: torch.device) -> str:
    """As markdown."""
    from lynx_video.bench.report import versions
    from lynx_video.runtime.device import device_of

    said = ", ".join(f"{name} {version}" for name, version in versions().items())
    rows = [
        f"| {one.name} | {_said(one)} | {one.most:g} "
        f"| {'**wrong**' if one.wrong else '' if one.difference is None else 'right'} |"
        for one in findings
    ]
    return "\n".join(
        [f"{device_of(device).name}; {said}", "", "| | differs by | may by | |", "| --- | --- | --- | --- |", *rows, ""]
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check, print, write; the exit code."""
    parser = argparse.ArgumentParser(description="Compare small shapes on a device with float32 on the CPU.")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--output", type=Path, help="write the table there too; a failed check leaves none")
    request = parser.parse_args(arguments)
    device = torch.device(request.device)
    findings = check(device, lambda line: print(line, file=sys.stderr, flush=True))
    text, wrong = table(findings, device), [one.name for one in findings if one.wrong]
    print(text)
    if wrong:
        print(f"{len(wrong)} of {len(findings)} checks failed: {'; '.join(wrong)}.", file=sys.stderr)
        return 1
    if request.output is not None:
        with draft(request.output) as partial:
            partial.write_text(text, encoding="utf-8")
    return 0


def _small() -> Any:
    """Heads as wide as the real model's, few of all else."""

    def transformer() -> Any:
        from diffusers import WanTransformer3DModel

        return WanTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=128,
            in_channels=12,
            out_channels=12,
            text_dim=64,
            freq_dim=64,
            ffn_dim=768,
            num_layers=3,
            cross_attn_norm=True,
        )

    return replace(SIZES["nano"], transformer=transformer)


def _find(name: str, most: float, run: Callable[[], float], *, optional: bool = False) -> Finding:
    """What `run` finds; where this machine cannot, why. optional: what breaks down on the way is only missing."""
    try:
        return Finding(name=name, most=most, difference=run())
    except LynxError as error:
        return Finding(name=name, most=most, missing=" ".join(str(error).split()))
    except (RuntimeError, ImportError, AttributeError, ValueError) as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return Finding(name=name, most=most, difference=None if optional else float("nan"), missing=reason)


def _film(way: Any) -> tuple[Tensor, Tensor]:
    """Latents and frames of a clip."""
    turn.predict(way)
    with way.ready():
        latents = way.steps(None, Clock(way.device)).latents
    return latents, way.decode(latents)


def _at(predictions: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: prediction.to(device) for name, prediction in predictions.items()}


def _distance(found: Tensor, wanted: Tensor) -> float:
    return turn.difference({"": found}, {"": wanted})


def _levels(found: Tensor, wanted: Tensor) -> float:
    return float((found.int() - wanted.int()).abs().max())


def _line(finding: Finding) -> str:
    return f"{'WRONG ' if finding.wrong else ''}{finding.name}: {_said(finding)}, may be {finding.most:g}"


def _said(finding: Finding) -> str:
    if finding.missing:
        return f"not run: {finding.missing}"
    return f"{finding.difference:.1e}"


@contextmanager
def _exact_products() -> Iterator[None]:
    """Within it float32 is float32 on a GPU, too."""
    before = torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


if __name__ == "__main__":
    sys.exit(main())
