from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain import inbox as module
from fedsvc.domain.errors import InvalidInbox, InvalidKey
from fedsvc.domain.inbox import Inbox, host_of, host_span, inbox_key, origin_of, parse_inbox, partition_of

ACCEPTED = {
    "https://a.example/inbox": ("https://a.example/inbox", "a.example"),
    "https://A.Example/Inbox": ("https://a.example/Inbox", "a.example"),
    "HTTPS://a.example": ("https://a.example/", "a.example"),
    "https://a.example:443/inbox": ("https://a.example/inbox", "a.example"),
    "https://a.example:8443/inbox": ("https://a.example:8443/inbox", "a.example"),
    "https://a.example./inbox": ("https://a.example/inbox", "a.example"),
    "https://a.example/inbox?x=1&y=%20": ("https://a.example/inbox?x=1&y=%20", "a.example"),
    "https://a.example/ünbox": ("https://a.example/%C3%BCnbox", "a.example"),
    "https://bücher.example/inbox": ("https://xn--bcher-kva.example/inbox", "xn--bcher-kva.example"),
    "https://BÜCHER.example/inbox": ("https://xn--bcher-kva.example/inbox", "xn--bcher-kva.example"),
    "https://xn--bcher-kva.example/": ("https://xn--bcher-kva.example/", "xn--bcher-kva.example"),
    "https://a.ΒΌΛΟΣ/": ("https://a.xn--nxasmq6b/", "a.xn--nxasmq6b"),
    "https://βόλος.example/": ("https://xn--nxasmm1c.example/", "xn--nxasmm1c.example"),
    "https://xn--i-7iq.example/": ("https://xn--i-7iq.example/", "xn--i-7iq.example"),
    "https://I❤️.Example/": ("https://xn--i-7iq.example/", "xn--i-7iq.example"),
    "https://💩.example/": ("https://xn--ls8h.example/", "xn--ls8h.example"),
    "https://_x.ü.example/": ("https://_x.xn--tda.example/", "_x.xn--tda.example"),
    "https://a.example。/inbox": ("https://a.example/inbox", "a.example"),
    "https://a.example:/inbox": ("https://a.example/inbox", "a.example"),
    "https://a.example:00443/inbox": ("https://a.example/inbox", "a.example"),
    "https://a.example/%C3%bc": ("https://a.example/%C3%bc", "a.example"),
    "https://a.example?x=ü": ("https://a.example/?x=%C3%BC", "a.example"),
    "https://①②⑦.0.0.1/": ("https://127.0.0.1/", "127.0.0.1"),
    "https://1.2.3.4./": ("https://1.2.3.4/", "1.2.3.4"),
    "https://[::FFFF:1.2.3.4]/": ("https://[::ffff:102:304]/", "::ffff:102:304"),
    "https://localhost/inbox": ("https://localhost/inbox", "localhost"),
    "https://1.2.3.4/inbox": ("https://1.2.3.4/inbox", "1.2.3.4"),
    "https://[2001:DB8:0:0::1]/inbox": ("https://[2001:db8::1]/inbox", "2001:db8::1"),
    "https://[::1]:8443/inbox": ("https://[::1]:8443/inbox", "::1"),
    "https://under_score.example/inbox": ("https://under_score.example/inbox", "under_score.example"),
}

REFUSED = {
    "": "required",
    "/inbox": "absolute",
    "a.example/inbox": "absolute",
    "http://a.example/inbox": "https",
    "ftp://a.example/inbox": "https",
    "https:a.example": "absolute",
    "https:///inbox": "no host",
    "https://user:pass@a.example/inbox": "user info",
    "https://user@a.example/inbox": "user info",
    "https://a.example/inbox#main": "fragment",
    "https://a.example/inbox#": "fragment",
    "https://a.example/in box": "space",
    "https://a.example/in\nbox": "control",
    "https://a.example\\@b.example/": "no URL has",
    "https://a.example:0/": "port",
    "https://a.example:65536/": "port",
    "https://a.example:x/": "port",
    "https://a.example/%zz": "percent",
    "https://a%2eexample/": "percent",
    "https://2130706433/": "odd spelling",
    "https://0x7f000001/": "odd spelling",
    "https://0177.0.0.1/": "odd spelling",
    "https://127.1/": "odd spelling",
    "https://1.2.3.4.5/": "odd spelling",
    "https://[::1/": "host",
    "https://[::1%25eth0]/": "zone",
    "https://01.2.3.4/": "odd spelling",
    "https://1.2.3.256/": "odd spelling",
    "https://a.0x7f/": "odd spelling",
    "https://\uff11\uff12\uff17.1/": "odd spelling",
    "https://[v1.x]/": "malformed IPv6",
    "https://[::1]x/": "malformed",
    "https://\uff41\uff0541.example/": "host name",
    "https://xn--a.example/": "host name",
    "https://xn--foo-.example/": "host name",
    "https://xn--ü.example/": "host name",
    "https://xn--3xa17b.xn--mxa.\uff58n--a.example/": "host name",
    "https://" + ".".join(["a" * 60] * 5) + "/": "host name",
    "https://a.example\uff0fb.example/": "malformed host",
    "https://user\uff20a.example/": "malformed host",
    "https://:443/": "no host",
    "https://./": "no host",
    "https://a.example/\ud800": "no URL has",
    "https://a.example/" + "ü" * 1000: "longer than 2048 characters once",
    "https://[nonsense]/": "malformed host",
    "https://-a.example/": "host name",
    "https://a..example/": "host name",
    "https://" + "a" * 64 + ".example/": "host name",
    "https://a.example/" + "x" * 8192: "longer than 2048",
}


