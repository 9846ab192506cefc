"""Inbox URLs and their hosts, in one normal form each.

The normal form is what is signed, sent to, counted per host and compared to find duplicates: lower-case
scheme and host (IDNA A-labels, canonical IP literals), no default port, a path, percent-encoded ASCII.
Sources: RFC 3986 section 6.2, UTS 46 for host names.
"""

from __future__ import annotations

import re
import zlib
from functools import lru_cache
from hashlib import blake2b
from ipaddress import IPv4Address, IPv6Address
from typing import Final, NamedTuple
from urllib.parse import quote, urlsplit

import idna

from fedsvc.domain.errors import InvalidInbox, InvalidKey

MAX_URL: Final = 2048

#: an ordinary inbox, in normal form already; no "--" in its host, which an A-label has
_PLAIN: Final = re.compile(
    r"https://((?:[a-z0-9]++(?:-[a-z0-9]++)*+\.)++[a-z][a-z0-9]*+)/[A-Za-z0-9._~!$&'()*+,;=:@/-]*+"
)
#: a host that is no longer has no label that is too long
_PLAIN_HOST: Final = 63
_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_FORBIDDEN: Final = re.compile(r'[\x00-\x20\x7f"<>\\^`{|}\ud800-\udfff]')
_BAD_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_NUMERIC_LABEL: Final = re.compile(r"(?:[0-9]+|0[xX][0-9A-Fa-f]*)")
_HOST: Final = re.compile(
    r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
)
_SAFE: Final = "!$%&'()*+,;=:@/?-._~[]"
_DEFAULT_PORTS: Final = {"https": 443, "http": 80}


class Inbox(NamedTuple):
    """`url` in normal form; `host` without port, IPv6 without brackets."""

    url: str
    host: str


def parse_inbox(text: str, *, allow_http: bool = False) -> Inbox:
    """Raises InvalidInbox."""
    plain = _PLAIN.fullmatch(text)
    if plain is not None:
        host = plain[1]
        if len(host) <= _PLAIN_HOST and len(text) <= MAX_URL:
            return Inbox(text, host)
    try:
        return _normal_form(text, allow_http)
    except ValueError as error:
        raise InvalidInbox("inbox", str(error)) from None


def origin_of(key_id: str, field: str = "signing_key.key_id") -> str:
    """Host of a key id: the instance that speaks. Raises InvalidKey, of `field`."""
    try:
        if len(key_id) > MAX_URL:
            raise ValueError(f"is longer than {MAX_URL} characters")
        base = key_id.split("#", 1)[0]
        if not key_id.isascii() or _FORBIDDEN.search(key_id):
            raise ValueError("has characters that cannot stand in a Signature header")
        return _origin(base)
    except ValueError as error:
        raise InvalidKey(field, str(error)) from None


@lru_cache(1024)
def _origin(url: str) -> str:
    return _normal_form(url, allow_http=True).host


def parse_host(text: str) -> str:
    """A host name or address by itself, in normal form. Raises ValueError."""
    shown = f"[{text}]" if ":" in text and not text.startswith("[") else text
    try:
        found = _normal_form(f"https://{shown}/", allow_http=False)
    except ValueError:
        raise ValueError("is not a host name") from None
    if found.url != f"https://{f'[{found.host}]' if ':' in found.host else found.host}/":
        raise ValueError("is not a host name")
    return found.host


@lru_cache(4096)
def host_of(url: str) -> str:
    """Host of an inbox in normal form, without port; empty for no URL at all."""
    authority = url.split("/", 3)[2] if url.count("/") >= 2 else ""
    return authority[1:].split("]")[0] if authority.startswith("[") else authority.split(":")[0]


@lru_cache(4096)
def host_span(url: str) -> tuple[int, int]:
    """Where in an inbox in normal form its host begins, as `host_of` tells it, and how long that is: a byte
    each. Of what is no inbox, as a damaged record may have one, there is none: (0, 0)."""
    host = host_of(url)
    at = url.find(host, url.find("//") + 2)
    return (at, len(host)) if 0 < at <= 255 >= len(host) > 0 else (0, 0)


def partition_of(host: str, partitions: int) -> int:
    """Which part of the queue a host belongs to. Stable: it must never change."""
    return zlib.crc32(host.encode()) % partitions


def inbox_key(url: str) -> bytes:
    """8 bytes that tell an inbox among those of one activity."""
    return blake2b(url.encode(), digest_size=8).digest()


