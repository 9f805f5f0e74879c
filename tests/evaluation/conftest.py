"""What the tests of the evaluation share: the planted folder, and Ray."""

import pytest
from endpoint import endpoint  # noqa: F401 (a fixture)
from planted import plant


@pytest.fixture(scope="session")
def planted(tmp_path_factory):
    """The folder; treat as read-only."""
    return plant(tmp_path_factory.mktemp("planted"))
