"""A LoRA with which the base draws in four steps and one pass what it draws in twenty steps with guidance: `nano/weights/few_step`.

Distilled as the few-step LoRAs of the large model are: from the plain base, without adapters. The teacher's paths from noise to clip
are made once and kept; the student learns, at each of the four noise levels, the mean velocity up to the next one. Prompts are all it
takes, no picture is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path

import torch
from torch import Tensor, nn

from lynx_video.flow import TIMESTEPS, reference_sigmas, shifted
from lynx_video.nano import faces, model
from lynx_video.nano.captions import caption, describe
from lynx_video.nano.recipe import base as recipe_base
from lynx_video.nano.recipe import export
from lynx_video.nano.recipe.loop import Schedule, fit
from lynx_video.nano.recipe.speed import prepare_
from lynx_video.runtime.lora import LowRank, Switch

STEPS, TEACHER_STEPS, GUIDANCE = 4, 20, 3.0
RANK = 16
SEED = 7_000  # of prompts, above those in data.SEEDS that draw training pictures; only words are drawn from it
PATHS, TOGETHER, HELD = 1064, 28, 28
"paths in all, made at once, kept for validation"
DISTIL = Schedule(steps=1000, learning_rate=2e-3, warmup=60, decay=0.6, average=0.99, weight_decay=0.0)
BATCH = 14
LINEARS = (
    *(f"{attn}.{name}" for attn in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")),
    "ffn.net.0.proj",
    "ffn.net.2",
)


def train(run: Path) -> None:
    """The teacher's paths, then the student; writes `run/few_step/lora.safetensors` and `lora.json`."""
    torch.manual_seed(6)
    folder = run / "few_step"
    folder.mkdir(parents=True, exist_ok=True)
    student = Student(export.WEIGHTS / "base")
    paths, texts = _paths(folder, student)
    train_part = len(paths) - HELD

    def loss(step: int) -> Tensor:  # noqa: ARG001 (the loop's signature: its seed is the step's)
        index, at = torch.randint(train_part, (BATCH,)), torch.randint(STEPS, (BATCH,))
        return student.loss(paths, texts, index, at)

    @torch.no_grad()
    def report() -> str:
        index = torch.arange(train_part, len(paths))
        losses = [student.loss(paths, texts, index, torch.full_like(index, at)) for at in range(STEPS)]
        student.switch.on = True
        drawn = student.draw(paths[index, 0].float(), texts[index])
        student.switch.on = False
        error = (drawn - paths[index, -1].float()).pow(2).mean()
        return "validation " + " ".join(f"{one:.4f}" for one in losses) + f" end {error:.4f}"

    print(f"without: {report()}", flush=True)
    fit("few_step", run, student, loss, DISTIL, report=report)
    student.save(folder)


