"""`LynxPipeline`: the same functions in the shape that users of diffusers expect."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.config import GenerateConfig, RuntimeConfig
from lynx_video.errors import BadRequest
from lynx_video.pipeline.components import Components
from lynx_video.pipeline.denoise import Step
from lynx_video.pipeline.enrol import Enrolment
from lynx_video.pipeline.generate import generate
from lynx_video.pipeline.load import load
from lynx_video.types import Clip, Identity

if TYPE_CHECKING:
    import torch

    from lynx_video.types import Picture


class LynxPipeline:
    """pipe = LynxPipeline.from_pretrained(base, adapter); clip = pipe("portrait.png", "The person smiles.")."""

    def __init__(self, components: Components) -> None:
        self.components = components

    @classmethod
    def from_pretrained(
        cls,
        base: str | Path | None = None,
        adapter: str | Path | None = None,
        *,
        torch_dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        idle_models: str = "keep",
        runtime: RuntimeConfig = RuntimeConfig(),  # noqa: B008 (a frozen value)
    ) -> LynxPipeline:
        """As `load`; without arguments the nano model."""
        return cls(load(base=base, adapter=adapter, dtype=torch_dtype, device=device, idle_models=idle_models, runtime=runtime))

    @property
    def transformer(self) -> Any:
        """The stock transformer, with the adapter attached."""
        return self.components.transformer

    def __call__(
        self,
        image: str | Path | Picture | Identity | Enrolment,
        prompt: str,
        *,
        callback_on_step_end: Callable[[Step], None] | None = None,
        **settings: Any,
    ) -> Clip:
        """A clip; `settings` are the fields of GenerateConfig (num_frames=, seed=, guidance_scale=, ...).

        Raises BadRequest for a setting that does not exist.
        """
        known = [one.name for one in fields(GenerateConfig)]
        for name in settings:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]}?" if near else f"the settings are {', '.join(known)}."
                raise BadRequest(f"there is no setting {name!r}; {hint}")
        return generate(self.components, image, prompt, GenerateConfig(**settings), on_step=callback_on_step_end)
