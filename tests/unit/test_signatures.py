import base64
import re
from collections.abc import Callable
from typing import Any

import pytest
from apsig.draft import Verifier
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.message import Message
from fedsvc.domain.signatures import MessageForm, Target, imf_fixdate, quoted_key_id

# the test key of draft-cavage-http-signatures-12, appendix C
DRAFT_KEY = """-----BEGIN RSA PRIVATE KEY-----
MIICXgIBAAKBgQDCFENGw33yGihy92pDjZQhl0C36rPJj+CvfSC8+q28hxA161QF
NUd13wuCTUcq0Qd2qsBe/2hFyc2DCJJg0h1L78+6Z4UMR7EOcpfdUE9Hf3m/hs+F
UR45uBJeDK1HSFHD8bHKD6kv8FPGfJTotc+2xjJwoYi+1hqp1fIekaxsyQIDAQAB
AoGBAJR8ZkCUvx5kzv+utdl7T5MnordT1TvoXXJGXK7ZZ+UuvMNUCdN2QPc4sBiA
QWvLw1cSKt5DsKZ8UETpYPy8pPYnnDEz2dDYiaew9+xEpubyeW2oH4Zx71wqBtOK
kqwrXa/pzdpiucRRjk6vE6YY7EBBs/g7uanVpGibOVAEsqH1AkEA7DkjVH28WDUg
f1nqvfn2Kj6CT7nIcE3jGJsZZ7zlZmBmHFDONMLUrXR/Zm3pR5m0tCmBqa5RK95u
412jt1dPIwJBANJT3v8pnkth48bQo/fKel6uEYyboRtA5/uHuHkZ6FQF7OUkGogc
mSJluOdc5t6hI1VsLn0QZEjQZMEOWr+wKSMCQQCC4kXJEsHAve77oP6HtG/IiEn7
kpyUXRNvFsDE0czpJJBvL/aRFUJxuRK91jhjC68sA7NsKMGg5OXb5I5Jj36xAkEA
gIT7aFOYBFwGgQAQkWNKLvySgKbAZRTeLBacpHMuQdl1DfdntvAyqpAZ0lY0RKmW
G6aFKaqQfOXKCyWoUiVknQJAXrlgySFci/2ueKlIE1QqIiLSZ8V8OlpFLRnb1pzI
7U1yQXnTAEFYM560yJlzUpOb1V4cScGd365tiSMvxLOvTA==
-----END RSA PRIVATE KEY-----"""
# its request: C.2 signs "(request-target) host date", with this result
DRAFT_URL = "http://example.com/foo?param=value&pet=dog"
DRAFT_BODY = b'{"hello": "world"}'
DRAFT_TIME = 1_388_957_500
DRAFT_C2_SIGNATURE = (
    "qdx+H7PHHDZgy4y/Ahn9Tny9V3GP6YgBPyUXMmoxWtLbHpUnXS2mg2+SbrQDMCJypxBLSPQR2aAjn7ndmw2iicw3HMbe8VfE"
    "dKFYRqzic+efkb3nndiv/x1xSHDJWeSWkx3ButlYSuBskLu6kd9Fswtemr3lgdDEmn04swr2Os0="
)

KEY = load_pem_private_key(DRAFT_KEY.encode(), None)
assert isinstance(KEY, rsa.RSAPrivateKey)
PUBLIC = KEY.public_key()
KEY_ID = "https://me.example/u/x#main-key"
TYPE = "application/activity+json"


def sign(data: bytes) -> bytes:
    assert isinstance(KEY, rsa.RSAPrivateKey)
    return KEY.sign(data, padding.PKCS1v15(), hashes.SHA256())


def form_of(body: bytes = DRAFT_BODY, key_id: str = KEY_ID, algorithm: str = "rsa") -> MessageForm:
    return MessageForm.of(Message.digest_of(body), key_id, TYPE, algorithm)


def signed_headers(
    form: MessageForm, url: str, epoch_seconds: int, sign: Callable[[bytes], bytes]
) -> dict[str, str]:
    target, date = Target.of(url), imf_fixdate(epoch_seconds)
    return form.headers(target, date, sign(form.base(target, date)))


def test_the_base_is_the_drafts_own_followed_by_the_digest() -> None:
    base = form_of().base(Target.of(DRAFT_URL), imf_fixdate(DRAFT_TIME))
    drafts, _, digest = base.rpartition(b"\n")
    assert base64.b64encode(sign(drafts)).decode() == DRAFT_C2_SIGNATURE
    assert digest == b"digest: SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="


def test_the_headers_are_exactly_these() -> None:
    headers = signed_headers(form_of(), DRAFT_URL, DRAFT_TIME, sign)
    assert headers == {
        "Host": "example.com",
        "Date": "Sun, 05 Jan 2014 21:31:40 GMT",
        "Digest": "SHA-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=",
        "Content-Type": "application/activity+json",
        "Signature": 'keyId="https://me.example/u/x#main-key",algorithm="rsa-sha256",'
        'headers="(request-target) host date digest",'
        'signature="WC34OEWXgO0viIZAu5qnBcKj5nOMlgjs0ASxgJPYX9x1VtKrYRRhAosH7ixFnkJneSHGn8yY9lowNvbdBg+Z'
        "sINx6P0e1WyB0YJbwsREYKYpG1sjwS3R3iCXmXf3m+txiCNhFcbbvb0Grq3wbAWGB0VW7ymI6AHixDXFLD5IYl4="
        '"',
    }


