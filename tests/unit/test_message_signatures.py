"""RFC 9421: the RFC's own example, byte for byte; what is asked for by Accept-Signature; knocks."""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.keys import load_private_key
from fedsvc.domain.knock import MAX_KNOCKS, Dialect, Form, first_form, next_form
from fedsvc.domain.message import Message
from fedsvc.domain.message_signatures import DEFAULT, FULL, Coverage, request, signature_base, wanted
from fedsvc.domain.signatures import Target, imf_fixdate

# RFC 9421, B.1.4 and B.2.6
RFC_KEY = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIJ+DYvh6SEqVTm50DFtMDoQikTmiCqirVv9mWG9qfSnF
-----END PRIVATE KEY-----"""
RFC_BODY = b'{"hello": "world"}'
RFC_COVERAGE = Coverage(
    ("date", "@method", "@path", "@authority", "content-type", "content-length"), "sig-b26"
)
RFC_BASE = b"""\
"date": Tue, 20 Apr 2021 02:07:55 GMT
"@method": POST
"@path": /foo
"@authority": example.com
"content-type": application/json
"content-length": 18
"@signature-params": ("date" "@method" "@path" "@authority" "content-type" "content-length")\
;created=1618884473;keyid="test-key-ed25519\""""
RFC_SIGNATURE = (
    "sig-b26=:wqcAqbmYJ2ji2glfAMaRy4gruYYnx2nEFN2HN6jrnDnQCK1u02Gb04v9EDgwUPiu4A0w6vuQv5lIp5WPpBKRCw==:"
)
# RFC 9421, B.1.1 and section 4.3: the one signature of type rsa-v1_5-sha256 that it has
RFC_RSA_KEY = """-----BEGIN RSA PRIVATE KEY-----
MIIEqAIBAAKCAQEAhAKYdtoeoy8zcAcR874L8cnZxKzAGwd7v36APp7Pv6Q2jdsP
BRrwWEBnez6d0UDKDwGbc6nxfEXAy5mbhgajzrw3MOEt8uA5txSKobBpKDeBLOsd
JKFqMGmXCQvEG7YemcxDTRPxAleIAgYYRjTSd/QBwVW9OwNFhekro3RtlinV0a75
jfZgkne/YiktSvLG34lw2zqXBDTC5NHROUqGTlML4PlNZS5Ri2U4aCNx2rUPRcKI
lE0PuKxI4T+HIaFpv8+rdV6eUgOrB2xeI1dSFFn/nnv5OoZJEIB+VmuKn3DCUcCZ
SFlQPSXSfBDiUGhwOw76WuSSsf1D4b/vLoJ10wIDAQABAoIBAG/JZuSWdoVHbi56
vjgCgkjg3lkO1KrO3nrdm6nrgA9P9qaPjxuKoWaKO1cBQlE1pSWp/cKncYgD5WxE
CpAnRUXG2pG4zdkzCYzAh1i+c34L6oZoHsirK6oNcEnHveydfzJL5934egm6p8DW
+m1RQ70yUt4uRc0YSor+q1LGJvGQHReF0WmJBZHrhz5e63Pq7lE0gIwuBqL8SMaA
yRXtK+JGxZpImTq+NHvEWWCu09SCq0r838ceQI55SvzmTkwqtC+8AT2zFviMZkKR
Qo6SPsrqItxZWRty2izawTF0Bf5S2VAx7O+6t3wBsQ1sLptoSgX3QblELY5asI0J
YFz7LJECgYkAsqeUJmqXE3LP8tYoIjMIAKiTm9o6psPlc8CrLI9CH0UbuaA2JCOM
cCNq8SyYbTqgnWlB9ZfcAm/cFpA8tYci9m5vYK8HNxQr+8FS3Qo8N9RJ8d0U5Csw
DzMYfRghAfUGwmlWj5hp1pQzAuhwbOXFtxKHVsMPhz1IBtF9Y8jvgqgYHLbmyiu1
mwJ5AL0pYF0G7x81prlARURwHo0Yf52kEw1dxpx+JXER7hQRWQki5/NsUEtv+8RT
qn2m6qte5DXLyn83b1qRscSdnCCwKtKWUug5q2ZbwVOCJCtmRwmnP131lWRYfj67
B/xJ1ZA6X3GEf4sNReNAtaucPEelgR2nsN0gKQKBiGoqHWbK1qYvBxX2X3kbPDkv
9C+celgZd2PW7aGYLCHq7nPbmfDV0yHcWjOhXZ8jRMjmANVR/eLQ2EfsRLdW69bn
f3ZD7JS1fwGnO3exGmHO3HZG+6AvberKYVYNHahNFEw5TsAcQWDLRpkGybBcxqZo
81YCqlqidwfeO5YtlO7etx1xLyqa2NsCeG9A86UjG+aeNnXEIDk1PDK+EuiThIUa
/2IxKzJKWl1BKr2d4xAfR0ZnEYuRrbeDQYgTImOlfW6/GuYIxKYgEKCFHFqJATAG
IxHrq1PDOiSwXd2GmVVYyEmhZnbcp8CxaEMQoevxAta0ssMK3w6UsDtvUvYvF22m
qQKBiD5GwESzsFPy3Ga0MvZpn3D6EJQLgsnrtUPZx+z2Ep2x0xc5orneB5fGyF1P
WtP+fG5Q6Dpdz3LRfm+KwBCWFKQjg7uTxcjerhBWEYPmEMKYwTJF5PBG9/ddvHLQ
EQeNC8fHGg4UXU8mhHnSBt3EA10qQJfRDs15M38eG2cYwB1PZpDHScDnDA0=
-----END RSA PRIVATE KEY-----"""
RFC_RSA_VALUES = {
    "@method": "POST",
    "@authority": "origin.host.internal.example",
    "@path": "/foo",
    "content-digest": "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwE"
    "mTHWXvJwew==:",
    "content-type": "application/json",
    "content-length": "18",
    "forwarded": "for=192.0.2.123;host=example.com;proto=https",
}
RFC_RSA_TOLD = (
    '("@method" "@authority" "@path" "content-digest" "content-type" "content-length" "forwarded")'
    ';created=1618884480;keyid="test-key-rsa";alg="rsa-v1_5-sha256";expires=1618884540'
)
RFC_RSA_SIGNATURE = (
    "S6ZzPXSdAMOPjN/6KXfXWNO/f7V6cHm7BXYUh3YD/fRad4BCaRZxP+JH+8XY1I6+8Cy+CM5g92iHgxtRPz+MjniOaYmdkDcnL9cCpXJl"
    "eXsOckpURl49GwiyUpZ10KHgOEe11sx3G2gxI8S0jnxQB+Pu68U9vVcasqOWAEObtNKKZd8tSFu7LB5YAv0RAGhB8tmpv7sFnIm9y+7X"
    "5kXQfi8NMaZaA8i2ZHwpBdg7a6CMfwnnrtflzvZdXAsD3LH2TwevU+/PBPv0B6NMNk93wUs/vfJvye+YuI87HU38lZHowtznbLVdp770"
    "I6VHR6WfgS9ddzirrswsE1w5o0LV/g=="
)
URL = "https://remote.example/inbox?x=1"


