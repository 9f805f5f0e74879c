"""The last stage: everything that ships, in the layouts of the real models, under `src/lynx_video/nano/weights`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch

from lynx_video.nano import model

WEIGHTS = Path(__file__).parent.parent / "weights"
LIMIT = 24 * 2**20
DEFAULTS = {
    "num_frames": model.FRAMES,
    "fps": model.FPS,
    "height": model.SIZE,
    "width": model.SIZE,
    "num_inference_steps": 20,
    "guidance_scale": 3.0,
    "guidance_scale_i": 2.5,
    "negative_prompt": "",
    "reference_size": model.REFERENCE,
    "max_sequence_length": model.TEXT_TOKENS,
}


def train(run: Path) -> None:
    """Copy the results of the earlier stages (those that are there) into the package."""
    base = WEIGHTS / "base"
    for name in ("transformer", "text_encoder", "tokenizer", "vae"):
        if (run / name).is_dir():
            shutil.copytree(run / name, base / name, dirs_exist_ok=True)
    model.scheduler().save_pretrained(base / "scheduler")
    index = {
        "_class_name": "WanPipeline",
        "scheduler": ["diffusers", "UniPCMultistepScheduler"],
        "text_encoder": ["transformers", "UMT5EncoderModel"],
        "tokenizer": ["transformers", "PreTrainedTokenizerFast"],
        "transformer": ["diffusers", "WanTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLWan"],
    }
    (base / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for arm in ("full", "lite"):
        adapter, place = run / f"{arm}-video" / "adapter", WEIGHTS / f"lynx_{arm}"
        if adapter.is_dir():
            shutil.copytree(adapter, place, dirs_exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        known = json.loads((place / "lynx.json").read_text(encoding="utf-8")) if (place / "lynx.json").is_file() else {}
        defaults = DEFAULTS if arm == "full" else {**DEFAULTS, "guidance_scale_i": None}
        (place / "lynx.json").write_text(json.dumps(known | defaults, indent=2) + "\n", encoding="utf-8")
    (WEIGHTS / "face").mkdir(parents=True, exist_ok=True)
    for name in ("encoder", "judge", "second_judge", "detector"):
        if (run / f"{name}.safetensors").is_file():
            shutil.copy(run / f"{name}.safetensors", WEIGHTS / "face" / f"{name}.safetensors")
    for name in ("lora.safetensors", "lora.json"):
        if (run / "few_step" / name).is_file():
            (WEIGHTS / "few_step").mkdir(exist_ok=True)
            shutil.copy(run / "few_step" / name, WEIGHTS / "few_step" / name)
    for file in WEIGHTS.rglob("*.safetensors"):
        file.chmod(0o644)  # the library writes them for the owner alone
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    print(f"{size / 2**20:.1f} MiB in {WEIGHTS.name}; torch {torch.__version__}")
    if size > LIMIT:
        raise SystemExit(f"the weights are larger than {LIMIT / 2**20:.0f} MiB")
