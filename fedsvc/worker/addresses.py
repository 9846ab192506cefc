"""Which network addresses a delivery may go to.

Inboxes come from strangers, so that a worker must never become a way into its own network. Only
addresses that the whole internet can reach are taken (IANA's IPv4 and IPv6 special-purpose address
registries, RFC 6890), beside the networks that the operator allows.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

IpAddress = IPv4Address | IPv6Address
IpNetwork = IPv4Network | IPv6Network

# The standard library's is_global changed its mind between Python releases: the tables are here.
_REFUSED_V4: Final = tuple(
    (IPv4Network(network), name)
    for network, name in (
        ("0.0.0.0/8", "unspecified"),
        ("10.0.0.0/8", "private"),
        ("100.64.0.0/10", "carrier-grade NAT"),
        ("127.0.0.0/8", "loopback"),
        ("169.254.0.0/16", "link-local"),
        ("172.16.0.0/12", "private"),
        ("192.0.0.0/24", "reserved"),
        ("192.0.2.0/24", "documentation"),
        ("192.88.99.0/24", "6to4 relay"),
        ("192.168.0.0/16", "private"),
        ("198.18.0.0/15", "benchmarking"),
        ("198.51.100.0/24", "documentation"),
        ("203.0.113.0/24", "documentation"),
        ("224.0.0.0/4", "multicast"),
        ("240.0.0.0/4", "reserved"),
    )
)
_GLOBAL_V6: Final = IPv6Network("2000::/3")
_REFUSED_V6: Final = tuple(
    (IPv6Network(network), name)
    for network, name in (
        ("::/128", "unspecified"),
        ("::1/128", "loopback"),
        ("2001::/23", "reserved"),  # Teredo among them
        ("2001:db8::/32", "documentation"),
        ("2002::/16", "6to4"),
        ("3fff::/20", "documentation"),
        ("fc00::/7", "unique-local"),
        ("fe80::/10", "link-local"),
        ("ff00::/8", "multicast"),
    )
)
_NAT64: Final = IPv6Network("64:ff9b::/96")


class AddressRefused(OSError):
    """The address policy does not let a delivery go there."""


class AddressPolicy:
    """Public addresses on the allowed ports, and the allowed networks on any port."""

    def __init__(
        self, allowed_cidrs: Iterable[IpNetwork], allowed_ports: Iterable[int], allow_http: bool
    ) -> None:
        self._networks = tuple(allowed_cidrs)
        self._ports = frozenset(allowed_ports) | (frozenset({80}) if allow_http else frozenset())

    def check(self, address: str | IpAddress, port: int) -> None:
        """Raises AddressRefused unless a delivery may go to `address` (an IP address) on `port`."""
        if isinstance(address, str):
            try:
                address = ip_address(address)
            except ValueError:
                raise AddressRefused(f"{address!r} is not an IP address") from None
        forms = (address, *_embedded(address))
        if any(form in network for form in forms for network in self._networks):
            return
        for form in forms:
            kind = _special(form)
            if kind is not None:
                raise AddressRefused(f"{address} is not a public address ({kind})")
        if port not in self._ports:
            raise AddressRefused(f"port {port} of a public address is not allowed")


def _embedded(address: IpAddress) -> tuple[IPv4Address, ...]:
    """The IPv4 address that packets to `address` end up at, where IPv6 is only its wrapping."""
    if isinstance(address, IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFF_FFFF),)
    return ()


def _special(address: IpAddress) -> str | None:
    """What `address` is for instead of the public internet; None if it is public."""
    if isinstance(address, IPv4Address):
        return next((name for network, name in _REFUSED_V4 if address in network), None)
    if _embedded(address):
        return None  # judged by the address inside
    name = next((name for network, name in _REFUSED_V6 if address in network), None)
    return name or (None if address in _GLOBAL_V6 else "reserved")
