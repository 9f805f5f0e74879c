"""Who signs a clip: a key and its certificate, the user's own or a self-made one for development, as C2PA wants them.

The development certificate is made once for each user and kept in the data folder:

    development.key         the private key, readable by its owner only
    development.pem         the certificate, and the root that issued it
    development-roots.pem   every root there ever was, for `lynx-video verify --trust-anchors`
    development.lock        held while they are made

It proves that a clip is as it was signed, and nobody's identity. The key of its root is thrown away at once.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lynx_video.draft import draft
from lynx_video.errors import BadOutput, BadRequest

if TYPE_CHECKING:
    from c2pa import Context
    from c2pa import Signer as NativeSigner
    from cryptography.x509 import Certificate, Name

DEVELOPMENT = "lynx-video development certificate (self-made, not trusted)"
"""The organisation in a development certificate: what every reader of a manifest shows as its signer."""
LIFETIME, RENEWAL = timedelta(days=3650), timedelta(days=365)
_PURPOSES = (
    "1.3.6.1.5.5.7.3.4",  # protection of e-mail
    "1.3.6.1.5.5.7.3.36",  # signing of documents
    "1.3.6.1.4.1.311.76.59.1.9",  # Microsoft's C2PA signing
    "1.3.6.1.4.1.62558.2.1",  # C2PA's own
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Signer:
    """A signing key and its certificate, found to belong together and to be good for C2PA."""

    key: Path
    "PEM file of the private key, without a passphrase"
    certificate: Path
    "PEM file of the certificate, followed by those that lead to its root"
    algorithm: str
    "how it signs, in C2PA's words: es256, es384, es512, ps256 or ed25519"
    development: bool
    "whether it is the self-made one, which proves no identity"


def data_home() -> Path:
    """The user's folder of this program: $LYNX_VIDEO_HOME, else the one of the XDG rules. Raises BadOutput if there is no home."""
    if own := os.environ.get("LYNX_VIDEO_HOME"):
        return Path(own)
    shared = Path(os.environ.get("XDG_DATA_HOME") or "")
    if shared.is_absolute():  # the rules say to ignore others
        return shared / "lynx-video"
    try:
        return Path.home() / ".local" / "share" / "lynx-video"
    except RuntimeError as error:
        raise BadOutput("this user has no home folder; set LYNX_VIDEO_HOME to a folder that can be written.") from error


def load_signer(key: Path | None = None, certificate: Path | None = None) -> Signer:
    """The user's own signer, or the development one, which is made at first use.

    key, certificate: PEM files, both or neither.

    Raises:
        BadRequest: one of the two is missing, cannot be read, is out of date or not of the other, or C2PA does not take it.
        BadOutput: the development certificate cannot be kept.
    """
    if key is None and certificate is None:
        return _development()
    if key is None or certificate is None:
        there, missing = ("certificate", "key") if key is None else ("key", "certificate")
        raise BadRequest(
            f"a signing {there} was given without its {missing}: give --signing-key and --signing-certificate, or neither."
        )
    signer, _ = _checked(key, certificate)
    _try_out(signer)
    return signer


def native_signer(signer: Signer) -> NativeSigner:
    """The signer as c2pa has it. It asks no time-stamp authority: that would be a call over the network for every clip."""
    import c2pa
    from cryptography.hazmat.primitives import serialization as form

    key = _private_key(signer.key)
    plain = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    chain = b"".join(one.public_bytes(form.Encoding.PEM) for one in _certificates(signer.certificate))
    facts = c2pa.C2paSignerInfo(signer.algorithm.encode(), chain, plain, b"")
    facts.ta_url = None  # of a time-stamp authority; older c2pa-python do not take "none" as an argument
    return c2pa.Signer.from_info(facts)


def offline(anchors: str | None = None) -> Context:
    """What c2pa works in: no network, no thumbnails, no lists of trust but `anchors` (PEM)."""
    import c2pa

    trust: dict[str, Any] = {"trust_config": "\n".join(_PURPOSES)}
    return c2pa.Context.from_dict(
        {
            "core": {"allowed_network_hosts": []},
            "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_after_sign": True},
            "trust": trust | ({"trust_anchors": anchors} if anchors is not None else {}),
            "builder": {"thumbnail": {"enabled": False}},
        }
    )


