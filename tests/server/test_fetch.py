"""Portraits by address: only where it is allowed, never from inside the network, whatever name servers and redirects say."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import io
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lynx_video.errors import BadRequest, LynxError
from lynx_video.server.fetch import BadUrl, FetchPolicy, fetch_upload, is_public
from lynx_video.server.uploads import TooLarge, UnknownKind, UploadLimits

HERE = (ipaddress.ip_network("127.0.0.0/8"),)


def png(side: int = 64) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (side, side, 3), np.uint8)).save(out, format="PNG")
    return out.getvalue()


class Site(BaseHTTPRequestHandler):
    """Says what the path asks for, and remembers what was asked."""

    asked: list[tuple[str, str, dict[str, str]]]

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["host"], dict(self.headers)))
        kind, _, rest = self.path[1:].partition("/")
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            getattr(self, f"say_{kind}")(rest)

    def say_me(self, _: str) -> None:
        self.reply(200, png())

    def say_text(self, _: str) -> None:
        self.reply(200, b"Dear Sir or Madam" * 20, ("content-type", "image/png"))

    def say_status(self, code: str) -> None:
        self.reply(int(code), b"")

    def say_to(self, target: str) -> None:
        self.reply(302, b"elsewhere", ("location", target))

    def say_round(self, count: str) -> None:
        self.reply(307, b"", ("location", f"/round/{int(count) - 1}" if int(count) > 1 else "/me/holiday.png?size=1"))

    def say_packed(self, _: str) -> None:
        import gzip

        self.reply(200, gzip.compress(png()), ("content-encoding", "gzip"))

    def say_cut(self, _: str) -> None:
        self.reply(200, png()[:500], length=len(png()))

    def say_endless(self, _: str) -> None:
        self.reply(200, png(), length=10**12)
        while True:
            self.wfile.write(b"\0" * 65_536)

    def say_drip(self, _: str) -> None:
        self.reply(200, b"", length=len(png()))
        for byte in png():
            self.wfile.write(bytes([byte]))
            time.sleep(0.05)

    def say_silence(self, _: str) -> None:
        time.sleep(6)

    def say_nonsense(self, _: str) -> None:
        self.wfile.write(b"220 mail.example ESMTP\r\n")

    def reply(self, status: int, body: bytes, *headers: tuple[str, str], length: int | None = None) -> None:
        self.send_response(status)
        for name, value in (*headers, ("content-length", str(len(body) if length is None else length))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


class Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: Any) -> None:
        """A client that leaves is what is tested."""


@contextlib.contextmanager
def serving(context: ssl.SSLContext | None = None) -> Iterator[Any]:
    handler = type("Handler", (Site,), {"asked": []})
    server = Quiet(("127.0.0.1", 0), handler)
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield type("Where", (), {"port": server.server_port, "asked": handler.asked})
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def running() -> Iterator[Any]:
    with serving() as site:
        yield site


@pytest.fixture
def site(running: Any) -> Any:
    running.asked.clear()
    return running


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """What names lead to; each look-up is noted in names["looked up"]."""
    table: dict[str, list[str]] = {"pictures.example": ["127.0.0.1"], "looked up": []}

    def look_up(host: str | bytes, port: int, *_: Any, **__: Any) -> list[Any]:
        host = host.decode() if isinstance(host, bytes) else host
        table["looked up"].append(host)
        if host not in table:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        family = {one: socket.AF_INET6 if ":" in one else socket.AF_INET for one in table[host]}
        return [(family[one], socket.SOCK_STREAM, 6, "", (one, port, 0, 0)[: 4 if ":" in one else 2]) for one in table[host]]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return table


@pytest.fixture
def connected(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that a connection was tried to."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def noted(self: socket.socket, address: Any) -> None:
        tried.append(address)
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", noted)
    return tried


def policy(site: Any, *hosts: str, **changes: Any) -> FetchPolicy:
    named = hosts or (f"pictures.example:{site.port}",)
    return FetchPolicy(**{"hosts": named, "allowed_networks": HERE, "most_seconds": 5, **changes})


def fetch(url: str, folder: Path, rules: FetchPolicy, limits: UploadLimits | None = None) -> Any:
    return asyncio.run(fetch_upload(url, folder, rules, limits))


def refused(url: str, folder: Path, rules: FetchPolicy, says: str, kind: type[LynxError] = BadUrl, **options: Any) -> None:
    with pytest.raises(kind, match=says) as caught:
        fetch(url, folder / "new", rules, **options)
    assert type(caught.value) is kind
    assert not list(folder.iterdir())


def test_a_picture_is_fetched_by_one_look_up(tmp_path: Path, site: Any, names: Any, connected: Any) -> None:
    upload = fetch(f"http://pictures.example:{site.port}/me/holiday.png?token=secret#part", tmp_path, policy(site))
    assert upload.path.read_bytes() == png()
    assert upload.name == "holiday.png"
    assert names["looked up"] == ["pictures.example"]
    assert [one[:2] for one in connected] == [("127.0.0.1", site.port)]
    path, host, headers = site.asked[0]
    assert path == "/me/holiday.png?token=secret"
    assert host == f"pictures.example:{site.port}"
    assert {name.lower() for name in headers} == {"host", "user-agent", "accept", "accept-encoding", "connection"}


def test_no_proxy_stands_between(tmp_path: Path, site: Any, names: Any, connected: Any, monkeypatch: Any) -> None:
    """A proxy would look the name up again."""
    for variable in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(variable, raising=False)
    assert fetch(f"http://pictures.example:{site.port}/me", tmp_path, policy(site)).width == 64
    assert [one[:2] for one in connected] == [("127.0.0.1", site.port)]
    assert names["looked up"] == ["pictures.example"]


def test_nothing_is_fetched_unless_allowed(tmp_path: Path, names: Any, connected: Any) -> None:
    refused("http://pictures.example/me", tmp_path, FetchPolicy(), "no address is fetched here")
    assert not names["looked up"]
    assert not connected


@pytest.mark.parametrize(
    ("hosts", "url", "allowed"),
    [
        (("*",), "http://pictures.example/me", True),
        (("*",), "http://pictures.example:443/me", True),
        (("*",), "http://pictures.example:22/me", False),
        (("*:8080",), "http://pictures.example:8080/me", True),
        (("*:8080",), "http://pictures.example/me", False),
        (("pictures.example",), "http://PICTURES.example./me", True),
        (("pictures.example",), "http://pictures.example:8080/me", False),
        (("pictures.example",), "http://a.pictures.example/me", False),
        (("pictures.example",), "http://pictures.example.evil.example/me", False),
        (("*.example",), "http://pictures.example/me", True),
        (("*.pictures.example",), "http://pictures.example/me", False),
        (("*.pictures.example",), "http://evilpictures.example/me", False),
        (("other.example", "pictures.example"), "http://pictures.example/me", True),
    ],
)
def test_the_list_of_hosts(tmp_path: Path, names: Any, connected: Any, hosts: tuple[str, ...], url: str, allowed: bool) -> None:
    names["pictures.example"] = ["10.1.2.3"]  # so that whoever is let through is stopped at the next door
    refused(url, tmp_path, FetchPolicy(hosts=hosts), "not public" if allowed else "not one of the places")
    assert bool(names["looked up"]) == allowed
    assert not connected


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://pictures.example/me", "gopher://pictures.example/", "//pictures.example/me", "me.png", "", "http://",
        "http:///me", "http://pictures.example:99999/me", "http://pictures.example:x/me", "http://[::1/me", "http://pictures.exam\nple/me",
        "http://127。0。0。1:bad/", "http://①②⑦.0.0.1/", "http://" + "a" * 5000, "jar:http://pictures.example/", "http://\ud800/",
    ],
)  # fmt: skip
def test_what_is_no_address(tmp_path: Path, names: Any, connected: Any, url: str) -> None:
    refused(url, tmp_path, FetchPolicy(hosts=("*",)), ".")
    assert not names["looked up"]
    assert not connected


@pytest.mark.parametrize("user", ["me@", "me:secret@", "pictures.example:80@"])
def test_no_credentials(tmp_path: Path, names: Any, user: str) -> None:
    with pytest.raises(BadUrl, match="user or password") as caught:
        fetch(f"http://{user}pictures.example/me", tmp_path, FetchPolicy(hosts=("*",)))
    assert "secret" not in str(caught.value)
    assert not names["looked up"]


INSIDE = [
    "0.0.0.0", "0.1.2.3", "10.0.0.1", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "168.63.129.16",
    "169.254.169.254", "172.16.0.1", "172.31.255.255", "192.0.0.192", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1",
    "198.19.255.255", "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:a9fe:a9fe", "64:ff9b::127.0.0.1",
    "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "100::1", "2001::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1",
    "2002:7f00:1::", "2002:a00:1::1", "3fff::1", "5f00::1", "fc00::1", "fd00:ec2::254", "fe80::1", "fe80::1%1", "fec0::1", "ff02::1",
    "2a00:1450::1%1",
]  # fmt: skip
OUTSIDE = ["1.1.1.1", "8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1", "192.0.1.1", "2606:4700::1", "2a00:1450:4001::1",
           "2001:4860:4860::8888", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]  # fmt: skip


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside(address: str) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "169.254.169.254", "::1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "fe80::1%1"]
)
def test_addresses_inside_are_never_connected_to(tmp_path: Path, names: Any, connected: Any, address: str) -> None:
    names["pictures.example"] = [address]
    refused("http://pictures.example/me", tmp_path, FetchPolicy(hosts=("*",)), "not public")
    # One bad apple: a name that leads to a public address, too.
    names["pictures.example"] = ["93.184.216.34", address]
    refused("http://pictures.example/me", tmp_path, FetchPolicy(hosts=("*",)), "not public")
    if "%" not in address:
        literal = f"[{address}]" if ":" in address else address
        refused(f"http://{literal}/me", tmp_path, FetchPolicy(hosts=("*",)), "not public")
    assert not connected


@pytest.mark.parametrize("address", OUTSIDE)
def test_addresses_outside_may_be(address: str) -> None:
    assert is_public(ipaddress.ip_address(address))


def test_allowed_networks_allow_no_more_than_they_say() -> None:
    own = (ipaddress.ip_network("10.1.0.0/16"),)
    assert is_public(ipaddress.ip_address("10.1.2.3"), own)
    assert is_public(ipaddress.ip_address("::ffff:10.1.2.3"), own)
    assert not is_public(ipaddress.ip_address("10.2.2.3"), own)
    assert not is_public(ipaddress.ip_address("::1"), own)


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "017700000001",
        "127.0.0.01",
        "0x",
        "1.2.3.4.5",
    ],
)
def test_numbers_in_other_spellings_are_no_hosts(tmp_path: Path, names: Any, connected: Any, host: str) -> None:
    names[host] = ["93.184.216.34"]
    refused(f"http://{host}/me", tmp_path, FetchPolicy(hosts=("*",)), "no such host|no address that can be read")
    assert not names["looked up"]
    assert not connected


def test_an_unknown_host(tmp_path: Path, site: Any, names: Any) -> None:
    refused("http://nowhere.example/me", tmp_path, policy(site, "*"), "no such host")
    names["pictures.example"] = []
    refused("http://pictures.example/me", tmp_path, policy(site, "*"), "not public")


def test_a_name_server_that_changes_its_mind(tmp_path: Path, site: Any, names: Any, connected: Any, monkeypatch: Any) -> None:
    """The classic: a public address for the check, an inner one for the connection."""
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.3"])
    table = socket.getaddrinfo

    def rebinding(host: str, port: int, *rest: Any, **more: Any) -> Any:
        names["pictures.example"] = [next(answers)]
        return table(host, port, *rest, **more)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    only = policy(site, allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),))
    assert fetch(f"http://pictures.example:{site.port}/me", tmp_path, only).width == 64
    assert [one[0] for one in connected] == ["127.0.0.1"]


def test_the_next_address_is_tried_where_one_does_not_answer(tmp_path: Path, site: Any, names: Any, connected: Any) -> None:
    names["pictures.example"] = ["127.0.0.9", "127.0.0.1"]  # the guard of the tests stops the first
    assert fetch(f"http://pictures.example:{site.port}/me", tmp_path / "in", policy(site)).width == 64
    assert [one[0] for one in connected] == ["127.0.0.9", "127.0.0.1"]
    names["pictures.example"] = [f"127.0.0.{n}" for n in range(9, 30)]
    connected.clear()
    (tmp_path / "out").mkdir()
    refused(f"http://pictures.example:{site.port}/me", tmp_path / "out", policy(site), "cannot be reached")
    assert len(connected) == 4


@pytest.mark.parametrize("count", [1, 3])
def test_redirects_are_followed(tmp_path: Path, site: Any, names: Any, count: int) -> None:
    upload = fetch(f"http://pictures.example:{site.port}/round/{count}", tmp_path, policy(site))
    assert upload.name == "holiday.png"
    assert len(site.asked) == count + 1
    assert len(names["looked up"]) == count + 1


def test_redirects_have_an_end(tmp_path: Path, site: Any, names: Any) -> None:
    refused(f"http://pictures.example:{site.port}/round/4", tmp_path, policy(site), "led elsewhere more than 3 times")
    assert len(names["looked up"]) == len(site.asked) == 4


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("http://169.254.169.254/latest/meta-data/", "not public"),
        ("http://inner.example/me", "not public"),
        ("http://[::ffff:10.0.0.1]/me", "not public"),
        ("http://0x7f.1/me", "no such host"),
        ("file:///etc/passwd", "only http"),
        ("http://me:secret@pictures.example/me", "user or password"),
        ("http://pictures.example:22/me", "not one of the places"),
        ("//nowhere.example/me", "no such host"),
        ("http://[bad", "no such host"),
        ("http://pictures.example:x/", "the answer broke off or is none"),
    ],
)
def test_each_redirect_is_checked(tmp_path: Path, site: Any, names: Any, connected: Any, target: str, says: str) -> None:
    names["inner.example"] = ["10.0.0.1"]
    here = policy(site, "*", f"*:{site.port}", allowed_networks=(ipaddress.ip_network("127.0.0.1/32"),))
    refused(f"http://pictures.example:{site.port}/to/{target}", tmp_path, here, says)
    assert [one[0] for one in connected] == ["127.0.0.1"]


def test_a_redirect_off_the_list(tmp_path: Path, site: Any, names: Any) -> None:
    names["other.example"] = ["127.0.0.1"]
    url = f"http://pictures.example:{site.port}/to/http://other.example:{site.port}/me"
    refused(url, tmp_path, policy(site), "not one of the places")
    assert names["looked up"] == ["pictures.example"]


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("status/404", "answered 404"),
        ("status/204", "answered 204"),
        ("status/304", "answered 304"),
        ("packed/x", "answered packed"),
        ("cut/x", "broke off"),
        ("nonsense/x", "broke off or is none"),
    ],
)
def test_answers_that_are_no_picture(tmp_path: Path, site: Any, path: str, says: str) -> None:
    refused(f"http://pictures.example:{site.port}/{path}", tmp_path, policy(site), says)


@pytest.mark.usefixtures("names")
def test_the_limits_of_uploads_hold(tmp_path: Path, site: Any) -> None:
    where = f"http://pictures.example:{site.port}"
    refused(f"{where}/text/me.png", tmp_path, policy(site), r"^me\.png: not a picture of a kind", UnknownKind)
    refused(f"{where}/endless/x", tmp_path, policy(site), "larger than", TooLarge, limits=UploadLimits(most_bytes=10**6))
    refused(f"{where}/me/x", tmp_path, policy(site), "megapixels", TooLarge, limits=UploadLimits(most_pixels=64 * 64 - 1))


@pytest.mark.usefixtures("names")
@pytest.mark.parametrize("path", ["drip/x", "silence/x"])
def test_all_of_it_ends_in_time(tmp_path: Path, site: Any, path: str) -> None:
    start = time.perf_counter()
    refused(
        f"http://pictures.example:{site.port}/{path}", tmp_path, policy(site, most_seconds=0.5), r"not there after|broke off"
    )
    assert time.perf_counter() - start < 5


def test_hosts_that_are_none() -> None:
    for wrong in ("http://a.example", "a b", "A.example/", "a:b", "**.example"):
        with pytest.raises(BadRequest, match=re.escape(f"--allow-url-fetch {wrong!r}")):
            FetchPolicy(hosts=(wrong,))


def certified(folder: Path, name: str) -> tuple[Path, Path]:
    """A self-signed certificate for a name, and its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    who = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = (
        x509.CertificateBuilder(who, who, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    folder.mkdir()
    pem = serialization.Encoding.PEM
    (folder / "cert.pem").write_bytes(made.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8
    (folder / "key.pem").write_bytes(key.private_bytes(pem, plain, serialization.NoEncryption()))
    return folder / "cert.pem", folder / "key.pem"


def test_certificates_are_those_of_the_name_and_not_of_the_address(tmp_path: Path, names: Any, monkeypatch: Any) -> None:
    import certifi

    certificate, key = certified(tmp_path / "ca", "pictures.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    names["other.example"] = ["127.0.0.1"]
    (tmp_path / "out").mkdir()
    with serving(context) as site:
        both = policy(site, f"*:{site.port}")
        url = f"https://pictures.example:{site.port}/me"
        refused(url, tmp_path / "out", both, "cannot be reached")  # signed by nobody known
        monkeypatch.setattr(certifi, "where", lambda: str(certificate))
        assert fetch(url, tmp_path / "in", both).width == 64
        refused(f"https://other.example:{site.port}/me", tmp_path / "out", both, "cannot be reached")
        down = f"https://pictures.example:{site.port}/to/http://pictures.example:{site.port}/me"
        refused(down, tmp_path / "out", both, "from https to http")
