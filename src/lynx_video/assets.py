"""The weights that can be downloaded, as a table: from which repository and commit, under which licence, to which folder."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """Files of one hub repository, and the names they get.

    revision: a commit hash, or a branch where none could be verified.
    patterns: which files, shell style; `*` also crosses folders.
    strip: a folder left out of the local names. rename: remote path -> local path.
    sha256: remote path -> what it must be, whatever the hub says.
    to_bfloat16: which files are converted, shell style.
    """

    repo: str
    revision: str
    patterns: tuple[str, ...]
    strip: str = ""
    rename: dict[str, str] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)
    to_bfloat16: tuple[str, ...] = ()

    def local(self, path: str) -> str:
        """The name below the asset's folder of a remote path."""
        return self.rename.get(path, path.removeprefix(self.strip))


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """Something `lynx-video download NAME` gets: from where, to where (below the models folder), under which licence."""

    folder: str
    sources: tuple[Source, ...]
    licence: str
    note: str


_LYNX = "ByteDance/lynx"
ASSETS: dict[str, Asset] = {
    "base": Asset(
        folder="Wan2.1-T2V-14B-Diffusers",
        sources=(
            Source(
                repo="Wan-AI/Wan2.1-T2V-14B-Diffusers",
                revision="38ec498cb3208fb688890f8cc7e94ede2cbd7f68",
                patterns=(
                    "model_index.json",
                    "scheduler/*",
                    "text_encoder/*",
                    "tokenizer/*",
                    "transformer/*",
                    "vae/*",
                    "LICENSE*",
                ),
                to_bfloat16=("transformer/*.safetensors", "text_encoder/*.safetensors"),
            ),
        ),
        licence="Apache-2.0",
        note="the float32 transformer and text encoder are converted to bfloat16 shard by shard, about 43 GB in the end",
    ),
    "full": Asset(
        folder="lynx_full",
        # Unverified: no commit hash of this repository could be confirmed, so the branch is followed and the commit recorded.
        sources=(Source(repo=_LYNX, revision="main", patterns=("lynx_full/*",), strip="lynx_full/"),),
        licence="Apache-2.0",
        note="full Lynx adapters",
    ),
    "lite": Asset(
        folder="lynx_lite",
        sources=(Source(repo=_LYNX, revision="main", patterns=("lynx_lite/*",), strip="lynx_lite/"),),  # unverified, as above
        licence="Apache-2.0",
        note="lite Lynx adapters",
    ),
    "face": Asset(
        folder="face",
        sources=(
            Source(
                repo="lithiumice/ArcFace_PyTorch",
                revision="086811ee76897fdfd94335ea4ff40ae074136022",
                patterns=("InsightFace_Pytorch+model_ir_se50.pth",),
                # Byte for byte the file that facexlib publishes under this name in its release v0.1.0.
                rename={"InsightFace_Pytorch+model_ir_se50.pth": "recognition_arcface_ir_se50.pth"},
                sha256={
                    "InsightFace_Pytorch+model_ir_se50.pth": "a035c768259b98ab1ce0e646312f48b9e1e218197a0f80ac6765e88f8b6ddf28"
                },
            ),
            Source(
                repo="public-data/insightface",
                revision="33c1063c49c785b7652d3fd529f86fa4f149392b",
                patterns=("models/buffalo_l/det_10g.onnx", "models/buffalo_l/w600k_r50.onnx"),
                strip="models/",
                sha256={
                    "models/buffalo_l/det_10g.onnx": "5838f7fe053675b1c7a08b633df49e7af5495cee0493c7dcf6697200b85b5b91",
                    "models/buffalo_l/w600k_r50.onnx": "4c06341c33c2ca1f86781dab0e829f88ad5b64be9fba56e56bc9ebdefc619e43",
                },
            ),
        ),
        licence="buffalo_l: non-commercial research only; IR-SE50: MIT code, weights trained on MS-Celeb-1M",
        note="face detector and a recogniser that scores the clips (buffalo_l), and the ArcFace IR-SE50 the adapters were trained with",
    ),
    "safety": Asset(
        folder="safety_checker",
        sources=(
            Source(
                repo="Falconsai/nsfw_image_detection",
                revision="04367978d3474804ab1a00a9bd6548b741764069",
                patterns=("config.json", "preprocessor_config.json", "model.safetensors"),
            ),
        ),
        licence="Apache-2.0",
        note="picture classifier of the safety switch",
    ),
}
