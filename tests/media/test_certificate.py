"""Signers: the self-made development one, and the user's own."""

import os
import stat
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization as form

from lynx_video.errors import BadOutput, BadRequest
from lynx_video.media import certificate
from lynx_video.media.certificate import DEVELOPMENT, data_home, load_signer, name_of, read_anchors

FILES = ["development-roots.pem", "development.key", "development.lock", "development.pem"]


def chain(file):
    return x509.load_pem_x509_certificates(Path(file).read_bytes())


def test_the_development_certificate_is_made_once_and_says_what_it_is(home):
    signer = load_signer()
    assert (signer.development, signer.algorithm) == (True, "es256")
    assert sorted(file.name for file in home.iterdir()) == FILES
    assert stat.S_IMODE(signer.key.stat().st_mode) == 0o600
    leaf, root = chain(signer.certificate)
    assert name_of(leaf.subject) == f"{DEVELOPMENT}, development signer"
    assert "self-made" in DEVELOPMENT
    assert "not trusted" in DEVELOPMENT
    leaf.verify_directly_issued_by(root)
    assert b"PRIVATE KEY" not in signer.certificate.read_bytes()  # nor is the root's key anywhere
    assert signer.key.read_bytes().count(b"BEGIN PRIVATE KEY") == 1
    before = {file: file.read_bytes() for file in home.iterdir()}
    assert load_signer() == signer
    assert {file: file.read_bytes() for file in home.iterdir()} == before


@pytest.mark.usefixtures("home")
def test_c2pa_takes_the_development_certificate_as_one_of_ones_own():
    signer = load_signer()
    assert load_signer(signer.key, signer.certificate).algorithm == signer.algorithm


def test_processes_that_begin_at_once_have_one_certificate(home):
    code = "from lynx_video.media.certificate import load_signer as l; s = l(); print(s.certificate.read_text() + s.key.read_text())"
    environment = os.environ | {"LYNX_VIDEO_HOME": str(home)}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)
    ]
    said = {process.communicate(timeout=60)[0] for process in running}
    assert [process.returncode for process in running] == [0] * 4
    assert len(said) == 1
    assert len(chain(home / "development-roots.pem")) == 1


