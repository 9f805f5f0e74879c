"""`lynx-video faces`: the faces of a picture, numbered."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from lynx_video.cli.console import Console
from lynx_video.cli.options import options
from lynx_video.errors import NoFace
from lynx_video.studio.models import explained, face_models
from lynx_video.studio.setup import FaceFlags, ModelFlags, ModelName


@dataclass(frozen=True, kw_only=True, slots=True)
class FacesFlags:
    """What is looked for with which models, and what is written."""

    record: Path | None = None
    ".json file for points and embedding of the chosen face, as `generate --face-record` takes it"
    output: Path | None = field(default=None, metadata={"flags": ("-o",)})
    "numbered picture, .png or .jpg; by default PORTRAIT-faces.png in this folder"
    face_index: int | None = None
    "which face is recorded; the largest (0) by default"
    model: ModelName = "nano"
    "whose face models: nano's know drawn people, those of lynx-full and lynx-lite photographs"
    face_detector: Path | None = None
    "face detector instead: SCRFD (folder or .onnx) or YuNet (.onnx)"
    arcface: Path | None = None
    "face encoder instead: ArcFace IR-SE50 weights"
    models: Path = Path("models")
    "folder of the downloaded models"
    overwrite: bool = False
    "replace files that are there"
    quiet: bool = False
    "say nothing but the result and warnings"
    json: bool = False
    "one JSON object on stdout instead of the list"


@click.command()
@click.argument("portrait", type=click.Path(path_type=Path))
@options(FacesFlags)
def faces(portrait: Path, flags: FacesFlags) -> None:
    """List the faces of PORTRAIT, largest first, and write a picture with their numbers."""
    from lynx_video.face.detect import choose_face, draw_faces, find_faces
    from lynx_video.face.quality import face_warnings
    from lynx_video.media.image import read_picture, write_picture
    from lynx_video.media.video import check_output

    console = Console(quiet=flags.quiet, as_json=flags.json)
    drawing = flags.output or Path(f"{portrait.stem}-faces.png")
    check_output(drawing, flags.overwrite, extensions=("png", "jpg", "jpeg"))
    if flags.record is not None:
        check_output(flags.record, flags.overwrite, extensions=("json",))
    picture = read_picture(portrait)
    model = ModelFlags(model=flags.model, models=flags.models)
    face = FaceFlags(face_detector=flags.face_detector, arcface=flags.arcface)
    eyes = face_models(model, face)
    found = find_faces(picture, eyes.detector())
    try:
        chosen = choose_face(found, flags.face_index)
    except NoFace as error:
        raise explained(error, portrait, model, face) from error
    warned = [face_warnings(picture, one) for one in found]
    if flags.record is not None:
        from lynx_video.draft import draft
        from lynx_video.face.align import arcface_crop
        from lynx_video.face.embed import embed_crop
        from lynx_video.face.record import write_record

        embedding = embed_crop(eyes.encoder(), arcface_crop(picture, chosen.points))
        with draft(flags.record) as partial:  # the record stays only if the picture could be written
            write_record(partial, chosen.points, embedding)
            write_picture(drawing, draw_faces(picture, found))
    else:
        write_picture(drawing, draw_faces(picture, found))

    lines, listed = [], list[dict[str, Any]]()
    for number, (one, warnings) in enumerate(zip(found, warned, strict=True)):
        left, top, right, bottom = one.box
        lines.append(
            f"{number}: {right - left:.0f}x{bottom - top:.0f} px at {left:.0f},{top:.0f}, score {one.score:.2f}"
            + "".join(f"\n   {warning}" for warning in warnings)
        )
        listed.append(
            {
                "number": number,
                "box": list(one.box),
                "points": one.points.tolist(),
                "score": one.score,
                "size": one.size,
                "warnings": warnings,
            }
        )
    lines.append(f"numbered picture: {drawing}")
    if flags.record is not None:
        lines.append(f"record of face {found.index(chosen)}: {flags.record}")
    record = str(flags.record) if flags.record else None
    console.result("\n".join(lines), {"faces": listed, "picture": str(drawing), "record": record})