@pytest.mark.parametrize("text", ACCEPTED, ids=str)
def test_an_inbox_is_brought_to_its_normal_form(text: str) -> None:
    assert parse_inbox(text) == Inbox(*ACCEPTED[text])


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:40] or "empty")
def test_a_bad_inbox_is_refused_in_words(text: str) -> None:
    with pytest.raises(InvalidInbox) as refused:
        parse_inbox(text)
    assert refused.value.field == "inbox"
    assert REFUSED[text] in refused.value.problem


def test_http_is_accepted_only_where_it_is_allowed() -> None:
    assert parse_inbox("http://a.example:80/inbox", allow_http=True).url == "http://a.example/inbox"


hosts = st.from_regex(r"[a-zA-Z0-9-]{1,8}(\.[a-zA-Z0-9ü-]{1,8}){0,3}", fullmatch=True)
paths = st.text(st.characters(max_codepoint=0x250), max_size=20)


@given(hosts, st.none() | st.integers(0, 70_000), paths)
def test_a_normal_form_is_its_own_normal_form(host: str, port: int | None, path: str) -> None:
    text = f"https://{host}" + (f":{port}" if port is not None else "") + f"/{path}"
    try:
        once = parse_inbox(text)
    except InvalidInbox:
        return
    assert parse_inbox(once.url) == once
    assert once.url.isascii()
    assert host_of(once.url) == once.host
    at, length = host_span(once.url)
    assert once.url[at : at + length] == once.host


@given(hosts, paths)
def test_the_fast_way_and_the_slow_way_agree(host: str, path: str) -> None:
    text = f"https://{host}/{path}"
    try:
        slow: Inbox | None = module._normal_form(text, allow_http=False)
    except ValueError:
        slow = None
    try:
        fast: Inbox | None = parse_inbox(text)
    except InvalidInbox:
        fast = None
    assert fast == slow


@pytest.mark.parametrize(
    "text",
    [
        "https://lemmy.world/inbox",
        "https://m-1.social.example/users/Ada_1/inbox",
        "https://a.example//@ada:x/",
    ],
)
def test_ordinary_inboxes_go_the_fast_way(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_normal_form", None)
    assert parse_inbox(text).url == text


@pytest.mark.parametrize("length", [1, 62, 63])
def test_hosts_near_the_limit_of_the_fast_way_are_taken(length: int) -> None:
    label = "a" * length
    for host in (f"{label}.example", f"a.{label}", f"a--{'b' * (length - 3)}.example" if length > 3 else "a"):
        assert parse_inbox(f"https://{host}/inbox").host == host


@given(st.from_regex(module._PLAIN, fullmatch=True))
def test_what_goes_the_fast_way_would_not_change_on_the_slow_way(text: str) -> None:
    try:
        assert module._normal_form(text, allow_http=False) == parse_inbox(text)
        assert parse_inbox(text).url == text
    except ValueError:
        with pytest.raises(InvalidInbox):
            parse_inbox(text)


@given(st.text(max_size=200))
def test_nothing_but_a_refusal_ever_comes_of_nonsense(text: str) -> None:
    try:
        parse_inbox(text, allow_http=True)
    except InvalidInbox:
        return


def test_the_origin_is_the_host_of_the_key_id() -> None:
    assert origin_of("https://me.example/u/ada#main-key") == "me.example"
    assert origin_of("https://Me.Example:8443/u/ada") == "me.example"
    for bad in (
        "",
        "me.example",
        "ftp://me.example/",
        'https://me.example/"x',
        "https://me.example/ü",
        "https://me.example/u/ada#main key",
        "https://me.example/u/ada#a\\b",
        "https://me.example/u/ada\n",
        "x" * 3000,
    ):
        with pytest.raises(InvalidKey) as refused:
            origin_of(bad)
        assert refused.value.field == "signing_key.key_id"


def test_partitions_and_keys_never_change() -> None:
    """They are stored: other values would lose what is there."""
    assert [partition_of(host, 16) for host in ("a.example", "lemmy.world", "::1")] == [12, 14, 7]
    assert inbox_key("https://a.example/inbox").hex() == "61464bb6796df80a"


@pytest.mark.parametrize(
    ("url", "span"),
    [
        ("https://remote.example/inbox", (8, 14)),
        ("http://http/inbox", (7, 4)),
        ("https://[2001:db8::1]:8443/inbox", (9, 11)),
        ("https://10.0.0.1:8443/10.0.0.1", (8, 8)),
        ("", (0, 0)),
        # none of these is an inbox
        ("/:/=//", (0, 0)),
        ("https://" + 256 * "h" + "/inbox", (0, 0)),
        (256 * "s" + "://remote.example/inbox", (0, 0)),
    ],
)
def test_where_the_host_of_an_inbox_stands(url: str, span: tuple[int, int]) -> None:
    assert host_span(url) == span
