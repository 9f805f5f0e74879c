"""What every test shares: one thread, no network, and the golden base with its adapters."""

import copy
import functools
import json
import pickle
import socket
import time
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

torch.set_num_threads(1)

GOLDEN = Path(__file__).parent / "golden"
LOOPBACK = ("127.0.0.1", "::1", "localhost", "0.0.0.0", None, "")
BEGAN = time.monotonic()


def pytest_addoption(parser):
    parser.addoption(
        "--begin-within",
        type=float,
        metavar="MINUTES",
        help="begin no test later than this after the first; those that are left are skipped, each by its name",
    )


def pytest_runtest_setup(item):
    limit = item.config.getoption("begin_within")
    if limit is not None and time.monotonic() - BEGAN > limit * 60:
        pytest.skip(f"not run: {item.name} was not begun within {limit:g} minutes")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Only this machine can be reached; what tries more fails at once, by name."""
    connect, lookup = socket.socket.connect, socket.getaddrinfo

    def guarded_connect(self, address):
        if self.family != socket.AF_UNIX and address[0] not in LOOPBACK:
            raise OSError(f"tests have no network: {address}")
        return connect(self, address)

    def guarded_lookup(host, *args, **kwargs):
        if (host.decode() if isinstance(host, bytes) else host) not in LOOPBACK:
            raise OSError(f"tests have no network: {host}")
        return lookup(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_lookup)
        yield


@pytest.fixture(autouse=True, scope="session")
def own_home(tmp_path_factory):
    """What belongs to a user, such as the development certificate, lies in a folder of the test run; also for processes it starts."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LYNX_VIDEO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def golden():
    """golden("lite") gives the tensors of that golden file, read once; treat them as read-only."""
    return functools.cache(lambda name: load_file(GOLDEN / f"{name}.safetensors"))


@pytest.fixture(scope="session")
def cases():
    """The settings of each golden generation, by name."""
    return {case["name"]: case for case in json.loads((GOLDEN / "cases.json").read_text())["cases"]}


@pytest.fixture(scope="session")
def stock_transformer():
    """stock_transformer(dtype) is the golden base with its stock processors, never touched.

    A copy: weights that lie in a mapped file are aligned otherwise in memory, which can change the last bit of a product.
    """
    from diffusers import WanTransformer3DModel

    @functools.cache
    def make(dtype=torch.float32):
        model = WanTransformer3DModel.from_pretrained(GOLDEN / "base", subfolder="transformer", torch_dtype=dtype)
        return copy.deepcopy(model).requires_grad_(False)

    return make


@pytest.fixture
def attached(stock_transformer):
    """attached("full") is that golden adapter on a transformer of its own."""
    from lynx_video.adapters.weights import BaseShape, inspect, load_adapter

    def make(arm="full", dtype=torch.float32, parts=None):
        files = inspect([GOLDEN / f"lynx_{arm}"], BaseShape(width=96, heads=4, blocks=4), parts)
        adapter = load_adapter(files, dtype=dtype)
        adapter.attach(copy.deepcopy(stock_transformer(dtype)))
        return adapter

    return make


@pytest.fixture(scope="session")
def load_golden():
    """load_golden("full", ...) loads the golden base and adapter anew, with the arguments of `load`."""
    from lynx_video import load

    def make(arm="full", dtype=torch.float32, **settings):
        return load(base=GOLDEN / "base", adapter=GOLDEN / f"lynx_{arm}", dtype=dtype, device="cpu", **settings)

    return make


@pytest.fixture(scope="session")
def full(load_golden):
    """The components of the golden full model; do not change them."""
    return load_golden("full")


@pytest.fixture(scope="session")
def lite(load_golden):
    """The components of the golden lite model; do not change them."""
    return load_golden("lite")


@pytest.fixture(scope="session")
def sitter(golden):
    """The identity of the golden portrait in a case."""
    from lynx_video.face.record import FaceRecord
    from lynx_video.pipeline.identify import identify
    from lynx_video.pipeline.models import photograph_faces

    def make(case="full_three_pass"):
        data = golden(case)
        record = FaceRecord(points=data["landmarks"].numpy(), embedding=data["face_embedding"].numpy())
        faces = photograph_faces(Path("models"))
        return identify(faces, GOLDEN / "subject.png", record=record, consent="public domain").identity

    return functools.cache(make)


@pytest.fixture(scope="session")
def tiny():
    """tiny(**changes) is a config of a clip that takes a tenth of a second: 5 frames of 64 px, two steps."""
    from lynx_video import GenerateConfig

    small = {"num_frames": 5, "height": 64, "width": 64, "num_inference_steps": 2, "negative_prompt": "static"}
    return lambda **changes: GenerateConfig(**(small | changes))


class Here:
    """A pool of one, in this process: work and jobs travel as they would to a worker."""

    def run(self, name, work, jobs, progress, *, use_gpus=False):  # noqa: ARG002 (the pool's signature)
        do = pickle.loads(pickle.dumps(work)).open() if jobs else None
        for number, job in enumerate(jobs, 1):
            do(pickle.loads(pickle.dumps(job)))
            progress(name, number, len(jobs))


@pytest.fixture(scope="session")
def here_pool():
    """A `lynx_video.pool.Pool` that does its work in this process."""
    return Here()


@pytest.fixture(scope="session")
def ray_pool():
    """Ray with two workers, started once and used by whatever runs beside it in this process."""
    from lynx_video.pool import open_pool

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_pool(workers=2) as pool:
            yield pool
