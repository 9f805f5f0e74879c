"""diffusers' own `WanPipeline` on the same transformer, without identity: what identity costs is the distance to it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lynx_video.bench.made import Scene
from lynx_video.bench.way import Clock, Steps, Way
from lynx_video.config import GenerateConfig
from lynx_video.pipeline.schedule import make_scheduler

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components


class Stock(Way):
    """Takes the components' transformer for itself: its stock processors are put back."""

    def __init__(self, components: Components, scene: Scene, config: GenerateConfig) -> None:
        from diffusers import WanPipeline

        super().__init__(components, scene, config)
        components.adapter.detach()
        self.transformer = components.transformer
        self.pipeline: Any = WanPipeline(
            tokenizer=components.tokenizer,
            text_encoder=components.text_encoder,
            vae=components.vae,
            transformer=self.transformer,
            scheduler=make_scheduler(components.scheduler, config),
        )
        self.pipeline.set_progress_bar_config(disable=True)
        self._embeddings: tuple[Tensor, Tensor | None] | None = None

    @property
    def kinds(self) -> list[str]:
        return ["2 passes" if self._guided else "1 pass"] * self.plan.steps

    @property
    def forwards(self) -> int:
        return (2 if self._guided else 1) * self.plan.steps

    def memories(self) -> None:
        """There is nobody."""

    @torch.no_grad()
    def texts(self) -> None:
        self._embeddings = self.pipeline.encode_prompt(
            prompt=self.scene.prompt,
            negative_prompt=self.plan.negative_prompt,
            do_classifier_free_guidance=self._guided,
            max_sequence_length=self.components.defaults.max_sequence_length,
            device=self.device,
        )

    def forward(self) -> Tensor:
        return self._pass(0)

    def predictions(self) -> Mapping[str, Tensor]:
        found = {"prompt": self._pass(0)}
        return {**found, "none": self._pass(1)} if self._guided else found

    def steps(self, limit: int | None, clock: Clock) -> Steps:
        count = self.plan.steps if limit is None else min(limit, self.plan.steps)
        marks: list[float] = []

        def mark(*_: Any) -> dict[str, Any]:
            marks.append(clock.now())
            return {}

        prompt, negative = self._texts
        marks.append(clock.now())
        latents = self.pipeline(
            prompt_embeds=prompt,
            negative_prompt_embeds=negative,
            latents=self.noise,
            height=self.plan.height,
            width=self.plan.width,
            num_frames=self.plan.num_frames,
            num_inference_steps=count,
            guidance_scale=self.plan.guidance_scale,
            output_type="latent",
            callback_on_step_end=mark,
            return_dict=False,
        )[0]
        return Steps.between(marks, self.kinds[:count], latents)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """As the pipeline ends: decode, then to pixels as floats."""
        vae = self.components.vae
        shape = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean, device=latents.device).view(shape)
        std = torch.tensor(vae.config.latents_std, device=latents.device).view(shape)
        video = vae.decode((latents * std + mean).to(vae.dtype), return_dict=False)[0]
        frames = self.pipeline.video_processor.postprocess_video(video, output_type="np")
        return torch.tensor(frames[0])

    def forget(self) -> None:
        self._embeddings = None

    @property
    def _guided(self) -> bool:
        return self.plan.guidance_scale > 1

    @property
    def _texts(self) -> tuple[Tensor, Tensor | None]:
        assert self._embeddings is not None, "texts come first"
        prompt, negative = self._embeddings
        dtype = self.components.dtype
        return prompt.to(dtype), negative.to(dtype) if negative is not None else None

    @torch.no_grad()
    def _pass(self, which: int) -> Tensor:
        text = self._texts[which]
        inputs: Any = self.noise.to(self.components.dtype), self.timesteps[0].expand(1), text
        predicted: Tensor = self.transformer(*inputs, return_dict=False)[0]
        return predicted.float()
