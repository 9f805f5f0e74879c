"""What the tests of provenance share: certificate authorities of every kind, made on the spot."""

from datetime import datetime, timedelta, timezone
from typing import NamedTuple

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as form
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import AuthorityInformationAccessOID, ExtendedKeyUsageOID, NameOID

KEYS = {
    "es256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "es384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "es512": lambda: ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
    "ps256": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
    "secp256k1": lambda: ec.generate_private_key(ec.SECP256K1()),
    "rsa1024": lambda: rsa.generate_private_key(public_exponent=65537, key_size=1024),
}
C2PA_SIGNING = x509.ObjectIdentifier("1.3.6.1.4.1.62558.2.1")


class Papers(NamedTuple):
    """A key, its certificate with its root behind it, and the root alone: PEM files."""

    key: object
    certificate: object
    root: object


@pytest.fixture
def issue(tmp_path):
    """issue("name", ...) is a key with a certificate that C2PA takes, unless something is asked to be otherwise."""

    def make(
        name="signer",
        kind="es256",
        *,
        since=timedelta(days=-1),
        until=timedelta(days=30),
        organisation="Example Studio",
        purposes=(C2PA_SIGNING,),
        ca=False,
        self_signed=False,
        url=None,
    ):
        now = datetime.now(timezone.utc)
        root_key, key = KEYS["es256"](), KEYS[kind]()
        if self_signed:
            root_key = key

        def named(common):
            return x509.Name(
                [
                    x509.NameAttribute(NameOID.ORGANIZATION_NAME, organisation),
                    x509.NameAttribute(NameOID.COMMON_NAME, common),
                ]
            )

        def certificate(common, public, is_ca, *more):
            issuer = named(name if self_signed else "root")
            builder = x509.CertificateBuilder(issuer, named(common), public, x509.random_serial_number())
            builder = builder.not_valid_before(now + since).not_valid_after(now + until)
            usage = x509.KeyUsage(not is_ca, *[False] * 4, is_ca, *[False] * 3)
            for extension in (
                x509.BasicConstraints(is_ca, None),
                usage,
                x509.SubjectKeyIdentifier.from_public_key(public),
                x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key()),
                *more,
            ):
                critical = isinstance(extension, (x509.BasicConstraints, x509.KeyUsage))
                builder = builder.add_extension(extension, critical)
            ed = isinstance(root_key, ed25519.Ed25519PrivateKey)
            return builder.sign(root_key, None if ed else hashes.SHA256())

        more = [x509.ExtendedKeyUsage(purposes)] if purposes else []
        if url is not None:
            places = (AuthorityInformationAccessOID.OCSP, AuthorityInformationAccessOID.CA_ISSUERS)
            found_at = x509.UniformResourceIdentifier(url)
            more.append(x509.AuthorityInformationAccess([x509.AccessDescription(place, found_at) for place in places]))
        root = certificate("root", root_key.public_key(), True).public_bytes(form.Encoding.PEM)
        leaf = certificate(name, key.public_key(), ca, *more).public_bytes(form.Encoding.PEM)
        papers = Papers(*(tmp_path / f"{name}-{what}.pem" for what in ("key", "certificate", "root")))
        papers.key.write_bytes(key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption()))
        papers.certificate.write_bytes(leaf if self_signed else leaf + root)
        papers.root.write_bytes(root)
        return papers

    make.email = ExtendedKeyUsageOID.EMAIL_PROTECTION
    make.server = ExtendedKeyUsageOID.SERVER_AUTH
    return make


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A data folder of the test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("LYNX_VIDEO_HOME", str(folder))
    return folder
