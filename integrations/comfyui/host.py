"""What the nodes ask of ComfyUI: progress, interruption, memory, the output folder. Without ComfyUI they do nothing, or the least."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from lynx_video.pipeline.components import Components
    from lynx_video.pipeline.denoise import Step
    from lynx_video.safety import Gate

PREVIEW_PIXELS = 512


class Saved(NamedTuple):
    """A file to be written: its place, and what the page shows it by."""

    path: Path
    shown: dict[str, str]


def check_interrupted() -> None:
    """Raises ComfyUI's own exception if somebody pressed cancel."""
    try:
        from comfy.model_management import throw_exception_if_processing_interrupted
    except ImportError:
        return
    throw_exception_if_processing_interrupted()


def make_room(device: str) -> None:
    """Move ComfyUI's models off a GPU: it does not know of ours, and would let both run out of memory."""
    if device == "cpu":
        return
    try:
        from comfy.model_management import soft_empty_cache, unload_all_models
    except ImportError:
        return
    unload_all_models()
    soft_empty_cache()


def watcher(components: Components, guard: Gate, *, previews: bool) -> Callable[[Step], None]:
    """A step callback: moves the node's bar, shows the first frame as the step guesses it, and stops at the next cancel.

    What the guard refuses is not shown, and a frame that cannot be shown does not end the clip.
    """
    bars: list[Any] = []

    def on_step(step: Step) -> None:
        check_interrupted()
        try:
            from comfy.utils import ProgressBar
        except ImportError:
            return
        if not bars:
            bars.append(ProgressBar(step.total))
        bars[0].update_absolute(step.number, step.total, _picture(components, guard, step) if previews else None)

    return on_step


def _picture(components: Components, guard: Gate, step: Step) -> tuple[str, Any, int] | None:
    """A preview as ComfyUI sends it; None for one that may not be seen."""
    from PIL import Image

    from lynx_video.errors import Refused
    from lynx_video.pipeline.preview import preview

    try:
        picture = preview(components, step)
        guard.portrait(picture)
    except Refused:
        return None
    except Exception:
        logging.exception("no preview of this step")
        return None
    return "JPEG", Image.fromarray(picture), PREVIEW_PIXELS


def next_file(prefix: str, extension: str, width: int, height: int) -> Saved:
    """The next free numbered file in ComfyUI's output folder; without ComfyUI, in `output` here.

    Raises BadRequest for a prefix that leads out of it, or has no name.
    """
    from lynx_video.errors import BadRequest

    parts = PurePath(prefix).parts
    if not parts or PurePath(prefix).is_absolute() or ".." in parts or "\0" in prefix:
        raise BadRequest(f"filename_prefix: {prefix!r}; expected a name, or folder/name, below the output folder.")
    try:
        import folder_paths
    except ImportError:
        where, name = Path("output", prefix).parent, Path(prefix).name
        number = 1
        while (where / f"{name}_{number:05}_.{extension}").exists():
            number += 1
        return _saved(where, name, number, str(Path(prefix).parent), extension)
    folder, name, number, subfolder, _ = folder_paths.get_save_image_path(
        prefix, folder_paths.get_output_directory(), width, height
    )
    return _saved(Path(folder), name, number, subfolder, extension)


def _saved(folder: Path, name: str, number: int, subfolder: str, extension: str) -> Saved:
    file = f"{name}_{number:05}_.{extension}"
    return Saved(folder / file, {"filename": file, "subfolder": subfolder, "type": "output"})