def test_an_independent_library_verifies_them() -> None:
    import time

    url = "https://remote.example:8443/u/bob/inbox"
    headers = signed_headers(form_of(), url, int(time.time()), sign)
    assert Verifier(PUBLIC, "POST", url, headers, DRAFT_BODY).verify(raise_on_fail=True) == KEY_ID


def test_a_key_of_type_ed25519_is_announced_as_hs2019() -> None:
    headers = signed_headers(form_of(algorithm="ed25519"), DRAFT_URL, DRAFT_TIME, lambda data: b"signed")
    assert ',algorithm="hs2019",' in headers["Signature"]


def test_a_key_of_another_type_is_an_error() -> None:
    with pytest.raises(ValueError, match="dsa"):
        form_of(algorithm="dsa")


@pytest.mark.parametrize(
    ("url", "host", "path"),
    [
        ("https://remote.example/inbox", "remote.example", "/inbox"),
        ("https://remote.example/inbox?x=1&y=%20", "remote.example", "/inbox?x=1&y=%20"),
        ("https://remote.example", "remote.example", "/"),
        ("https://remote.example?x=/1", "remote.example", "/?x=/1"),
        ("https://remote.example/a//b/../c;p", "remote.example", "/a//b/../c;p"),
        ("https://remote.example:443/inbox", "remote.example", "/inbox"),
        ("https://remote.example:8443/inbox", "remote.example:8443", "/inbox"),
        ("https://remote.example:80/inbox", "remote.example:80", "/inbox"),
        ("http://remote.example:80/inbox", "remote.example", "/inbox"),
        ("http://remote.example:8080/inbox", "remote.example:8080", "/inbox"),
        ("https://Remote.Example/Inbox", "remote.example", "/Inbox"),
        ("https://[2606:4700::1111]/inbox", "[2606:4700::1111]", "/inbox"),
        ("https://[2606:4700::443]:8443/inbox", "[2606:4700::443]:8443", "/inbox"),
        ("https://remote.example/inbox#fragment", "remote.example", "/inbox"),
    ],
)
def test_the_target_has_the_query_and_a_port_that_is_not_the_schemes(url: str, host: str, path: str) -> None:
    assert Target.of(url) == (host, path)


@pytest.mark.parametrize(
    "url",
    ["", "/inbox", "https://", "https:///inbox", "https://h/a b", "https://h/\r\nX: y", "https://ü.example/"],
)
def test_what_no_request_line_can_carry_is_an_error(url: str) -> None:
    with pytest.raises(ValueError, match="URL"):
        Target.of(url)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "Thu, 01 Jan 1970 00:00:00 GMT"),
        (1_795_431_600, "Mon, 23 Nov 2026 11:00:00 GMT"),
        (1_709_164_799, "Wed, 28 Feb 2024 23:59:59 GMT"),
        (1_709_164_800, "Thu, 29 Feb 2024 00:00:00 GMT"),
    ],
)
def test_the_date_is_in_gmt_and_in_english(seconds: int, text: str) -> None:
    assert imf_fixdate(seconds) == text


@pytest.mark.parametrize(
    ("key_id", "quoted"),
    [
        ("https://me.example/u/x#main-key", "https://me.example/u/x#main-key"),
        ("https://me.example/u/x?a=1&b=%C3%BC", "https://me.example/u/x?a=1&b=%C3%BC"),
        ('https://me.example/",algorithm="none', "https://me.example/%22,algorithm=%22none"),
        ("https://me.example/\\", "https://me.example/%5C"),
        ("https://me.example/\r\nX-Evil: 1", "https://me.example/%0D%0AX-Evil:%201"),
        ("https://me.example/ü", "https://me.example/%C3%BC"),
    ],
)
def test_a_key_id_cannot_end_its_quotes(key_id: str, quoted: str) -> None:
    assert quoted_key_id(key_id) == quoted


@given(st.text(max_size=60, alphabet=st.characters(exclude_categories=["Cs"])))
def test_no_key_id_breaks_the_signature_header(key_id: str) -> None:
    header = form_of(key_id=key_id).headers(Target("h", "/"), "d", b"x")["Signature"]
    assert re.fullmatch(
        r'keyId="[!#-\[\]-~]*",algorithm="rsa-sha256",headers="[a-z() -]+",signature="eA=="', header
    )


@given(st.binary(max_size=200), st.integers(0, 4_000_000_000))
def test_what_is_sent_is_what_was_signed(body: bytes, seconds: int) -> None:
    seen: list[bytes] = []

    def watch(data: bytes) -> bytes:
        seen.append(data)
        return b""

    headers: dict[str, Any] = signed_headers(form_of(body), DRAFT_URL, seconds, watch)
    lines = [
        "(request-target): post /foo?param=value&pet=dog",
        *(f"{name}: {headers[name.title()]}" for name in ("host", "date", "digest")),
    ]
    assert seen == ["\n".join(lines).encode()]
