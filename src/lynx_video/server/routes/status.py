"""The service itself: what is served, whether it lives, whether it can work, and its meters."""

from __future__ import annotations

from fastapi import APIRouter, Response

from lynx_video.server.faults import SOON, ApiError
from lynx_video.server.forms import Health, ModelList, ModelObject
from lynx_video.server.routes.description import refusals
from lynx_video.server.service import Owner, Served, Service

router = APIRouter(tags=["service"])


@router.get("/v1/models", response_model=ModelList, responses=refusals(), summary="What is served")
def list_models(owner: Owner, service: Served) -> ModelList:  # noqa: ARG001 (asked for the key)
    """The model, what a clip of it is by default, and the presets."""
    return ModelList(data=[_model(service)])


@router.get("/v1/models/{model}", response_model=ModelObject, responses=refusals(404), summary="One model")
def get_model(model: str, owner: Owner, service: Served) -> ModelObject:  # noqa: ARG001 (asked for the key)
    """The same, by name."""
    if model != service.desk.model:
        raise ApiError(404, f"the model {model[:100]!r} is not served here.", code="model_not_found", param="model")
    return _model(service)


def _model(service: Service) -> ModelObject:
    desk = service.desk
    return ModelObject(
        id=desk.model, created=int(desk.opened), owned_by="lynx-video", defaults=desk.defaults(), presets=desk.presets()
    )


@router.get("/health", response_model=Health, response_model_exclude_none=True, summary="Alive")
async def health() -> Health:
    """This process answers, also when all its threads wait for the database."""
    return Health(status="ok")


@router.get("/ready", response_model=Health, responses=refusals(), summary="Able to work")
def ready(service: Served) -> Health:
    """The database answers, and a worker has its model loaded."""
    workers = service.crew.ready()
    if not workers or service.closing:
        raise ApiError(503, "no worker is ready yet.", code="not_ready", headers={"Retry-After": str(SOON)})
    return Health(status="ready", workers=workers)


@router.get(
    "/metrics",
    response_class=Response,
    responses={**refusals(), 200: {"content": {"text/plain": {}}, "description": "Prometheus's text format."}},
    summary="Meters",
)
def metrics(owner: Owner, service: Served) -> Response:  # noqa: ARG001 (asked for the key)
    """For Prometheus."""
    from prometheus_client import CONTENT_TYPE_LATEST

    return Response(service.meters.page(), media_type=CONTENT_TYPE_LATEST)
