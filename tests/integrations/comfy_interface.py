"""ComfyUI's documented interface, as much of it as an API-format workflow needs: nodes by name, links, order, IMAGE."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

FOLDER = Path(__file__).parents[2] / "integrations" / "comfyui"
CORE = {"LoadImage": ("IMAGE", "MASK"), "PreviewImage": (), "PreviewAny": ()}


def load_package(name: str = "lynx_video_comfyui") -> ModuleType:
    """The node package as ComfyUI loads a folder of custom_nodes."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, FOLDER / "__init__.py")
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[name]


def inputs_of(node: type) -> dict[str, Any]:
    """Required and optional inputs of a node."""
    kinds = node.INPUT_TYPES()
    return {**kinds["required"], **kinds.get("optional", {})}


def api_workflow() -> dict[str, Any]:
    return json.loads((FOLDER / "workflow_api.json").read_text(encoding="utf-8"))


def run(workflow: dict[str, Any], pictures: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The outputs of each node, made in the order that the links ask for, in inference mode as ComfyUI does it.

    pictures: what LoadImage finds, float [1, H, W, 3], by name.
    """
    nodes, outputs = load_package().NODE_CLASS_MAPPINGS, {}

    def make(number: str) -> tuple[Any, ...]:
        if number in outputs:
            return outputs[number]
        kind, given = workflow[number]["class_type"], workflow[number]["inputs"]
        values = {name: make(value[0])[value[1]] if isinstance(value, list) else value for name, value in given.items()}
        if kind in CORE:
            outputs[number] = (pictures[values["image"]], None) if kind == "LoadImage" else tuple(values.values())
            return outputs[number]
        node = nodes[kind]
        if hasattr(node, "VALIDATE_INPUTS"):
            said = node.VALIDATE_INPUTS(prompt=values["prompt"])
            if said is not True:
                raise ValueError(said)
        made = getattr(node(), node.FUNCTION)(**values)
        outputs[number] = made["result"] if isinstance(made, dict) else made
        return outputs[number]

    with torch.inference_mode():
        for number in workflow:
            make(number)
    return outputs
