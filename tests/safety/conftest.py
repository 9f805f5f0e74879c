"""What the tests of the gate share: classifiers made once, and copies of them with something wrong."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from classifiers import save_picture_classifier, save_text_classifier


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with the picture classifier where `lynx-video download safety` puts it, and a text classifier beside it."""
    folder = tmp_path_factory.mktemp("models")
    save_picture_classifier(folder / "safety_checker")
    save_text_classifier(folder / "texts")
    return folder


@pytest.fixture(scope="session")
def classifier(models: Path) -> Path:
    """The picture classifier's folder; do not change it."""
    return models / "safety_checker"


@pytest.fixture(scope="session")
def texts(models: Path) -> Path:
    """The text classifier's folder; do not change it."""
    return models / "texts"


@pytest.fixture
def spoil(tmp_path: Path) -> Callable[..., Path]:
    """spoil(folder, "config.json", change) copies a folder with one file changed: bytes -> bytes, or None to remove it."""

    def make(folder: Path, name: str, change: Callable[[bytes], bytes] | None) -> Path:
        copy = tmp_path / f"spoilt-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        if change is None:
            (copy / name).unlink()
        else:
            (copy / name).write_bytes(change((copy / name).read_bytes()))
        return copy

    return make
