"""A set made on Ray is the same as one made in one process, and can be read as a stream."""

import json
from pathlib import Path

import pytest
from sources import NANO, contents, dropped, fill, shelf_in

from lynx_video.training.dataset.config import DatasetConfig

# What Ray and its own libraries warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def streamed(drawn, build_here, ray_pool, tmp_path_factory):  # noqa: ARG001 (Ray runs, and is used because it does)
    """A set of 24 items with planted faults: its folder, and that of the same set made in one process."""
    from lynx_video.training.dataset.build import build

    folder = tmp_path_factory.mktemp("streamed")
    shelve = shelf_in(folder / "source")
    fill(shelve, drawn, people=5, clips=3, photos=1)
    shelve("lonely.mp4", drawn.clips[0][5], "a person nods")
    shelve("silent.mp4", drawn.clips[1][5])
    shelve("short.mp4", drawn.clips[2][5][:4], "a person nods")
    (shelve.root / "broken.mp4").write_bytes(b"no video")
    config = DatasetConfig(same_person=0.8, augment="light,jitter", references=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where the workers are not
        build(Path("source"), Path("ray"), config, name="nano", survey=NANO)
    build_here(shelve.root, folder / "here", augment="light,jitter", references=2)
    return folder


@pytest.mark.slow
def test_on_ray_a_set_is_what_it_is_in_one_process(streamed):
    assert contents(streamed / "ray") == contents(streamed / "here")
    assert {item: reason for item, (reason, _) in dropped(streamed / "ray").items()} == {
        "broken.mp4": "no caption",
        "lonely.mp4": "one photo only",
        "short.mp4": "too short",
        "silent.mp4": "no caption",
    }


def test_a_set_can_be_read_as_a_stream(streamed):
    import webdataset
    from safetensors.torch import load

    from lynx_video.training.shards import Shards

    opened = Shards(streamed / "ray")
    shards = sorted(map(str, (streamed / "ray" / "shards").glob("*.tar")))
    found = list(webdataset.WebDataset(shards, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [entry.key for entry in opened.entries]
    assert len(found) == 30
    for sample, entry in zip(found, opened.entries, strict=True):
        assert set(sample) >= {"safetensors", "json"}
        words, tensors, example = json.loads(sample["json"]), load(sample["safetensors"]), opened.read(entry)
        assert (words["caption"], words["person"]) == (example.caption, example.person)
        assert tensors["latents"].equal(example.latents)
