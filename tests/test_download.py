"""Downloading from a small hub on this machine: listing, redirects, ranges, checksums, and all that goes wrong on the way."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import torch
from safetensors.torch import load_file, save_file

from lynx_video import hub
from lynx_video.assets import ASSETS, Source
from lynx_video.download import RECORD, Plan, Progress, plan, run
from lynx_video.errors import BadRequest, BadWeights, Cancelled, LynxError
from lynx_video.shards import KEEP_FLOAT32, tensor_bytes, to_bfloat16, update_index

SAFETY = "Falconsai/nsfw_image_detection"
BASE = "Wan-AI/Wan2.1-T2V-14B-Diffusers"
LYNX = "ByteDance/lynx"


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Hub(ThreadingHTTPServer):
    """Repositories in memory, served as the hub serves them: large files by a redirect to another path, ranges, checksums."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.cuts: dict[str, list[int]] = {}  # file name -> after how many bytes the next answers break off
        self.corrupt: set[str] = set()
        self.status: dict[str, int] = {}  # part of a path -> status
        self.error_code = ""
        self.bare_listing = False
        self.address = f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Silent: clients hang up in these tests, that is what they are about."""

    def fetched(self) -> list[str]:
        """Names of the files whose bytes were asked for."""
        return [path.rsplit("/", 1)[-1] for method, path, _ in self.requests if method == "GET" and "/api/" not in path]


class Answer(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def send(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def answer(self) -> None:
        path = unquote(urlsplit(self.path).path)
        asked = self.headers.get("Range", "")
        self.server.requests.append((self.command, path, asked))
        for part, status in self.server.status.items():
            if part in path:
                return self.send(
                    status, b'{"error": "no"}', **({"X_Error_Code": self.server.error_code} if self.server.error_code else {})
                )
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            return self.listing(match[1])
        if match := re.fullmatch(r"(/store)?/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self.file(match[2], match[4], stored=bool(match[1]), asked=asked)
        return self.send(404)

    def listing(self, repo: str) -> None:
        if repo not in self.server.repos:
            return self.send(404, X_Error_Code="RepoNotFound")
        siblings = []
        for name, content in self.server.repos[repo].items():
            entry: dict[str, Any] = {"rfilename": name}
            if not self.server.bare_listing:
                blob = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
                entry |= {"size": len(content), "blobId": blob}
                if is_large(name):
                    entry["lfs"] = {"sha256": sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(entry)
        body = {"id": repo, "modelId": repo, "sha": self.server.commits[repo], "siblings": siblings, "tags": []}
        return self.send(200, json.dumps(body).encode(), Content_Type="application/json")

    def file(self, repo: str, name: str, stored: bool, asked: str) -> None:
        content = self.server.repos.get(repo, {}).get(name)
        if content is None:
            return self.send(404, X_Error_Code="EntryNotFound")
        commit = {"X_Repo_Commit": self.server.commits[repo]}
        if is_large(name) and not stored:
            linked = {"X_Linked_Etag": f'"{sha256(content)}"', "X_Linked_Size": str(len(content))}
            return self.send(302, Location=f"{self.server.address}/store{self.path}", **linked, **commit)
        tag = sha256(content) if stored else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        body = content[:-1] + bytes([content[-1] ^ 1]) if name in self.server.corrupt else content
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        if start >= len(body) and start:
            return self.send(416)
        span = {"Content_Range": f"bytes {start}-{len(body) - 1}/{len(body)}"} if asked else {}
        body = body[start:]
        cuts = self.server.cuts.get(name)
        if cuts and self.command == "GET":
            self.close_connection = True
            length = str(len(body))
            return self.send(
                206 if asked else 200, body[: cuts.pop(0)], Content_Length=length, ETag=f'"{tag}"', **commit, **span
            )
        return self.send(206 if asked else 200, body, ETag=f'"{tag}"', **commit, **span)


def is_large(name: str) -> bool:
    return name.endswith((".safetensors", ".pth", ".onnx"))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    import huggingface_hub
    from huggingface_hub import constants

    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        monkeypatch.setenv("HF_ENDPOINT", server.address)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(hub, "RETRY_SECONDS", 0.0)
        huggingface_hub.close_session()
        yield server
        huggingface_hub.close_session()
        server.shutdown()
        thread.join()


@pytest.fixture
def safety(server: Hub) -> dict[str, bytes]:
    """The safety repository: three files that are wanted and two that are not."""
    files = {
        "config.json": b'{"id2label": {}}',
        "preprocessor_config.json": b"{}",
        "model.safetensors": bytes(range(256)) * 3000,
        "optimizer.pt": b"x" * 1000,
        "README.md": b"# hello",
    }
    server.repos[SAFETY], server.commits[SAFETY] = files, ASSETS["safety"].sources[0].revision
    return files


def folder_of(models: Path, asset: str) -> Path:
    return models / ASSETS[asset].folder


@pytest.mark.usefixtures("safety")
def test_plan_shows_everything_and_writes_nothing(server: Hub, tmp_path: Path) -> None:
    planned = plan("safety", tmp_path / "models")
    assert [file.path.name for file in planned.files] == ["config.json", "preprocessor_config.json", "model.safetensors"]
    assert planned.bytes == planned.disk == 16 + 2 + 768_000
    text = str(planned)
    for part in ("Apache-2.0", SAFETY, "04367978d347", "model.safetensors", "768.0 kB", "safety_checker"):
        assert part in text
    assert not (tmp_path / "models").exists()
    # The pinned commit is what was asked for.
    assert server.requests[0][1].endswith(f"/revision/{ASSETS['safety'].sources[0].revision}")


def test_download_and_second_run(server: Hub, safety: dict[str, bytes], tmp_path: Path) -> None:
    seen: list[Progress] = []
    outcomes = run(plan(["safety"], tmp_path), seen.append)
    folder = folder_of(tmp_path, "safety")
    assert {each.action for each in outcomes} == {"fetched"}
    assert sorted(p.name for p in folder.iterdir()) == [RECORD, "config.json", "model.safetensors", "preprocessor_config.json"]
    for name in ("config.json", "model.safetensors"):
        assert (folder / name).read_bytes() == safety[name]
    fetched = [each.done for each in seen if each.stage == "fetch" and each.path.name == "model.safetensors"]
    assert fetched == sorted(fetched)
    assert fetched[-1] == 768_000
    record = json.loads((folder / RECORD).read_text())
    assert record["complete"] is True
    entry = record["files"]["model.safetensors"]
    assert (entry["sha256"], entry["commit"], entry["repo"]) == (
        sha256(safety["model.safetensors"]),
        ASSETS["safety"].sources[0].revision,
        SAFETY,
    )

    # A pinned and complete folder is checked without a word to the hub.
    server.requests.clear()
    server.shutdown()
    again = plan("safety", tmp_path)
    assert again.bytes == again.disk == 0
    assert "(here)" in str(again)
    assert {each.action for each in run(again)} == {"kept"}
    assert server.requests == []


@pytest.mark.parametrize("same_size", [True, False])
def test_second_run_replaces_what_is_damaged(server: Hub, safety: dict[str, bytes], tmp_path: Path, same_size: bool) -> None:
    run(plan("safety", tmp_path))
    weights = folder_of(tmp_path, "safety") / "model.safetensors"
    weights.write_bytes(bytes(768_000) if same_size else b"short")
    server.requests.clear()
    outcomes = {each.path.name: each.action for each in run(plan("safety", tmp_path))}
    assert outcomes == {"config.json": "kept", "preprocessor_config.json": "kept", "model.safetensors": "replaced"}
    assert set(server.fetched()) == {"model.safetensors"}
    assert weights.read_bytes() == safety["model.safetensors"]


def test_a_file_that_came_another_way_is_adopted(server: Hub, safety: dict[str, bytes], tmp_path: Path) -> None:
    folder = folder_of(tmp_path, "safety")
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(safety["model.safetensors"])
    planned = plan("safety", tmp_path)
    assert planned.bytes == 18
    outcomes = {each.path.name: each.action for each in run(planned)}
    assert outcomes["model.safetensors"] == "kept"
    assert "model.safetensors" not in server.fetched()
    assert "model.safetensors" in json.loads((folder / RECORD).read_text())["files"]


def test_a_cut_connection_is_taken_up_again(server: Hub, safety: dict[str, bytes], tmp_path: Path) -> None:
    server.cuts["model.safetensors"] = [300_000, 100_000]
    run(plan("safety", tmp_path))
    assert (folder_of(tmp_path, "safety") / "model.safetensors").read_bytes() == safety["model.safetensors"]
    starts = [int(asked[6:-1]) for method, path, asked in server.requests if method == "GET" and "/store" in path and asked]
    assert len(starts) == 2
    assert 0 < starts[0] <= 300_000 < starts[1] <= 400_000


def test_the_next_run_goes_on_after_a_broken_one(server: Hub, safety: dict[str, bytes], tmp_path: Path) -> None:
    server.cuts["model.safetensors"] = [300_000] + [0] * 20
    with pytest.raises(LynxError, match=r"model\.safetensors.*cannot be reached or keeps breaking off.*kept") as caught:
        run(plan("safety", tmp_path))
    assert caught.value.exit_code == 1
    folder = folder_of(tmp_path, "safety")
    assert not (folder / "model.safetensors").exists()
    assert json.loads((folder / RECORD).read_text())["complete"] is False
    server.cuts.clear()
    server.requests.clear()
    planned = plan("safety", tmp_path)
    assert 0 < planned.bytes < 768_000
    outcomes = {each.path.name: each.action for each in run(planned)}
    assert outcomes == {"config.json": "kept", "preprocessor_config.json": "kept", "model.safetensors": "fetched"}
    assert [asked for _, path, asked in server.requests if "/store" in path and asked] != []
    assert server.fetched() == ["model.safetensors"] * 2  # the redirect and where it leads
    assert (folder / "model.safetensors").read_bytes() == safety["model.safetensors"]
    assert not list(folder.glob(".*.part"))


def test_cancelling_keeps_what_arrived(safety: dict[str, bytes], tmp_path: Path) -> None:
    def stop(progress: Progress) -> None:
        if progress.path.name == "model.safetensors" and progress.stage == "fetch":
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(plan("safety", tmp_path), stop)
    assert len(list(folder_of(tmp_path, "safety").glob(".model.safetensors.*.part"))) == 1
    run(plan("safety", tmp_path))
    assert (folder_of(tmp_path, "safety") / "model.safetensors").read_bytes() == safety["model.safetensors"]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_wrong_checksum_is_refused_and_removed(server: Hub, safety: dict[str, bytes], tmp_path: Path, name: str) -> None:
    server.corrupt.add(name)
    with pytest.raises(LynxError, match=rf"{name}: (sha256|git checksum) .* instead of"):
        run(plan("safety", tmp_path))
    folder = folder_of(tmp_path, "safety")
    assert not (folder / name).exists()
    assert not list(folder.glob(f".{name}*"))
    server.corrupt.clear()
    run(plan("safety", tmp_path))
    assert (folder / name).read_bytes() == safety[name]


@pytest.mark.usefixtures("safety")
def test_a_listing_without_sizes_is_completed_by_head_requests(server: Hub, tmp_path: Path) -> None:
    server.bare_listing = True
    planned = plan("safety", tmp_path)
    assert planned.bytes == 768_018
    server.corrupt.add("model.safetensors")
    with pytest.raises(LynxError, match="sha256"):
        run(planned)


def test_adapters_of_one_repository_and_a_moving_branch(server: Hub, tmp_path: Path) -> None:
    server.repos[LYNX] = {
        f"lynx_{arm}/{name}.safetensors": f"{arm} {name}".encode() for arm in ("full", "lite") for name in "ab"
    }
    server.repos[LYNX]["README.md"] = b""
    server.commits[LYNX] = "a" * 40
    run(plan(["full", "lite"], tmp_path))
    said = str(plan(["full", "lite"], tmp_path))
    assert said.count(f"from: {LYNX} at aaaaaaaaaaaa (not pinned: main as it is now; the commit is recorded)") == 2
    for arm in ("full", "lite"):
        assert (tmp_path / f"lynx_{arm}" / "b.safetensors").read_bytes() == f"{arm} b".encode()
        assert json.loads((tmp_path / f"lynx_{arm}" / RECORD).read_text())["files"]["a.safetensors"]["commit"] == "a" * 40
    # The branch moves: only the file that changed is fetched again.
    server.repos[LYNX]["lynx_full/b.safetensors"], server.commits[LYNX] = b"newer", "b" * 40
    server.requests.clear()
    outcomes = {each.path.name: each.action for each in run(plan("full", tmp_path))}
    assert outcomes == {"a.safetensors": "kept", "b.safetensors": "replaced"}
    assert set(server.fetched()) == {"b.safetensors"}


def test_pinned_checksums_stand_above_what_the_hub_says(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arcface, detector = ASSETS["face"].sources
    for source in (arcface, detector):
        server.repos[source.repo], server.commits[source.repo] = {source.patterns[0]: b"something else"}, source.revision
    with pytest.raises(LynxError, match="sha256"):
        run(plan("face", tmp_path))
    for source in (arcface, detector):
        monkeypatch.setitem(source.sha256, source.patterns[0], sha256(b"something else"))
    run(plan("face", tmp_path))
    assert sorted(p.relative_to(tmp_path / "face").as_posix() for p in (tmp_path / "face").rglob("*.*n*x")) == [
        "buffalo_l/det_10g.onnx"
    ]
    assert (tmp_path / "face" / "recognition_arcface_ir_se50.pth").read_bytes() == b"something else"


@pytest.mark.parametrize(
    ("part", "status", "code", "why"),
    [
        ("/api/", 404, "RepoNotFound", r"Falconsai/nsfw_image_detection: not found"),
        ("/api/", 404, "RevisionNotFound", "has no revision 04367978"),
        ("/api/", 401, "", "refuses access.*HF_TOKEN"),
        ("/api/", 403, "GatedRepo", "refuses access.*licence"),
        ("/api/", 500, "", "answered 500"),
        ("/resolve/", 404, "EntryNotFound", r"config\.json: not found"),
        ("/resolve/", 403, "GatedRepo", r"config\.json.*refuses access"),
        ("/resolve/", 503, "", "answered 503"),
    ],
)
@pytest.mark.usefixtures("safety")
def test_refusals_of_the_hub(server: Hub, tmp_path: Path, part: str, status: int, code: str, why: str) -> None:
    server.status[part], server.error_code = status, code
    with pytest.raises(LynxError, match=why) as caught:
        run(plan("safety", tmp_path))
    assert "\n" not in str(caught.value)
    assert not isinstance(caught.value, BadRequest)


def test_nobody_there_and_nonsense_there(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(LynxError, match=r"http://127\.0\.0\.1:9 cannot be reached.*HF_ENDPOINT"):
        plan("safety", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", "my-mirror")
    with pytest.raises(BadRequest, match="HF_ENDPOINT is 'my-mirror'"):
        plan("safety", tmp_path)
    monkeypatch.setenv("HF_ENDPOINT", server.address + "/")
    server.repos[SAFETY], server.commits[SAFETY] = {"../../evil": b"x"}, "c" * 40
    with pytest.raises(LynxError, match="leads out of the folder"):
        plan("safety", tmp_path)
    server.repos[SAFETY] = {"README.md": b"x"}
    with pytest.raises(LynxError, match=r"nothing at c+ matches config\.json"):
        plan("safety", tmp_path)


def test_unknown_names(tmp_path: Path) -> None:
    for names in ("medium", ["full", "medium"], []):
        with pytest.raises(BadRequest, match="base, full, lite, face, safety and all"):
            plan(names, tmp_path)


def test_all_is_everything(server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    real = hub.list_files
    monkeypatch.setattr("lynx_video.download.list_files", lambda repo, rev: listed.append(repo) or real(repo, rev))
    for asset in ASSETS.values():
        for source in asset.sources:
            server.commits[source.repo] = "d" * 40
            server.repos.setdefault(source.repo, {})[source.patterns[0].replace("*", "x.json")] = b"{}"
    planned = plan("all", tmp_path)
    assert planned.assets == ("base", "full", "lite", "face", "safety")
    assert sorted(listed) == sorted(source.repo for asset in ASSETS.values() for source in asset.sources)


@pytest.mark.usefixtures("safety")
def test_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    planned = plan("safety", tmp_path / "models")
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(LynxError, match=r"needs 768\.0 kB of free disk, there are 1\.0 kB"):
            run(planned)
    assert not (tmp_path / "models").exists()

    def full(progress: Progress) -> None:
        if progress.stage == "fetch":
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(LynxError, match="the disk is full"):
        run(planned, full)


def test_the_table() -> None:
    for asset in ASSETS.values():
        assert asset.note
        for source in asset.sources:
            assert source.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", source.revision)
            assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in source.sha256.values())
    assert Source(repo="a/b", revision="main", patterns=(), strip="x/").local("x/y/z") == "y/z"


# Conversion


def test_kept_names_are_those_of_diffusers() -> None:
    from diffusers import WanTransformer3DModel
    from transformers import UMT5EncoderModel

    text = set(UMT5EncoderModel._keep_in_fp32_modules) | set(UMT5EncoderModel._keep_in_fp32_modules_strict or ())
    assert set(KEEP_FLOAT32) == set(WanTransformer3DModel._keep_in_fp32_modules) | text


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_converted_text_encoder_loads_as_the_original(server: Hub, tmp_path: Path, dtype: torch.dtype) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    torch.manual_seed(0)
    shape = {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
    UMT5EncoderModel(UMT5Config(**shape)).save_pretrained(tmp_path / "original", max_shard_size="8KB")
    files = {f"text_encoder/{each.name}": each.read_bytes() for each in (tmp_path / "original").iterdir()}
    shards = [name for name in files if name.endswith(".safetensors")]
    assert len(shards) > 1
    server.repos[BASE], server.commits[BASE] = files, ASSETS["base"].sources[0].revision
    planned = plan("base", tmp_path)
    assert str(planned).count("-> bfloat16") == len(shards)
    run(planned)
    folder = folder_of(tmp_path, "base") / "text_encoder"
    stored = {name: tensor for each in folder.glob("*.safetensors") for name, tensor in load_file(each).items()}
    assert {name.split(".")[-2] for name, tensor in stored.items() if tensor.dtype == torch.float32} == {"wo"}
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in stored.values())
    one, other = (UMT5EncoderModel.from_pretrained(at, dtype=dtype).state_dict() for at in (tmp_path / "original", folder))
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        if dtype == torch.bfloat16 or name.split(".")[-2] == "wo":
            assert torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Wan transformer of toy size in three float32 shards, as diffusers saves it."""
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        ffn_dim=32,
        num_layers=3,
        text_dim=16,
        freq_dim=16,
        in_channels=4,
        out_channels=4,
        cross_attn_norm=True,
    )
    folder = tmp_path_factory.mktemp("wan") / "transformer"
    model.save_pretrained(folder, max_shard_size="50KB")
    assert len(list(folder.glob("*.safetensors"))) >= 2
    return folder


