"""Portraits fetched from an address that a client names: only where the operator allows it, and never from inside our own network.

A name is looked up once, what it leads to is checked, and that very address is connected to, so that a name server can't answer
otherwise the second time; redirects are followed here, each checked anew. No proxy and no .netrc is used. Time and bytes are bounded.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lynx_video.errors import BadRequest
from lynx_video.server.uploads import Upload, UploadLimits, read_upload, safe_name

if TYPE_CHECKING:
    import httpx
    from anyio import CapacityLimiter

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address
    Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LONGEST_URL = 4096
MOST_ADDRESSES = 4
"""Of one name, tried in turn."""
DEFAULT_PORTS = {"http": 80, "https": 443}

# The registries of special addresses (RFC 6890 and its updates), multicast, and the one public address behind which a cloud's own
# services answer (Azure's). Written out: what `is_global` says differs between versions of Python.
_INSIDE_4 = tuple(
    ipaddress.ip_network(one)
    for one in (
        "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12",
        "192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
        "224.0.0.0/4", "240.0.0.0/4",
    )
)  # fmt: skip
_UNICAST_6 = ipaddress.ip_network("2000::/3")
# Teredo, ORCHID and the like; documentation; 6to4, which carries any IPv4 address inside.
_INSIDE_6 = tuple(ipaddress.ip_network(one) for one in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class BadUrl(BadRequest):
    """An address that is not fetched, or cannot be."""

    status: ClassVar[int] = 400


@dataclass(frozen=True, kw_only=True, slots=True)
class FetchPolicy:
    """What may be fetched. Without hosts nothing is."""

    hosts: tuple[str, ...] = ()
    "names that may be fetched from: a.example, *.a.example, either with :PORT, or * for every public one"
    most_redirects: int = 3
    "how often an answer may lead elsewhere"
    most_seconds: float = 20.0
    "time for all of it"
    allowed_networks: tuple[Network, ...] = field(default=())
    "networks of our own that may be reached all the same"

    def __post_init__(self) -> None:
        for one in self.hosts:
            if not re.fullmatch(r"(\*|(\*\.)?[a-z0-9_.-]+)(:\d{1,5})?", one):
                raise BadRequest(
                    f"--allow-url-fetch {one!r}: expected a name such as pictures.example, *.example, example:8080, or *."
                )


async def fetch_upload(
    url: str,
    folder: Path,
    policy: FetchPolicy,
    limits: UploadLimits | None = None,
    *,
    stem: str = "",
    limiter: CapacityLimiter | None = None,
) -> Upload:
    """The picture at an http(s) address, written into `folder` as `uploads.read_upload` does.

    Raises:
        BadUrl: not allowed, not an address, inside our network, not reached, no picture there, or not in time.
        BadPicture, NoRoom: as `read_upload`.
    """
    import httpx
    from anyio import fail_after

    if not policy.hosts:
        raise BadUrl(
            "no address is fetched here; send the picture itself: as a file of a form, or as data:image/png;base64,..."
        )
    target = _parsed(url)
    clock = httpx.Timeout(min(10.0, policy.most_seconds))
    headers = {"user-agent": "lynx-video", "accept": "image/*", "accept-encoding": "identity"}
    # No connection is kept: one that was proven to be a.example's must not be used for b.example on the same machine.
    kept = httpx.Limits(max_keepalive_connections=0)
    try:
        with fail_after(policy.most_seconds):
            async with httpx.AsyncClient(trust_env=False, timeout=clock, headers=headers, limits=kept) as client:
                for _ in range(policy.most_redirects + 1):
                    response = await _answer(client, target, policy)
                    try:
                        if not response.has_redirect_location:
                            return await _taken(response, target, folder, limits, stem, limiter)
                        target = _next(target, response.headers["location"])
                    finally:
                        await response.aclose()
    except TimeoutError as error:
        raise BadUrl(f"{_shown(target)}: not there after {policy.most_seconds:g} s.") from error
    except httpx.HTTPError as error:
        raise BadUrl(f"{_shown(target)}: the answer broke off or is none.") from error
    raise BadUrl(f"{_shown(target)}: led elsewhere more than {policy.most_redirects} times; name the picture's own address.")


def is_public(address: Address, allowed: Sequence[Network] = ()) -> bool:
    """Whether an address may be connected to on a stranger's word: in the open internet, or in a network that is allowed."""
    if any(address.version == one.version and address in one for one in allowed):
        return True
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in one for one in _INSIDE_4)
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped, allowed)
    if address in _NAT64:  # how a machine without IPv4 reaches an IPv4 address
        return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF), allowed)
    return address.scope_id is None and address in _UNICAST_6 and not any(address in one for one in _INSIDE_6)


