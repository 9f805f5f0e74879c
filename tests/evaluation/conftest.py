"""What the tests of the evaluation share: the planted folder, and Ray."""

import warnings

import pytest
from endpoint import endpoint  # noqa: F401 (a fixture)
from planted import plant


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """The folder; treat as read-only."""
    return plant(tmp_path_factory.mktemp("planted"))


@pytest.fixture(scope="session")
def ray_pool():
    """Ray with two workers, started once."""
    from lynx_video.pool import open_pool

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with open_pool(workers=2) as pool:
            yield pool
