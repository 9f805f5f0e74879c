"""What clients send and get, as pydantic models: they check the fields and are the OpenAPI description."""

from __future__ import annotations

import ast
import inspect
from itertools import pairwise
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from lynx_video.config import GenerateConfig
from lynx_video.studio.request import LONGEST_PROMPT

PICTURE: dict[str, Any] = {
    "description": 'The portrait: a file (multipart), or in JSON a `data:` URL, or `{"image_url": "data:..."}`.',
    "anyOf": [
        {"type": "string", "description": "data:image/png;base64,..."},
        {
            "type": "object",
            "properties": {"image_url": {"type": "string"}},
            "required": ["image_url"],
            "additionalProperties": False,
        },
    ],
}
NOT_OFFERED = frozenset({"height", "width", "idle_models"})
"""Fields of GenerateConfig that are not asked for here: `size` says the first two, the third is how the server holds its model."""


class Form(BaseModel):
    """Fields that a client may send; others are refused."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=(), str_max_length=LONGEST_PROMPT)


class ClipForm(Form):
    """A clip that is wanted, but for the settings of its generation."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {
                "prompt": "a person smiles wearing a green shirt in front of a yellow wall",
                "input_reference": {"image_url": "data:image/png;base64,iVBORw0KGgo..."},
                "seed": 7,
            }
        }
    )

    prompt: str = Field(max_length=LONGEST_PROMPT, description="What the person does.")
    model: str | None = Field(None, description="The model that is served here; may be left out.")
    seconds: str | float | None = Field(None, description="Length; the nearest that the model can make.", examples=["4"])
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels; the model's own by default.", examples=["832x480"])
    input_reference: Any = Field(None, json_schema_extra=PICTURE)
    identity: str | None = Field(None, description="Id of an enrolled identity, instead of a portrait.")
    face_index: int | None = Field(None, description="Which face of the portrait, if there are several.")
    preset: str = Field("exact", description="exact, balanced, fast or draft: likeness for speed.")
    best_of: int = Field(1, description="Make so many clips, of successive seeds, and keep the best.")
    min_similarity: float | None = Field(None, description="A clip less alike than this is kept, and `lynx.missed` says so.")
    consent: str = Field(
        "", max_length=2000, description="Who agreed to the use of this face, and how; kept in the clip's record."
    )
    private: bool = Field(False, description="Keep prompt, file names and consent out of the clip's record, and forget them.")
    no_watermark: str = Field("", max_length=500, description="Reason for which the clip gets no invisible watermark.")

    def generation(self) -> dict[str, Any]:
        """What of GenerateConfig was named."""
        offered = set(GenerateConfig.__dataclass_fields__) - NOT_OFFERED
        return {name: value for name in offered if (value := getattr(self, name)) is not None}


def _offered() -> dict[str, Any]:
    """Fields of a form for those of GenerateConfig, with their types and what stands under them; None: as the model has it."""
    hints, found = get_type_hints(GenerateConfig), {}
    (tree,) = ast.parse(inspect.getsource(GenerateConfig)).body
    assert isinstance(tree, ast.ClassDef)
    for field, text in pairwise(tree.body):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(text, ast.Expr):
            hint = hints[field.target.id]
            blocks = frozenset in {get_origin(part) for part in get_args(hint)}
            found[field.target.id] = (
                (list[int] | str | None) if blocks else (hint | None),
                Field(None, description=ast.literal_eval(text.value)),
            )
    return {name: value for name, value in found.items() if name not in NOT_OFFERED}


VideoForm: type[ClipForm] = create_model("VideoForm", __base__=ClipForm, **_offered())
"""The same, with all settings of a generation."""


class IdentityForm(Form):
    """A person to be enrolled."""

    portrait: Any = Field(None, json_schema_extra=PICTURE)
    face_index: int | None = Field(None, description="Which face of the portrait, if there are several.")
    name: str = Field("", max_length=100, description="What you call this person; only shown to you.")
    consent: str = Field("", max_length=2000, description="Who agreed to the use of this face, and how.")


class FacesForm(Form):
    """A picture to be looked at."""

    portrait: Any = Field(None, json_schema_extra=PICTURE)


class FaceObject(BaseModel):
    """A face that was found. box: left, top, right, bottom in pixels. warnings: what about it costs likeness."""

    index: int
    box: list[float]
    score: float
    warnings: list[str]


class FailureObject(BaseModel):
    """Why a job failed."""

    code: str
    message: str


class LynxObject(BaseModel):
    """What OpenAI's shape has no place for. eta_seconds: until the end, by what clips took lately; position: how many wait before."""

    model_config = ConfigDict(extra="allow")

    seed: int | None = None
    num_frames: int | None = None
    fps: float | None = None
    preset: str | None = None
    best_of: int | None = None
    identity: str | None = None
    portrait: str | None = None
    position: int | None = None
    step: int = 0
    steps: int = 0
    eta_seconds: float | None = None
    preview: str | None = None
    work_seconds: float | None = None
    similarity: float | None = None
    coverage: float | None = None
    judge: str | None = None
    missed: str | None = None
    warnings: list[str] = []
    settings: dict[str, Any] | None = None


class VideoObject(BaseModel):
    """A clip, wanted, in the making or made."""

    id: str
    object: Literal["video"] = "video"
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    progress: int
    seconds: str
    size: str
    created_at: int
    started_at: int | None = None
    completed_at: int | None = None
    expires_at: int | None = None
    error: FailureObject | None = None
    prompt: str | None = None
    remixed_from_video_id: str | None = None
    lynx: LynxObject


class IdentityObject(BaseModel):
    """A person, being enrolled or enrolled. face: number of the one of `faces` that was taken."""

    id: str
    object: Literal["identity"] = "identity"
    name: str
    model: str
    status: Literal["queued", "in_progress", "completed", "failed"]
    created_at: int
    completed_at: int | None = None
    error: FailureObject | None = None
    consent: str
    portrait: str | None = None
    face: int
    faces: list[FaceObject]
    warnings: list[str] = []


class Deleted(BaseModel):
    """Something that is gone."""

    id: str
    object: Literal["video.deleted", "identity.deleted"]
    deleted: bool = True


class VideoList(BaseModel):
    """A page of clips."""

    object: Literal["list"] = "list"
    data: list[VideoObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class IdentityList(BaseModel):
    """A page of identities."""

    object: Literal["list"] = "list"
    data: list[IdentityObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class FaceList(BaseModel):
    """The faces of a picture, largest first."""

    object: Literal["list"] = "list"
    data: list[FaceObject]


class ModelObject(BaseModel):
    """A model that is served. defaults: what a clip is if nothing else is asked."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str
    defaults: dict[str, Any]
    presets: list[str]


class ModelList(BaseModel):
    """What is served."""

    object: Literal["list"] = "list"
    data: list[ModelObject]


class Health(BaseModel):
    """How a service is."""

    status: Literal["ok", "ready"]
    workers: int | None = None


class ErrorObject(BaseModel):
    """What went wrong. param: the field that is to blame."""

    model_config = ConfigDict(extra="allow")

    message: str
    type: str
    code: str
    param: str | None = None


class ErrorBody(BaseModel):
    """An error's answer."""

    error: ErrorObject