def test_near_its_end_it_is_renewed_and_the_old_root_is_kept(home, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(certificate, "LIFETIME", certificate.RENEWAL - timedelta(days=1))
        first = chain(load_signer().certificate)
    second = chain(load_signer().certificate)
    assert second[0] != first[0]
    assert chain(home / "development-roots.pem") == [first[1], second[1]]
    assert chain(load_signer().certificate) == second


@pytest.mark.parametrize("name", ["development.key", "development.pem"])
@pytest.mark.parametrize("damage", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", None])
def test_a_damaged_development_certificate_is_made_again(home, name, damage):
    load_signer()
    if damage is None:
        (home / name).unlink()
    else:
        (home / name).write_bytes(damage)
    signer = load_signer()
    load_signer(signer.key, signer.certificate)


def test_a_key_of_another_certificate_is_not_kept(home, issue):
    load_signer()
    (home / "development.key").write_bytes(issue().key.read_bytes())
    signer = load_signer()
    load_signer(signer.key, signer.certificate)


def test_a_folder_that_cannot_be_made_is_named_with_the_way_out(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LYNX_VIDEO_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(BadOutput, match=r"file/home: .*set LYNX_VIDEO_HOME"):
        load_signer()


def test_where_the_data_folder_is(tmp_path, monkeypatch):
    monkeypatch.setenv("LYNX_VIDEO_HOME", str(tmp_path / "own"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert data_home() == tmp_path / "own"
    monkeypatch.delenv("LYNX_VIDEO_HOME")
    assert data_home() == tmp_path / "xdg" / "lynx-video"
    monkeypatch.setenv("XDG_DATA_HOME", "relative")
    assert data_home() == tmp_path / ".local" / "share" / "lynx-video"
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_home() == tmp_path / ".local" / "share" / "lynx-video"


@pytest.mark.parametrize("kind", ["es256", "es384", "es512", "ed25519", "ps256"])
def test_the_algorithm_is_read_off_the_key(issue, kind):
    papers = issue(kind=kind)
    signer = load_signer(papers.key, papers.certificate)
    assert (signer.algorithm, signer.development) == (kind, False)
    assert (signer.key, signer.certificate) == (papers.key, papers.certificate)


def test_keys_in_the_older_form_and_other_purposes_are_taken(issue):
    papers = issue(purposes=[issue.email])
    key = form.load_pem_private_key(papers.key.read_bytes(), None)
    papers.key.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.TraditionalOpenSSL, form.NoEncryption()))
    assert papers.key.read_bytes().startswith(b"-----BEGIN EC PRIVATE KEY-----")
    load_signer(papers.key, papers.certificate)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"until": timedelta(hours=-1)}, "is not now"),
        ({"since": timedelta(days=1)}, "is not now"),
        ({"kind": "secp256k1"}, "P-256"),
        ({"kind": "rsa1024"}, "2048 bits"),
        ({"self_signed": True, "ca": True}, "must be nobody's issuer"),
        ({"ca": True}, "C2PA takes no such certificate"),
        ({"purposes": ()}, "C2PA takes no such certificate"),
        ({"purposes": "server"}, "for digital signatures and the protection of e-mail"),
    ],
)
def test_certificates_that_cannot_sign_a_clip(issue, changes, said):
    if changes.get("purposes") == "server":
        changes = {"purposes": [issue.server]}
    papers = issue(**changes)
    with pytest.raises(BadRequest, match=said) as caught:
        load_signer(papers.key, papers.certificate)
    assert str(papers.certificate) in str(caught.value) or str(papers.key) in str(caught.value)


def test_files_that_are_not_what_they_should_be(issue, tmp_path):
    papers, other = issue(), issue("other")
    text = tmp_path / "text.pem"
    text.write_text("hello")
    locked = tmp_path / "locked.pem"
    key = form.load_pem_private_key(papers.key.read_bytes(), None)
    locked.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.BestAvailableEncryption(b"secret")))
    mixed = tmp_path / "mixed.pem"
    mixed.write_bytes(papers.certificate.read_bytes().split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n")
    mixed.write_bytes(mixed.read_bytes() + other.root.read_bytes())
    for key_file, certificate_file, file, said in (
        (papers.key, other.certificate, other.certificate, "not that of the key"),
        (papers.key, papers.root, papers.root, "not that of the key"),
        (text, papers.certificate, text, "not a private key"),
        (papers.certificate, papers.certificate, papers.certificate, "not a private key"),
        (papers.key, text, text, "no certificate"),
        (tmp_path / "none.pem", papers.certificate, tmp_path / "none.pem", "No such file"),
        (papers.key, tmp_path, tmp_path, "Is a directory"),
        (locked, papers.certificate, locked, "passphrase"),
        (papers.key, mixed, mixed, "did not issue"),
    ):
        with pytest.raises(BadRequest, match=said) as caught:
            load_signer(key_file, certificate_file)
        assert str(caught.value).startswith(f"{file}: ")


def test_one_of_the_two_is_not_enough(issue, home):
    papers = issue()
    with pytest.raises(BadRequest, match="a signing key was given without its certificate"):
        load_signer(papers.key, None)
    with pytest.raises(BadRequest, match="a signing certificate was given without its key"):
        load_signer(None, papers.certificate)
    assert not home.exists()


def test_anchors_are_certificates(issue, tmp_path):
    papers = issue()
    assert read_anchors(papers.root) == papers.root.read_text()
    with pytest.raises(BadRequest, match="no certificate"):
        read_anchors(papers.key)
    with pytest.raises(BadRequest, match="No such file"):
        read_anchors(tmp_path / "none.pem")