def _parsed(text: str) -> httpx.URL:
    """An address that may be looked at further."""
    import httpx

    if len(text) > LONGEST_URL:
        raise BadUrl(f"the address has {len(text)} characters, at most {LONGEST_URL} are read.")
    try:
        url = httpx.URL(text)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise BadUrl(f"{text[:80]!r} is no address that can be read; expected https://...") from error
    if url.scheme not in DEFAULT_PORTS or not url.host:
        raise BadUrl(f"{text[:80]!r}: only http:// and https:// addresses are fetched.")
    if url.userinfo:
        raise BadUrl(f"{_shown(url)}: an address with a user or password in it is not fetched.")
    return url.copy_with(fragment=None)


def _next(url: httpx.URL, location: str) -> httpx.URL:
    """Where a redirect leads."""
    import httpx

    try:
        joined = str(url.join(location))
    except (httpx.InvalidURL, ValueError) as error:
        raise BadUrl(f"{_shown(url)}: leads on to something that is no address to fetch.") from error
    target = _parsed(joined)
    if url.scheme == "https" and target.scheme != "https":
        raise BadUrl(f"{_shown(url)}: leads from https to http.")
    return target


async def _answer(client: httpx.AsyncClient, url: httpx.URL, policy: FetchPolicy) -> httpx.Response:
    """What the server of an address says, its body not read yet."""
    import httpx

    host, port = _allowed(url, policy)
    for address in await _addresses(url, host, port, policy):
        request = client.build_request(
            "GET",
            url.copy_with(host=str(address)),
            headers={"host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": host},  # also the name that the certificate must have
        )
        try:
            return await client.send(request, stream=True, follow_redirects=False)
        except (httpx.ConnectError, httpx.ConnectTimeout):
            continue
    raise BadUrl(f"{_shown(url)}: cannot be reached.")


def _allowed(url: httpx.URL, policy: FetchPolicy) -> tuple[str, int]:
    """Host and port of an address whose host is on the list. Raises BadUrl."""
    host = url.raw_host.decode("ascii").lower().rstrip(".")
    own = DEFAULT_PORTS[url.scheme]
    port = url.port or own
    for one in policy.hosts:
        name, _, named = one.partition(":")
        fits = name in ("*", host) or (name.startswith("*.") and host.endswith(name[1:]))
        if fits and (port == int(named) if named else port in DEFAULT_PORTS.values()):
            return host, port
    raise BadUrl(f"{_shown(url)}: not one of the places that are fetched from here; send the picture itself.")


async def _addresses(url: httpx.URL, host: str, port: int, policy: FetchPolicy) -> list[Address]:
    """What a host's name leads to, all of it fit to be connected to. Raises BadUrl."""
    import anyio

    last = host.rpartition(".")[2]
    try:
        if ":" in host or re.fullmatch(r"\d+|0x[0-9a-f]*", last):
            # Numbers in other spellings (2130706433, 0177.0.0.1, 127.1) are for hiding what is meant.
            found: list[Address] = [ipaddress.ip_address(host)]
        elif not re.fullmatch(r"[a-z0-9_.-]+", host):
            raise ValueError("no name of a host")
        else:
            entries = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(ipaddress.ip_address(entry[4][0]) for entry in entries))
    except (OSError, UnicodeError, ValueError) as error:
        raise BadUrl(f"{_shown(url)}: there is no such host.") from error
    if not found or not all(is_public(one, policy.allowed_networks) for one in found):
        raise BadUrl(f"{_shown(url)}: leads to an address that is not public, which is not fetched.")
    return found[:MOST_ADDRESSES]


async def _taken(
    response: httpx.Response,
    url: httpx.URL,
    folder: Path,
    limits: UploadLimits | None,
    stem: str,
    limiter: CapacityLimiter | None,
) -> Upload:
    if response.status_code != 200:
        raise BadUrl(f"{_shown(url)}: answered {response.status_code} instead of a picture.")
    if response.headers.get("content-encoding", "identity").lower() != "identity":
        raise BadUrl(f"{_shown(url)}: answered packed ({response.headers['content-encoding'][:20]}), which was not asked for.")
    name = safe_name(url.path.rpartition("/")[2] or url.host)
    return await read_upload(response.aiter_raw(), folder, limits, name=name, stem=stem, limiter=limiter)


def _shown(url: httpx.URL) -> str:
    """An address as messages name it: without what may be secret in it."""
    return f"{url.scheme}://{url.netloc.decode('ascii')}{url.path}"[:200]