def of(coverage: Coverage, url: str = URL, key_id: str = "https://me.example/u/x#main-key") -> dict[str, str]:
    unsigned = request(
        coverage, "https", Target.of(url),
        digest=Message.digest_of(RFC_BODY), length=len(RFC_BODY), content_type="application/activity+json",
        key_id=key_id, epoch_seconds=1_795_431_600, date=imf_fixdate(1_795_431_600),
    )  # fmt: skip
    return {**unsigned.with_signature(b"\1\2"), "base": unsigned.base.decode()}


def test_the_rfcs_example_is_made_byte_for_byte() -> None:
    unsigned = request(
        RFC_COVERAGE, "https", Target.of("https://example.com/foo?param=Value&Pet=dog"),
        digest=Message.digest_of(RFC_BODY), length=len(RFC_BODY), content_type="application/json",
        key_id="test-key-ed25519", epoch_seconds=1_618_884_473, date=imf_fixdate(1_618_884_475),
    )  # fmt: skip
    assert unsigned.base == RFC_BASE
    key = load_pem_private_key(RFC_KEY.encode(), None)
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    assert unsigned.with_signature(key.sign(unsigned.base))["Signature"] == RFC_SIGNATURE


def test_the_rfcs_signature_by_rsa_is_made_byte_for_byte() -> None:
    base = signature_base(tuple(RFC_RSA_VALUES), RFC_RSA_VALUES, RFC_RSA_TOLD)
    signed = load_private_key(RFC_RSA_KEY).sign(base)
    assert base64.b64encode(signed).decode() == RFC_RSA_SIGNATURE