def serve_base(server: Hub, transformer: Path) -> dict[str, torch.Tensor]:
    files = {f"transformer/{each.name}": each.read_bytes() for each in sorted(transformer.iterdir())}
    files |= {"model_index.json": b"{}", "vae/config.json": b"{}", "examples/big.mp4": b"x" * 100}
    server.repos[BASE], server.commits[BASE] = files, ASSETS["base"].sources[0].revision
    return {name: tensor for each in transformer.glob("*.safetensors") for name, tensor in load_file(each).items()}


def check_converted(folder: Path, original: dict[str, torch.Tensor]) -> None:
    """bfloat16 but for what diffusers keeps, equal to a cast of the original, and an index that adds up."""
    converted = {name: tensor for each in folder.glob("*.safetensors") for name, tensor in load_file(each).items()}
    assert converted.keys() == original.keys()
    kept = {name for name, tensor in converted.items() if tensor.dtype == torch.float32}
    assert kept == {name for name in original if re.search(r"norm2|time_embedder|scale_shift_table", name)}
    assert all(torch.equal(tensor, original[name].to(tensor.dtype)) for name, tensor in converted.items())
    index = json.loads((folder / "diffusion_pytorch_model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in converted.values())
    assert index["weight_map"].keys() == original.keys()


def test_base_is_converted_shard_by_shard(server: Hub, transformer: Path, tmp_path: Path) -> None:
    original = serve_base(server, transformer)
    planned = plan("base", tmp_path)
    assert "-> bfloat16" in str(planned)
    # While a shard is converted there is one float32 shard at most; those before it are converted, those after not yet fetched.
    folder = folder_of(tmp_path, "base")

    def watch(_: Progress) -> None:
        parts = list(folder.rglob("*.safetensors.*.part"))
        assert len(parts) <= 1
        for shard in folder.rglob("diffusion*.safetensors"):
            assert any(tensor.dtype == torch.bfloat16 for tensor in load_file(shard).values())

    run(planned, watch)
    check_converted(folder / "transformer", original)
    assert not list(folder.rglob("*.part"))
    assert not (folder / "examples").exists()

    server.requests.clear()
    again = plan("base", tmp_path)
    assert again.bytes == 0
    assert {each.action for each in run(again)} == {"kept"}
    assert server.requests == []

    # A damaged shard and a damaged index come back converted and adding up.
    next(iter((folder / "transformer").glob("*-00001-*.safetensors"))).write_bytes(b"gone")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors.index.json").write_text("{}")
    assert [each.action for each in run(plan("base", tmp_path))].count("replaced") == 2
    check_converted(folder / "transformer", original)


def test_base_in_float32_and_then_converted(server: Hub, transformer: Path, tmp_path: Path) -> None:
    original = serve_base(server, transformer)
    run(plan("base", tmp_path, to_bfloat16=False))
    folder = folder_of(tmp_path, "base") / "transformer"
    shards = {name: tensor for each in folder.glob("*.safetensors") for name, tensor in load_file(each).items()}
    assert all(torch.equal(tensor, original[name]) for name, tensor in shards.items())
    server.requests.clear()
    run(plan("base", tmp_path))
    check_converted(folder, original)
    assert server.requests == []


def test_a_run_stopped_in_the_conversion_goes_on(server: Hub, transformer: Path, tmp_path: Path) -> None:
    original = serve_base(server, transformer)

    def stop(progress: Progress) -> None:
        if progress.stage == "convert" and "00002" in progress.path.name:
            raise Cancelled("stop")

    with pytest.raises(Cancelled):
        run(plan("base", tmp_path), stop)
    server.requests.clear()
    run(plan("base", tmp_path))
    assert not any("-00001-" in name or "-00002-" in name for name in server.fetched())
    check_converted(folder_of(tmp_path, "base") / "transformer", original)


def test_to_bfloat16_leaves_other_types_alone(tmp_path: Path) -> None:
    tensors = {
        "a.weight": torch.randn(3, 5),
        "b": torch.arange(4),
        "c": torch.randn(2).half(),
        "x.norm2.weight": torch.randn(3),
    }
    save_file(tensors, tmp_path / "in.safetensors", metadata={"format": "pt"})
    assert to_bfloat16(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    out = load_file(tmp_path / "out.safetensors")
    assert [out[name].dtype for name in sorted(out)] == [torch.bfloat16, torch.int64, torch.float16, torch.float32]
    assert tensor_bytes(tmp_path / "out.safetensors") == 15 * 2 + 4 * 8 + 2 * 2 + 3 * 4
    assert not to_bfloat16(tmp_path / "out.safetensors", tmp_path / "twice.safetensors")
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "in.safetensors").read_bytes()[:-8])
    with pytest.raises(BadWeights, match=r"cut\.safetensors"):
        to_bfloat16(tmp_path / "cut.safetensors", tmp_path / "twice.safetensors")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.safetensors", "in.safetensors", "out.safetensors"]


def test_an_index_that_names_a_missing_shard(tmp_path: Path) -> None:
    index = tmp_path / "a.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": {"w": "none.safetensors"}}))
    with pytest.raises(BadWeights, match=r"none\.safetensors"):
        update_index(index)
    index.write_text("[]")
    with pytest.raises(BadWeights, match="index"):
        update_index(index)


def test_disk_need_counts_the_largest_shard_twice(server: Hub, transformer: Path, tmp_path: Path) -> None:
    serve_base(server, transformer)
    planned: Plan = plan("base", tmp_path)
    shards = [file.remote.bytes or 0 for file in planned.files if file.convert]
    rest = planned.bytes - sum(shards)
    assert planned.disk == sum(size // 2 for size in shards) + max(shards) + rest