def read_anchors(file: Path) -> str:
    """The certificates of a PEM file of trusted roots. Raises BadRequest if there are none."""
    from cryptography.hazmat.primitives.serialization import Encoding

    return "".join(one.public_bytes(Encoding.PEM).decode() for one in _certificates(file))


def name_of(subject: Name) -> str:
    """A name in a certificate for people: `Organisation, Common name`."""
    from cryptography.x509.oid import NameOID

    parts = [
        one.value for oid in (NameOID.ORGANIZATION_NAME, NameOID.COMMON_NAME) for one in subject.get_attributes_for_oid(oid)
    ]
    return ", ".join(str(part) for part in parts) or subject.rfc4514_string()


def _development() -> Signer:
    """The development signer that is there, or a new one; of processes that begin at once, one makes it."""
    from filelock import FileLock, Timeout

    folder = data_home()
    key, certificate = folder / "development.key", folder / "development.pem"
    if there := _kept(key, certificate):
        return there
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / "development.lock", timeout=60):
            if there := _kept(key, certificate):
                return there
            _make_development(key, certificate, folder / "development-roots.pem")
    except Timeout:
        raise BadOutput(f"{folder / 'development.lock'}: held for a minute; is another process stuck? End it.") from None
    except (OSError, NotImplementedError) as error:
        said = getattr(error, "strerror", None) or error
        raise BadOutput(
            f"{folder}: the development certificate cannot be kept there ({said}); set LYNX_VIDEO_HOME to a folder that can "
            "be written, or give a signing key and certificate of your own."
        ) from error
    signer, _ = _checked(key, certificate, development=True)
    return signer


def _kept(key: Path, certificate: Path) -> Signer | None:
    """The development signer in these files; None if there is none, it is damaged or its time is nearly over."""
    try:
        signer, end = _checked(key, certificate, development=True)
    except BadRequest:
        return None
    return signer if end - datetime.now(timezone.utc) > RENEWAL else None


def _make_development(key_file: Path, certificate_file: Path, roots_file: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

    now = datetime.now(timezone.utc)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def name(common: str) -> Name:
        organisation = x509.NameAttribute(NameOID.ORGANIZATION_NAME, DEVELOPMENT)
        return x509.Name([organisation, x509.NameAttribute(NameOID.COMMON_NAME, common)])

    def issue(common: str, public: ec.EllipticCurvePublicKey, *extensions: tuple[x509.ExtensionType, bool]) -> Certificate:
        begun = x509.CertificateBuilder(name("development root"), name(common), public, x509.random_serial_number())
        # A day earlier: the clocks of those who read it may be behind.
        begun = begun.not_valid_before(now - timedelta(days=1)).not_valid_after(now + LIFETIME)
        for extension, critical in extensions:
            begun = begun.add_extension(extension, critical)
        return begun.sign(root_key, hashes.SHA256())

    def usage(**used: bool) -> x509.KeyUsage:
        uses = ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "crl_sign")
        unused = dict.fromkeys((*uses, "digital_signature", "key_cert_sign", "encipher_only", "decipher_only"), False)
        return x509.KeyUsage(**(unused | used))

    issuer = (x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()), False)
    root = issue(
        "development root",
        root_key.public_key(),
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (usage(key_cert_sign=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(root_key.public_key()), False),
        issuer,
    )
    leaf = issue(
        "development signer",
        key.public_key(),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (usage(digital_signature=True), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION, x509.ObjectIdentifier(_PURPOSES[1])]), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
        issuer,
    )
    lines = root.public_bytes(form.Encoding.PEM)
    roots = roots_file.read_bytes() if roots_file.is_file() else b""
    # The certificate comes last: without one that fits its key, all of it is made again.
    for file, content, mode in (
        (roots_file, roots + lines, 0o644),
        (key_file, key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()), 0o600),
        (certificate_file, leaf.public_bytes(form.Encoding.PEM) + lines, 0o644),
    ):
        with draft(file) as partial, os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as stream:
            stream.write(content)