def host_key(host: str) -> bytes:
    """8 bytes that tell a host among those of one group of deliveries."""
    return blake2b(host.encode(), digest_size=8).digest()


def _normal_form(text: str, allow_http: bool) -> Inbox:
    if not text:
        raise ValueError("is required")
    if len(text) > MAX_URL:
        raise ValueError(f"is longer than {MAX_URL} characters")
    if _FORBIDDEN.search(text):
        raise ValueError("has a space, a control character or another that no URL has")
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise ValueError("is not an absolute URL")
    name = scheme[1].lower()
    if name == "http" and not allow_http:
        raise ValueError("must be https, not http")
    if name not in _DEFAULT_PORTS:
        raise ValueError(f"must be {'http or https' if allow_http else 'https'}, not {name[:20]}")
    if not text.startswith("//", scheme.end()):
        raise ValueError("is not an absolute URL")
    if "#" in text:
        raise ValueError("must have no fragment")
    try:
        parts = urlsplit(text)
    except ValueError:
        raise ValueError("has a malformed host") from None
    if "@" in parts.netloc:
        raise ValueError("must have no user info")
    host, port = _authority(parts.netloc)
    shown = f"[{host}]" if ":" in host else host
    if port is not None and port != _DEFAULT_PORTS[name]:
        shown = f"{shown}:{port}"
    path = _encoded(parts.path or "/")
    # urlsplit does not tell "?" with nothing behind it from no query; receivers verify what we send
    query = f"?{_encoded(parts.query)}" if parts.query else ""
    url = f"{name}://{shown}{path}{query}"
    if len(url) > MAX_URL:
        raise ValueError(f"is longer than {MAX_URL} characters once it is percent-encoded")
    return Inbox(url, host)


def _encoded(text: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise ValueError("has a malformed percent escape")
    return quote(text, safe=_SAFE)


def _authority(netloc: str) -> tuple[str, int | None]:
    if netloc.startswith("["):
        literal, bracket, rest = netloc[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("has a malformed IPv6 host")
        if "%" in literal:
            raise ValueError("must have no IPv6 zone")
        try:
            address = IPv6Address(literal)
        except ValueError:
            raise ValueError("has a malformed IPv6 host") from None
        return _canonical(address), _port(rest[1:])
    name, colon, port = netloc.partition(":")
    return _host(name), _port(port) if colon else None


def _canonical(address: IPv6Address) -> str:
    """RFC 5952, but never with a dotted quad: Python 3.13 writes one where 3.11 did not, and what a host's
    partition is computed from must not change."""
    mapped = address.ipv4_mapped
    if mapped is None:
        return address.compressed
    high, low = divmod(int(mapped), 65536)
    return f"::ffff:{high:x}:{low:x}"


def _port(text: str) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 65535 or len(text) > 5:
        raise ValueError("has a malformed port")
    return int(text)


def _host(name: str) -> str:
    if not name or name == ".":
        raise ValueError("has no host")
    if "%" in name:
        raise ValueError("must not have percent escapes in its host")
    host = name.lower()
    if not host.isascii() or "xn--" in host:
        try:
            # not of `host`: Python knows a final sigma, of which the mapping makes any other
            host = ".".join(map(_label, idna.uts46_remap(name, std3_rules=False).split(".")))
        except (idna.IDNAError, ValueError):
            raise ValueError("has a malformed host name") from None
    host = host.removesuffix(".")
    if _NUMERIC_LABEL.fullmatch(host.rsplit(".", 1)[-1]):
        try:
            return str(IPv4Address(host))
        except ValueError:
            raise ValueError("has an odd spelling of an IPv4 address as its host") from None
    if len(host) > 253 or not _HOST.fullmatch(host):
        raise ValueError("has a malformed host name")
    return host


def _label(label: str) -> str:
    """In ASCII, by UTS 46, section 4, without the rules of IDNA 2008 for what may be registered: there are
    hosts with signs in their names. Raises ValueError for an A-label that stands for nothing."""
    if label.startswith("xn--"):
        told = label[4:].encode("ascii").decode("punycode")
        if told.isascii() or idna.uts46_remap(told, std3_rules=False) != told:
            raise ValueError("an A-label that stands for nothing")
    elif not label.isascii():
        return f"xn--{label.encode('punycode').decode()}"
    return label