def test_by_default_it_is_what_mastodon_wants() -> None:
    digest = base64.b64encode(base64.b64decode(Message.digest_of(RFC_BODY))).decode()
    told = '("@method" "@target-uri" "content-digest");created=1795431600;keyid="https://me.example/u/x#main-key"'
    assert of(DEFAULT) == {
        "Host": "remote.example",
        "Date": "Mon, 23 Nov 2026 11:00:00 GMT",
        "Content-Type": "application/activity+json",
        "Content-Digest": f"sha-256=:{digest}:",
        "Signature-Input": f"sig1={told}",
        "Signature": "sig1=:AQI=:",
        "base": f'"@method": POST\n"@target-uri": {URL}\n"content-digest": sha-256=:{digest}:\n'
        f'"@signature-params": {told}',
    }


def test_every_component_has_its_value() -> None:
    names = (
        "@authority",
        "@scheme",
        "@request-target",
        "@path",
        "@query",
        "digest",
        "host",
        "content-length",
    )
    base = of(Coverage(names), "https://remote.example:8443/a/b?x=1&y")["base"]
    digest = Message.digest_of(RFC_BODY)
    assert base.splitlines()[:-1] == [
        '"@authority": remote.example:8443',
        '"@scheme": https',
        '"@request-target": /a/b?x=1&y',
        '"@path": /a/b',
        '"@query": ?x=1&y',
        f'"digest": SHA-256={digest}',
        '"host": remote.example:8443',
        '"content-length": 18',
    ]
    assert '"@query": ?\n' in of(Coverage(("@query",)), "https://remote.example/a")["base"]


def test_a_key_id_cannot_end_its_quotes() -> None:
    told = of(DEFAULT, key_id='https://me.example/"\\\n;alg="x')["Signature-Input"]
    assert 'keyid="https://me.example/%22%5C%0A;alg=%22x"' in told


@pytest.mark.parametrize(
    ("header", "components", "told"),
    [
        ('sig1=("@method" "@target-uri" "content-digest");created', "@method @target-uri content-digest", ""),
        ('a=("@target-uri");nonce="n;\\"1";tag="t"', "@target-uri content-digest", 'nonce="n;\\"1";tag="t"'),
        ('a=("@method");expires;keyid;alg="ed25519"', "@method @target-uri content-digest", 'alg="ed25519"'),
        ('a=("@authority" "@request-target" "digest")', "@authority @request-target digest", ""),
        ('no=("@status"), b=("date" "@target-uri")', "date @target-uri content-digest", ""),
        ('no=("@target-uri");alg="rsa-pss-sha512", b=("@target-uri")', "@target-uri content-digest", ""),
        ('no=("@target-uri";req), b=("@target-uri")', "@target-uri content-digest", ""),
        ('no=("date" "date"), no2=5, b=("@target-uri")', "@target-uri content-digest", ""),
    ],
)  # fmt: skip
def test_what_is_asked_for_is_signed(header: str, components: str, told: str) -> None:
    coverage = wanted(header, "ed25519")
    assert coverage is not None
    assert coverage.components == tuple(components.split())
    line = of(coverage)["Signature-Input"]
    assert told in line
    assert "created=" in line
    assert ("expires=1795431900" in line) is ("expires" in header)


@pytest.mark.parametrize(
    "header",
    ["", "((", "sig1", 'a=("@status")', 'a=("x-custom")', 'a=("date");nonce=5', "é=()", 'a="' + "x" * 5000,
     f'a=("date");nonce="{"x" * 600}"', 'a=("date");alg="rsa-v1_5-sha256"', "a=(" * 500],
)  # fmt: skip
def test_what_we_cannot_give_is_passed_over(header: str) -> None:
    assert wanted(header, "ed25519") is None


def test_what_is_asked_for_may_be_as_long_as_that_and_no_longer() -> None:
    offer = 'a=("@target-uri")'
    assert wanted(offer.rjust(4096), "ed25519") is not None
    assert wanted(offer.rjust(4097), "ed25519") is None
    for name in ("nonce", "tag"):
        assert wanted(f'{offer};{name}="{"x" * 512}"', "ed25519") is not None
        assert wanted(f'{offer};{name}="{"x" * 513}"', "ed25519") is None