def _checked(key_file: Path, certificate_file: Path, *, development: bool = False) -> tuple[Signer, datetime]:
    """The signer of two files, and when it ends. Raises BadRequest for what cannot be read, fit together or be valid now."""
    key, chain = _private_key(key_file), _certificates(certificate_file)
    algorithm = _algorithm(key, key_file)
    if key.public_key() != chain[0].public_key():
        raise BadRequest(
            f"{certificate_file}: its first certificate is not that of the key in {key_file}; give two that match."
        )
    now = datetime.now(timezone.utc)
    for one in chain:
        if not one.not_valid_before_utc <= now <= one.not_valid_after_utc:
            since, until = one.not_valid_before_utc.date(), one.not_valid_after_utc.date()
            raise BadRequest(
                f"{certificate_file}: the certificate of {name_of(one.subject)!r} is valid from {since} to {until} and so is not "
                "now; get a new one."
            )
    for one, issuer in pairwise(chain):
        try:
            one.verify_directly_issued_by(issuer)
        except Exception as error:  # cryptography has a dozen for a chain that is none
            raise BadRequest(
                f"{certificate_file}: {name_of(issuer.subject)!r} did not issue {name_of(one.subject)!r} before it; put the "
                "signer's certificate first, then its issuer's, and so on."
            ) from error
    signer = Signer(key=key_file, certificate=certificate_file, algorithm=algorithm, development=development)
    return signer, min(one.not_valid_after_utc for one in chain)


def _try_out(signer: Signer) -> None:
    """Sign one pixel: c2pa knows best what C2PA takes. Raises BadRequest with its reason."""
    import c2pa
    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (1, 1)).save(picture, format="PNG")
    picture.seek(0)
    created = {"action": "c2pa.created", "digitalSourceType": "http://c2pa.org/digitalsourcetype/empty"}
    manifest: Mapping[str, Any] = {
        "claim_generator_info": [{"name": "lynx-video"}],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": [created]}}],
    }
    try:
        c2pa.Builder(manifest, context=offline()).sign(native_signer(signer), "image/png", picture, io.BytesIO())
    except c2pa.C2paError as error:
        raise BadRequest(
            f"{signer.certificate}: C2PA takes no such certificate ({_reason(error)}); it must be nobody's issuer, hold the key id "
            "of its own, and be for digital signatures and the protection of e-mail, the signing of documents or C2PA signing."
        ) from error


def _reason(error: Exception) -> str:
    """The last of the reasons that c2pa lists, without the address of the box that it found it in."""
    return " ".join(str(error).split("\n")[-1].split(" (self#")[0].split())


def _private_key(file: Path) -> Any:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    content = _bytes(file, "key")
    try:
        return load_pem_private_key(content, password=None)
    except TypeError as error:
        raise BadRequest(f"{file}: the key is locked by a passphrase; give one that is not.") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadRequest(f"{file}: not a private key in PEM form; it should begin with -----BEGIN PRIVATE KEY-----.") from error


def _certificates(file: Path) -> list[Certificate]:
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    content = _bytes(file, "certificate")
    try:
        found = x509.load_pem_x509_certificates(content)
        for one in found:  # they are read as far as they are asked
            one.public_key()
            name_of(one.subject)
        return found
    except (ValueError, x509.InvalidVersion, UnsupportedAlgorithm) as error:
        raise BadRequest(f"{file}: no certificate in PEM form; it should have -----BEGIN CERTIFICATE----- in it.") from error


def _bytes(file: Path, what: str) -> bytes:
    try:
        return file.read_bytes()
    except (OSError, ValueError) as error:
        raise BadRequest(f"{file}: the {what} cannot be read ({getattr(error, 'strerror', None) or error}).") from error


def _algorithm(key: Any, file: Path) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    if isinstance(key, ed25519.Ed25519PrivateKey):
        return "ed25519"
    if isinstance(key, rsa.RSAPrivateKey) and key.key_size >= 2048:
        return "ps256"
    curves = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}
    if isinstance(key, ec.EllipticCurvePrivateKey) and key.curve.name in curves:
        return curves[key.curve.name]
    raise BadRequest(
        f"{file}: C2PA signs with Ed25519, RSA of 2048 bits or more, or the curves P-256, P-384 and P-521; not with this key."
    )
