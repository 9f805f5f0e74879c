"""What the tests of the service share: databases of both kinds, an app in this process, one loaded model, and a portrait."""

import io
import os
import shutil
import subprocess
import tempfile
import uuid
from contextlib import contextmanager
from pathlib import Path

import pytest

from lynx_video.server.config import ServeFlags, StoreFlags
from lynx_video.studio.setup import Setup

QUICK = {"num_frames": 5, "num_inference_steps": 4}
"""A clip that takes a fraction of a second."""


@pytest.fixture(scope="session")
def postgres():
    """A PostgreSQL server of this test run, reached by a socket in its own folder: postgres() is the address of a new database."""
    found = shutil.which("initdb")
    programs = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        pytest.skip("no PostgreSQL server is installed here (apt-get install postgresql)")
    import pwd

    import psycopg

    who = {}
    if os.geteuid() == 0:  # it refuses to run as root
        names = {one.pw_name for one in pwd.getpwall()}
        who = {"user": "postgres" if "postgres" in names else "nobody"}
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))  # a socket's path must be short
    if who:
        shutil.chown(folder, who["user"])
    bins, quiet = programs[-1], {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **who}
    data = folder / "data"
    subprocess.run([bins / "initdb", "-D", data, "-U", "lynx", "-A", "trust", "-N"], check=True, **quiet)
    options = f"-c listen_addresses='' -k {folder} -c fsync=off"
    subprocess.run([bins / "pg_ctl", "-D", data, "-w", "-o", options, "start"], check=True, **quiet)

    def new():
        name = f"t{uuid.uuid4().hex}"
        with psycopg.connect(f"postgresql://lynx@/postgres?host={folder}", autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")
        return f"postgresql://lynx@/{name}?host={folder}"

    try:
        yield new
    finally:
        subprocess.run([bins / "pg_ctl", "-D", data, "-m", "immediate", "stop"], check=True, **quiet)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request, tmp_path):
    """Where a service keeps its things, with each kind of database."""
    url = request.getfixturevalue("postgres")() if request.param == "postgresql" else None
    return StoreFlags(data=tmp_path / "data", database=url)


@pytest.fixture
def database(store):
    """An open database that waits a fifth of a second for locks."""
    from lynx_video.server.database import open_database

    opened = open_database(store, busy=0.2)
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def portrait():
    """The bytes of a PNG with one drawn face."""
    return png(face(1))


@pytest.fixture(scope="session")
def crowd():
    """The bytes of a PNG with two drawn faces."""
    import numpy as np

    return png(np.concatenate([face(1), face(2)], axis=1))


@pytest.fixture(scope="session")
def studio():
    """Nano, loaded."""
    from lynx_video.studio.studio import Studio

    loaded = Studio(Setup())
    loaded.open()
    return loaded


@pytest.fixture
def serving(tmp_path):
    """serving(**flags) is a service in this process, over SQLite, without workers; its desk is open."""
    from lynx_video.server.database import open_database
    from lynx_video.server.service import make_service

    opened = []

    @contextmanager
    def kept(flags):
        store = StoreFlags(data=tmp_path / f"data{len(opened)}")
        database = open_database(store, busy=0.3)
        try:
            service = make_service(store, flags, Setup(), database)
            service.desk.open()
            yield service
        finally:
            database.close()

    def make(**flags):
        entered = kept(ServeFlags(**flags))
        opened.append(entered)
        return entered.__enter__()

    yield make
    for one in opened:
        one.__exit__(None, None, None)


@pytest.fixture
def asking(serving):
    """asking(**flags) is a client of such a service; `.service` is the service."""
    from starlette.testclient import TestClient

    from lynx_video.server.app import make_app

    clients = []

    def make(**flags):
        service = serving(**flags)
        client = TestClient(make_app(service), base_url="http://127.0.0.1", raise_server_exceptions=False)
        client.__enter__()
        client.service = service
        clients.append(client)
        return client

    yield make
    for one in clients:
        one.__exit__(None, None, None)


@pytest.fixture
def worker(studio):
    """worker(service) is a worker in this process; `turn()` does one job."""
    from lynx_video.server.worker import Worker

    def make(service, name="w1", lease=15.0):
        return Worker(name, service.database, service.folder, studio, lease)

    return make


@pytest.fixture
def at_first_event(monkeypatch):
    """at_first_event(call) lets `call` run in a thread of its own as soon as a stream of events sent one; the looks come fast."""
    import threading

    from lynx_video.server import events

    told, threads = events._event, []
    monkeypatch.setattr(events, "LOOK_SECONDS", 0.01)

    def make(call):
        def telling(name, data):
            if not threads:
                threads.append(threading.Thread(target=call))
                threads[0].start()
            return told(name, data)

        monkeypatch.setattr(events, "_event", telling)

    yield make
    for one in threads:
        one.join()


def face(seed):
    """uint8 [H, W, 3], a drawn person."""
    from lynx_video.nano.people import portrait

    return portrait(seed)


def png(picture):
    """A picture as the bytes of a PNG."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()