class Student(nn.Module):
    """The base with a LoRA on every linear layer of its blocks; the teacher is the same with the LoRA off."""

    def __init__(self, base: Path, *, compiled: bool = True) -> None:
        from diffusers import WanTransformer3DModel
        from transformers import AutoTokenizer, UMT5EncoderModel

        super().__init__()
        self.base = base
        transformer = WanTransformer3DModel.from_pretrained(base / "transformer", torch_dtype=torch.float32)
        self.transformer = transformer.requires_grad_(False)
        self.text_encoder = UMT5EncoderModel.from_pretrained(base / "text_encoder", dtype=torch.float32).requires_grad_(False)
        self.tokenizer = AutoTokenizer.from_pretrained(base / "tokenizer")
        self.switch = Switch()
        self.levels = levels()
        for name in self.names():
            layer = self.transformer.get_submodule(name)
            wide, out = layer.in_features, layer.out_features
            down = (torch.rand(RANK, wide) * 2 - 1) / math.sqrt(wide)
            self.transformer.set_submodule(name, LowRank(layer, self.switch, down, torch.zeros(out, RANK)))
        prepare_(self.transformer, compiled=compiled)

    def names(self) -> list[str]:
        """The layers that have a LoRA."""
        return [f"blocks.{block}.{linear}" for block in range(model.BLOCKS) for linear in LINEARS]

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Embeddings [B, 48, 64] bfloat16, zero after the last token."""
        tokens = self.tokenizer(texts, padding="max_length", max_length=model.TEXT_TOKENS, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask
        hidden = self.text_encoder(input_ids=tokens.input_ids, attention_mask=mask).last_hidden_state
        embeddings: Tensor = (hidden * mask[..., None]).to(torch.bfloat16)
        return embeddings

    def velocity(self, latents: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        """float32 [B, C, T, h, w] of one pass."""
        dtype = self.transformer.dtype
        predicted: Tensor = self.transformer(latents.to(dtype), timestep, text.to(dtype), return_dict=False)[0]
        return predicted.float()

    def loss(self, paths: Tensor, texts: Tensor, index: Tensor, at: Tensor) -> Tensor:
        """How far the student, at noise level number `at`, is from the teacher's mean velocity to the next.

        paths: [N, 5, C, T, h, w]. texts: [N, 48, 64]. index, at: [B].
        """
        now, then = paths[index, at].float(), paths[index, at + 1].float()
        sigma = self.levels[at]
        wanted = (now - then) / (sigma - self.levels[at + 1]).view(-1, 1, 1, 1, 1)
        self.switch.on = True
        predicted = self.velocity(now, sigma * TIMESTEPS, texts[index])
        self.switch.on = False
        error: Tensor = (predicted - wanted).pow(2).mean()
        return error

    @torch.no_grad()
    def draw(self, noise: Tensor, text: Tensor) -> Tensor:
        """Four Euler steps of one pass, the LoRA on or off as it is."""
        latents = noise
        for sigma, after in zip(self.levels[:-1], self.levels[1:], strict=True):
            step = self.velocity(latents, (sigma * TIMESTEPS).expand(len(latents)), text)
            latents = latents - (sigma - after) * step
        return latents

    @torch.no_grad()
    def teach(self, noise: Tensor, text: Tensor, nothing: Tensor) -> Tensor:
        """The teacher's path float16 [B, 5, C, T, h, w]: its states at the student's noise levels and at the end."""
        scheduler = model.scheduler()
        scheduler.set_timesteps(sigmas=reference_sigmas(TEACHER_STEPS))
        latents, states = noise, [noise]
        both = torch.cat([text, nothing.expand_as(text)])
        for number, t in enumerate(scheduler.timesteps, 1):
            with_text, without = self.velocity(torch.cat([latents] * 2), t.expand(2 * len(latents)), both).chunk(2)
            latents = scheduler.step(without + GUIDANCE * (with_text - without), t, latents, return_dict=False)[0]
            if number % (TEACHER_STEPS // STEPS) == 0:
                states.append(latents)
        return torch.stack(states, 1).to(torch.float16)

    def save(self, folder: Path) -> None:
        """Write the LoRA as diffusers' `save_lora_weights` does, and beside it what it is."""
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        for name in self.names():
            layer = self.transformer.get_submodule(name)
            for part, value in (("lora_A", layer.down), ("lora_B", layer.up)):
                tensors[f"transformer.{name}.{part}.weight"] = value.detach().to(torch.bfloat16).contiguous()
        save_file(tensors, folder / "lora.safetensors", metadata={"format": "pt"})
        (folder / "lora.safetensors").chmod(0o644)
        about = {
            "steps": STEPS,
            "scheduler": "euler",
            "flow_shift": model.FLOW_SHIFT,
            "guidance_scale": 1.0,
            "rank": RANK,
            "made": f"{len(self.names())} layers; {PATHS} paths of the base in {TEACHER_STEPS} steps at guidance {GUIDANCE}, without "
            f"adapters; {DISTIL.steps} steps of {BATCH}",
            "transformer_sha256": digest(self.base / "transformer" / "diffusion_pytorch_model.safetensors"),
        }
        (folder / "lora.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _paths(folder: Path, student: Student) -> tuple[Tensor, Tensor]:
    """The teacher's paths [N, 5, C, T, h, w] float16 and their text embeddings [N, 48, 64], made once, a part at a time."""
    words = prompts(PATHS)
    nothing = student.encode([""])
    parts = []
    for start in range(0, PATHS, TOGETHER):
        file = folder / f"paths-{start:05d}.pt"
        if not file.is_file():
            some = words[start : start + TOGETHER]
            shape = (len(some), model.LATENT_CHANNELS, (model.FRAMES - 1) // 2 + 1, model.SIZE // 4, model.SIZE // 4)
            noise = torch.randn(shape, generator=torch.Generator().manual_seed(SEED + 1 + start))
            torch.save(student.teach(noise, student.encode(some), nothing), file.with_suffix(".partial"))
            file.with_suffix(".partial").replace(file)
            print(f"paths {start + len(some)}/{PATHS}", flush=True)
        part: Tensor = torch.load(file, weights_only=True)
        parts.append(part)
    return torch.cat(parts), student.encode(words)


def prompts(count: int) -> list[str]:
    """Captions of people and scenes drawn from a seed; half of them name no trait, as in use, the others some or all."""
    rng, words = torch.Generator().manual_seed(SEED), random.Random(SEED)
    who = faces.people(count, rng)
    scene = faces.scenes(who, rng)
    motion = torch.multinomial(torch.tensor(recipe_base.SHARES), count, True, generator=rng)
    return [
        caption(scene, i, int(motion[i]), describe(who, i, words.choices((0.0, 0.5, 1.0), (0.5, 0.2, 0.3))[0], words), words)
        for i in range(count)
    ]


def levels() -> Tensor:
    """The student's noise levels and the end: those that Euler visits in the product, float32 [5]."""
    return torch.cat([shifted(torch.tensor(reference_sigmas(STEPS)), model.FLOW_SHIFT), torch.zeros(1)]).float()


def digest(file: Path) -> str:
    """Its sha256."""
    return hashlib.sha256(file.read_bytes()).hexdigest()
