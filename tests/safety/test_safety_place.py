"""Where classifiers are found: folders, what `lynx-video download safety` fetched from a hub on this machine, the hub's cache."""

from __future__ import annotations

import json
import shlex
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from classifiers import BLUE, RED

from lynx_video.assets import ASSETS
from lynx_video.cli.main import run as command
from lynx_video.download import RECORD
from lynx_video.errors import BadWeights, LynxError, MissingDependency
from lynx_video.safety import PictureClassifier, TextClassifier, load_safety_checker
from lynx_video.safety.place import DOWNLOAD_RECORD, PICTURES, PROMPTS, in_models, place_of
from test_download import Hub

COMMIT = "5" * 40
OTHER = "somebody/other.checker"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, classifier: Path) -> Iterator[Hub]:
    """A hub on this machine that has the toy classifier under the published one's name and another; and an empty cache."""
    import huggingface_hub
    from huggingface_hub import constants

    files = {file.name: file.read_bytes() for file in classifier.iterdir()}
    with Hub() as server:
        server.repos = {PICTURES.hub_id: files, OTHER: files}
        server.commits = {PICTURES.hub_id: ASSETS["safety"].sources[0].revision, OTHER: COMMIT}
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


def into_cache(hub: Hub, repo: str, cache: Path) -> None:
    from huggingface_hub import hf_hub_download

    for name in PICTURES.files:
        hf_hub_download(repo, name, cache_dir=cache, endpoint=hub.address)


def test_the_table_of_downloads_says_the_same() -> None:
    asset = ASSETS[PICTURES.asset]
    assert (asset.folder, asset.sources[0].repo) == (PICTURES.folder, PICTURES.hub_id)
    assert set(asset.sources[0].patterns) == set(PICTURES.files)
    assert DOWNLOAD_RECORD == RECORD


def test_the_command_that_is_named_gets_what_is_missing(hub: Hub, tmp_path: Path) -> None:
    models = tmp_path / "models of mine"
    for setting in (PICTURES.hub_id, None):
        with pytest.raises(MissingDependency, match=r"or do without it: --safety-checker off") as caught:
            place_of(PICTURES, setting, models) if setting else in_models(PICTURES, models)
    assert hub.requests == []  # nothing is fetched unasked
    line = str(caught.value).split("`")[1]
    assert line.startswith("lynx-video download safety --models ")
    assert command([*shlex.split(line)[1:], "--yes", "--quiet"]) == 0
    for place in (place_of(PICTURES, PICTURES.hub_id, models), in_models(PICTURES, models)):
        assert place.folder == models / PICTURES.folder
        assert (place.name, place.commit) == (PICTURES.hub_id, ASSETS["safety"].sources[0].revision)
        checker = PictureClassifier(place)
        assert checker(RED) > 0.9 > 0.1 > checker(BLUE)
        assert checker.record() == {
            "checker": PICTURES.hub_id,
            "commit": ASSETS["safety"].sources[0].revision,
            "sha256": place.sha256,
            "labels": ["nsfw"],
        }


@pytest.mark.usefixtures("hub")
def test_a_changed_byte_of_a_download_is_noticed(tmp_path: Path) -> None:
    assert command(["download", "safety", "--models", str(tmp_path), "--yes", "--quiet"]) == 0
    weights = tmp_path / PICTURES.folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1  # still a whole file of numbers
    weights.write_bytes(content)
    with pytest.raises(BadWeights, match=rf"damaged, its sha256.*run `lynx-video download safety --models {tmp_path}` again"):
        PictureClassifier(in_models(PICTURES, tmp_path))


def test_a_folder_of_another_model_is_not_taken_for_a_hub_id(hub: Hub, tmp_path: Path, classifier: Path) -> None:
    shutil.copytree(classifier, tmp_path / PICTURES.folder)  # no record: whose it is nobody knows
    with pytest.raises(MissingDependency, match="neither a folder nor a hub model"):
        place_of(PICTURES, PICTURES.hub_id, tmp_path)
    assert in_models(PICTURES, tmp_path).name == PICTURES.folder  # `auto` means this very folder
    assert hub.requests == []


