"""The profiles themselves: each takes a request that is right, and each rule refuses one that breaks it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from interop.crafted import (
    BREAKING,
    NAMES,
    NOW,
    SERVER,
    aged,
    cavage_request,
    expiring,
    rfc9421_aged,
    rfc9421_request,
)
from interop.profiles import PROFILES, Profile
from interop.sender import key_id
from interop.wire import Request

BY_NAME = {profile.name: profile for profile in PROFILES}
CONTROLS = [
    pytest.param(profile, rule, broken, id=f"{profile.name}-{rule}-{number}")
    for profile in PROFILES
    for rule in profile.rules
    for number, broken in enumerate(BREAKING[rule], 1)
]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_profile_takes_what_is_right(profile: Profile) -> None:
    assert profile.refusal(cavage_request(), SERVER) is None


@pytest.mark.parametrize(("profile", "rule", "broken"), CONTROLS)
def test_a_rule_refuses_what_breaks_it(profile: Profile, rule: str, broken: Callable[[], Request]) -> None:
    assert profile.refusal(broken(), SERVER) == rule


def test_every_control_belongs_to_a_rule_of_some_profile() -> None:
    assert set(BREAKING) == {rule for profile in PROFILES for rule in profile.rules}


@pytest.mark.parametrize(
    ("name", "taken"),
    [
        ("Mastodon", lambda: cavage_request(made=NOW + 3600)),
        ("Mastodon", lambda: cavage_request(made=NOW - 3900)),
        ("Mastodon", lambda: aged(NOW - 3900)),
        ("Mastodon", lambda: expiring(NOW + 86_400, NOW - 13 * 3600)),
        ("Mastodon", lambda: cavage_request(algorithm=None)),
        ("Mastodon", lambda: cavage_request(separator=", ")),
        ("Mastodon", rfc9421_request),
        ("Mastodon", lambda: rfc9421_aged(NOW - 3900)),
        (
            "Mastodon",
            lambda: rfc9421_request(
                parameters=f'created={NOW};keyid="{key_id("rsa")}";alg="rsa-v1_5-sha256"'
            ),
        ),
        ("Lemmy", lambda: cavage_request(made=NOW - 3600)),
        ("Lemmy", lambda: cavage_request(signed_as="https://me.example/whatever")),
        ("GoToSocial", lambda: cavage_request(made=NOW - 86_400)),
        ("GoToSocial", lambda: cavage_request(algorithm="whatever")),
        ("GoToSocial", lambda: aged(NOW + 10)),
        ("GoToSocial", lambda: expiring(NOW - 10)),
        ("Misskey", lambda: cavage_request(made=NOW - 300)),
        ("Pleroma", lambda: expiring(NOW + 300)),
        ("PieFed", lambda: cavage_request(made=NOW - 3600)),
        ("PieFed", lambda: cavage_request(algorithm="hs2019")),
        ("Fedify", lambda: cavage_request(made=NOW - 3600)),
        ("Fedify", lambda: cavage_request(names=tuple(name for name in NAMES if name != "host"))),
        ("Fedify", rfc9421_request),
        ("Fedify", lambda: rfc9421_request(labels=("sig1", "sig2"))),
    ],
)
def test_what_is_just_within_a_rule_is_taken(name: str, taken: Callable[[], Request]) -> None:
    assert BY_NAME[name].refusal(taken(), SERVER) is None
