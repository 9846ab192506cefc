from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.worker.addresses import AddressPolicy, AddressRefused

PUBLIC_ONLY = AddressPolicy((), {443}, allow_http=False)


def with_networks(*networks: str) -> AddressPolicy:
    return AddressPolicy([ip_network(n) for n in networks], {443}, allow_http=False)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "8.8.8.8",
        "172.32.0.1",
        "100.128.0.1",
        "192.0.1.1",
        "223.255.255.255",
        "2606:4700::1111",
        "2a01:4f8::1",
        "::ffff:1.1.1.1",
        "64:ff9b::808:808",
    ],
)
def test_a_public_address_is_taken(address: str) -> None:
    PUBLIC_ONLY.check(address, 443)


REFUSED = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "100.64.0.1",
    "127.0.0.1",
    "127.255.255.254",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
]


@pytest.mark.parametrize("address", REFUSED)
def test_an_address_that_is_not_public_is_refused_in_all_its_forms(address: str) -> None:
    a, b, c, d = (int(part) for part in address.split("."))
    forms = [
        address,
        f"::ffff:{address}",
        f"64:ff9b::{a:02x}{b:02x}:{c:02x}{d:02x}",
        f"64:ff9b:1::{a:02x}{b:02x}:{c:02x}{d:02x}",
        f"2002:{a:02x}{b:02x}:{c:02x}{d:02x}::1",
        f"::{address}",
    ]
    for form in forms:
        with pytest.raises(AddressRefused):
            PUBLIC_ONLY.check(form, 443)


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "2001::1",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",  # Teredo
        "2001:db8::1",
        "2002:0808:0808::1",  # 6to4, of a public address too: nobody is reached that way any more
        "3fff::1",
        "5f00::1",
        "100::1",
        "4000::1",
    ],
)
def test_an_ipv6_address_that_is_not_public_is_refused(address: str) -> None:
    with pytest.raises(AddressRefused):
        PUBLIC_ONLY.check(address, 443)


@pytest.mark.parametrize(
    "text", ["", "localhost", "127.1", "0x7f000001", "2130706433", "0177.0.0.1", "1.1.1.1/32"]
)
def test_what_is_no_canonical_address_is_refused(text: str) -> None:
    with pytest.raises(AddressRefused, match="not an IP address"):
        PUBLIC_ONLY.check(text, 443)


@pytest.mark.parametrize("port", [0, 22, 80, 6379, 8443])
def test_another_port_of_a_public_address_is_refused(port: int) -> None:
    with pytest.raises(AddressRefused, match=f"port {port} "):
        PUBLIC_ONLY.check("1.1.1.1", port)


def test_http_opens_port_80_only() -> None:
    policy = AddressPolicy((), {443, 8443}, allow_http=True)
    for port in (80, 443, 8443):
        policy.check("1.1.1.1", port)
    with pytest.raises(AddressRefused):
        policy.check("1.1.1.1", 8080)


@pytest.mark.parametrize("address", ["127.0.0.1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "::1"])
def test_an_allowed_network_is_taken_on_any_port(address: str) -> None:
    with_networks("127.0.0.0/8", "::1/128").check(address, 12345)


def test_an_allowed_network_allows_nothing_beside_it() -> None:
    policy = with_networks("10.1.0.0/16")
    policy.check("10.1.2.3", 80)
    for address in ("10.2.0.1", "127.0.0.1"):
        with pytest.raises(AddressRefused):
            policy.check(address, 443)


@given(st.ip_addresses())
def test_only_addresses_that_the_library_calls_global_are_taken(address: object) -> None:
    # ours is the stricter list, so that agreement is wanted in one direction
    from ipaddress import IPv4Address, IPv6Address

    assert isinstance(address, IPv4Address | IPv6Address)
    try:
        PUBLIC_ONLY.check(address, 443)
    except AddressRefused:
        return
    assert address.is_global or str(address).startswith("64:ff9b:")
    assert not address.is_multicast
