"""How well frames fit a prompt by a CLIP model: the cosine between what it makes of the text and of the picture.

Any CLIP or SigLIP model that transformers reads, in a folder or on the hub. The processor is the one on Pillow, so that torchvision is
not needed and a number does not depend on whether it is there. Float32 throughout.
"""

from __future__ import annotations

import hashlib
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lynx_video.errors import BadWeights, LynxWarning
from lynx_video.evaluation.metrics.score import Score

if TYPE_CHECKING:
    from lynx_video.types import Video

FRAMES = 8
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
_NEEDED = (("config.json",), ("preprocessor_config.json", "processor_config.json"), _WEIGHTS)


class ClipScorer:
    """(frames, prompt) -> Score. path: a folder or a hub id. The model is loaded at the first use, or by `load`.

    A prompt longer than the model reads (77 tokens for CLIP, which counts a start and an end) is cut by the tokenizer; of the first one
    there is a LynxWarning, and `cuts` tells it of any. That is how CLIP scores are made everywhere, so the number stays comparable.
    """

    def __init__(self, path: str | os.PathLike[str], device: str = "cpu") -> None:
        """Raises BadWeights for what is neither a folder with a model nor the form of a hub id; whether the hub has it `load` tells."""
        text = os.fspath(path)
        folder = Path(text).expanduser()
        self.path, self.device = str(folder) if folder.exists() else text, device
        self.local = folder.is_dir()
        self._loaded: tuple[Any, Any, Any, int] | None = None
        self._warned = False
        if not self.local and not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", text):
            raise BadWeights(
                f"{text}: no such folder; expected a CLIP model as transformers saves it (config.json, model.safetensors, "
                "preprocessor_config.json, tokenizer.json), or a hub id such as openai/clip-vit-base-patch32."
            )
        if self.local:
            missing = [names[0] for names in _NEEDED if not any((folder / name).is_file() for name in names)]
            if missing:
                raise BadWeights(
                    f"{folder / missing[0]}: missing; a CLIP model's folder has config.json, model.safetensors, "
                    "preprocessor_config.json and a tokenizer. Download the whole model again."
                )

    def __call__(self, frames: Video, prompt: str) -> Score:
        """Mean cosine over 8 evenly spaced frames of uint8 [F, H, W, 3] (all if there are fewer), -1 to 1; n: frames looked at.

        CLIP's own scale: an unrelated prompt has about 0.1 to 0.2, a fitting one 0.25 to 0.35. Raises BadWeights as `load`.
        """
        import torch
        from torch.nn.functional import cosine_similarity

        self.load()
        assert self._loaded is not None
        model, process, _, limit = self._loaded
        if not len(frames):
            return Score(value=None, n=0, reason="no frames")
        if self.cuts(prompt) and not self._warned:
            self._warned = True
            warnings.warn(f"{self.path} reads {limit} tokens; the rest of a longer prompt does not count.", LynxWarning, 2)
        chosen = np.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().astype(int)
        pictures = [np.ascontiguousarray(frames[index]) for index in chosen]
        inputs = {**self._tokens(prompt, cut=True), **process(images=pictures, return_tensors="pt")}
        with torch.inference_mode():
            out = model(**{name: tensor.to(self.device) for name, tensor in inputs.items()})
            cosines = cosine_similarity(out.image_embeds.double(), out.text_embeds.double(), dim=-1)
        return Score(value=float(cosines.mean()), n=len(pictures))

    def cuts(self, prompt: str) -> bool:
        """Whether a prompt is longer than the model reads."""
        self.load()
        assert self._loaded is not None
        return len(self._tokens(prompt, cut=False)["input_ids"][0]) > self._loaded[3]

    @property
    def hash(self) -> str:
        """What the model is known by: the sha256 over its weights and settings, or `hub:ID`."""
        from lynx_video.media.image import file_hash

        if not self.local:
            return f"hub:{self.path}"
        files = sorted(
            file
            for file in Path(self.path).iterdir()
            if file.suffix in (".safetensors", ".json", ".txt", ".model") or file.name in _WEIGHTS
        )
        return hashlib.sha256("".join(f"{file.name} {file_hash(file)}\n" for file in files).encode()).hexdigest()

    def load(self) -> None:
        """Load the model, if it is not. Raises BadWeights for one that cannot be had, does not fit its settings or is no CLIP."""
        if self._loaded is not None:
            return
        import torch
        from safetensors import SafetensorError
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        at = {"local_files_only": True} if self.local else {}
        try:
            process = AutoImageProcessor.from_pretrained(self.path, backend="pil", **at)
            tokenizer = AutoTokenizer.from_pretrained(self.path, **at)
            model, report = AutoModel.from_pretrained(self.path, dtype=torch.float32, output_loading_info=True, **at)
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
            why = " ".join(str(error).split())[:200] or type(error).__name__
            advice = (
                "download the whole model again"
                if self.local
                else f"check the id and the network, or `hf download {self.path}` on a machine that has one and name the folder"
            )
            raise BadWeights(f"{self.path}: the CLIP model cannot be loaded ({why}); {advice}.") from error
        # transformers fills gaps with random numbers and goes on
        gaps = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report.get(kind) or ())
        if gaps:
            raise BadWeights(f"{self.path}: the weights do not fit config.json, first at {gaps[0]!r} ({len(gaps)} in all).")
        limit = getattr(getattr(model.config, "text_config", None), "max_position_embeddings", None)
        if not hasattr(model, "get_text_features") or not hasattr(model, "get_image_features") or not isinstance(limit, int):
            raise BadWeights(
                f"{self.path}: a model of kind {model.config.model_type!r}; a text-image score needs CLIP or SigLIP."
            )
        self._loaded = model.to(self.device).eval().requires_grad_(False), process, tokenizer, limit

    def _tokens(self, prompt: str, *, cut: bool) -> dict[str, Any]:
        assert self._loaded is not None
        model, _, tokenizer, limit = self._loaded
        # SigLIP was trained on padded texts and reads the last token; CLIP reads the first end token, whatever follows it.
        padding = "max_length" if cut and model.config.model_type.startswith("siglip") else False
        settings = {"truncation": True, "max_length": limit, "padding": padding} if cut else {}
        return dict(tokenizer([prompt], return_tensors="pt", verbose=False, **settings))