def test_the_hubs_cache(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(MissingDependency) as caught:
        place_of(PICTURES, OTHER, tmp_path)
    files = "config.json preprocessor_config.json model.safetensors"
    assert f"`hf download {OTHER} {files}`, or do without it: --safety-checker off" in str(caught.value)
    assert hub.requests == []

    into_cache(hub, OTHER, tmp_path / "cache")
    asked = len(hub.requests)
    for setting in (OTHER, f"{OTHER}@main", f"{OTHER}@{COMMIT}"):
        place = place_of(PICTURES, setting, tmp_path)
        assert (place.name, place.commit) == (OTHER, COMMIT)
    checker = PictureClassifier(place)
    assert checker(RED) > 0.9 > 0.1 > checker(BLUE)
    assert checker.record()["sha256"] == place.sha256 != ""
    assert len(hub.requests) == asked

    with pytest.raises(MissingDependency, match=f"hf download {OTHER} .* --revision v2"):
        place_of(PICTURES, f"{OTHER}@v2", tmp_path)
    with pytest.raises(
        MissingDependency, match=f"hf download {OTHER} config.json tokenizer.json model.safetensors`.*--prompt-checker off"
    ):
        place_of(PROMPTS, OTHER, tmp_path)  # it has no tokenizer

    blob = (place.folder / "model.safetensors").resolve()
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.write_bytes(content)
    with pytest.raises(BadWeights, match=rf"damaged, its sha256.*remove {blob} and run `hf download {OTHER}"):
        PictureClassifier(place_of(PICTURES, OTHER, tmp_path))


def test_the_published_one_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    into_cache(hub, PICTURES.hub_id, tmp_path / "cache")
    assert place_of(PICTURES, PICTURES.hub_id, tmp_path / "models").folder.is_relative_to(tmp_path / "cache")
    with pytest.raises(MissingDependency):  # `auto` is the models folder, the same for everyone
        in_models(PICTURES, tmp_path / "models")


def test_a_folder_comes_first(classifier: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(classifier, tmp_path / "owner" / "name")
    assert place_of(PICTURES, "owner/name", "models").folder == Path("owner/name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert place_of(PICTURES, "~/owner/name", "models").folder == tmp_path / "owner" / "name"


@pytest.mark.parametrize("setting", ["nowhere", "/nowhere/at/all", "a/b/c", "./a", "https://example.org/a", "owner/na--me"])
def test_what_is_neither_folder_nor_hub_id(setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(BadWeights, match="no such folder"):
        place_of(PICTURES, setting, tmp_path)


@pytest.mark.parametrize(
    "record", ["{", "[]", "{}", '{"files": {"model.safetensors": {"repo": 3}}}', '{"files": {"model.safetensors": []}}']
)
def test_a_record_that_says_nothing(record: str, classifier: Path, spoil: Callable[..., Path]) -> None:
    folder = spoil(classifier, "config.json", lambda content: content)
    (folder / DOWNLOAD_RECORD).write_text(record)
    assert load_safety_checker(folder).record()["commit"] is None


def test_a_downloaded_prompt_checker_names_its_own_command(texts: Path, spoil: Callable[..., Path]) -> None:
    folder = spoil(texts, "tokenizer.json", None)
    entry = {"repo": "owner/texts", "commit": COMMIT, "sha256": "0" * 64}
    (folder / DOWNLOAD_RECORD).write_text(json.dumps({"files": {"model.safetensors": entry}}))
    with pytest.raises(LynxError, match=r"hf download owner/texts config\.json tokenizer\.json model\.safetensors"):
        TextClassifier(place_of(PROMPTS, str(folder), "models"))