@given(st.text(max_size=200) | st.text('ab"=();,: @methodcntgis-1\\', max_size=80))
def test_no_header_makes_it_fail(header: str) -> None:
    coverage = wanted(header, "rsa")
    if coverage is not None:
        assert of(coverage)["Signature-Input"].isprintable()


ALL_OF_IT = " ".join(f'"{name}"' for name in FULL.components)


def names(remembered: Dialect, *, offer: str = "", query: bool = False) -> list[str]:
    tried: list[Form] = []
    form: Form | None = first_form(remembered)
    while form is not None:
        tried.append(form)
        form = next_form(tried, accept_signature=offer, key_algorithm="rsa", has_query=query)
    assert len(tried) <= MAX_KNOCKS
    return [form.dialect.name for form in tried]


@pytest.mark.parametrize(
    ("remembered", "query", "offer", "expected"),
    [
        (Dialect.UNKNOWN, False, "", "CAVAGE RFC9421"),
        (Dialect.UNKNOWN, True, "", "CAVAGE RFC9421 CAVAGE_PATH"),
        (Dialect.RFC9421, False, "", "RFC9421 CAVAGE"),
        (Dialect.RFC9421, True, "", "RFC9421 CAVAGE CAVAGE_PATH"),
        (Dialect.RFC9421_FULL, False, "", "RFC9421_FULL CAVAGE"),
        (Dialect.CAVAGE_PATH, True, "", "CAVAGE_PATH RFC9421 CAVAGE"),
        (Dialect.UNKNOWN, False, 'sig1=("@method" "@target-uri" "content-digest");created', "CAVAGE RFC9421"),
        (Dialect.UNKNOWN, False, 'sig1=("@authority");created;nonce="1"', "CAVAGE RFC9421_FULL"),
        (Dialect.RFC9421, False, 'x=("@authority" "date")', "RFC9421 RFC9421_FULL CAVAGE"),
        (Dialect.RFC9421, False, 'sig1=("@method" "@target-uri" "content-digest");created', "RFC9421 CAVAGE"),
        (Dialect.RFC9421, False, 'sig1=("@method");created;nonce="1"', "RFC9421 RFC9421_FULL CAVAGE"),
        (Dialect.RFC9421, False, 'sig1=("@method");alg="rsa-v1_5-sha256"', "RFC9421 RFC9421_FULL CAVAGE"),
        (Dialect.RFC9421_FULL, False, 'sig1=("@method");created', "RFC9421_FULL RFC9421 CAVAGE"),
        (Dialect.RFC9421_FULL, False, 'x=("@authority")', "RFC9421_FULL RFC9421_FULL CAVAGE"),
        (Dialect.RFC9421_FULL, False, f"sig1=({ALL_OF_IT})", "RFC9421_FULL CAVAGE"),
        (Dialect.UNKNOWN, False, 'sig1=("date");created', "CAVAGE RFC9421_FULL"),
    ],
)
def test_knocks(remembered: Dialect, query: bool, offer: str, expected: str) -> None:
    assert names(remembered, offer=offer, query=query) == expected.split()


def test_what_a_host_asks_for_only_now_is_tried_though_another_form_covered_as_much() -> None:
    tried = [first_form(Dialect.RFC9421_FULL), Form(Dialect.CAVAGE)]
    offer = 'sig1=("@method" "@target-uri" "content-digest");created'
    form = next_form(tried, accept_signature=offer, key_algorithm="rsa", has_query=False)
    assert form == Form(Dialect.RFC9421)


def test_a_host_that_asks_for_something_else_each_time_is_not_knocked_at_for_ever() -> None:
    tried = [first_form(Dialect.UNKNOWN)]
    for number in range(10):
        offer = f'sig1=("@authority");created;nonce="{number}"'
        form = next_form(tried, accept_signature=offer, key_algorithm="rsa", has_query=True)
        tried += [form] if form is not None else []
    assert len(tried) == MAX_KNOCKS


def test_all_that_is_asked_for_is_remembered_as_the_full_form() -> None:
    assert first_form(Dialect.RFC9421_FULL).coverage == FULL
