"""From a run to an adapter that `generate --adapter-path` takes: the official files, and a `lynx.json` that says what they need."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from lynx_video.adapters.attach import Adapter
from lynx_video.adapters.weights import save_adapter
from lynx_video.config import Defaults
from lynx_video.draft import draft
from lynx_video.runtime.parallel import Processes
from lynx_video.training.parallel import full


def export_adapter(
    adapter: Adapter, folder: Path, defaults: Defaults, facts: Mapping[str, Any], among: Processes, *, dtype: torch.dtype
) -> None:
    """Write the adapter in the official layout in `dtype`, with `lynx.json`: generation defaults, what it is made for, and `facts`.

    All processes must call it; the first writes. `lynx.json` comes last: without it the folder is not whole.
    """
    state = {}
    for name, parameter in adapter.named_parameters():
        tensor = full(parameter.detach())
        if among.first:
            state[name] = tensor.to("cpu", dtype)
    if among.first:
        with torch.device("meta"):
            plain = Adapter(adapter.config)
        plain.load_state_dict(state, strict=True, assign=True)
        save_adapter(plain, folder)
        config = adapter.config
        identity = config.identity
        made = {
            "identity_blocks": list(config.identity_blocks),
            "reference_blocks": list(config.reference_blocks),
            "key_norm": None if identity is None else "own, without weight" if identity.own_key_norm else "the block's",
            "registers": identity.registers if identity is not None else 0,
        }
        text = json.dumps({**asdict(defaults), "adapter": made, **facts}, indent=2)
        with draft(folder / "lynx.json") as partial:
            partial.write_text(text + "\n", encoding="utf-8")
    among.wait()
