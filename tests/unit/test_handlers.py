"""What each type's handler takes, refuses and says of order and priority."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.activity import parse_activity
from fedsvc.domain.activity_types import type_code
from fedsvc.domain.delivery import Priority
from fedsvc.domain.relations import UNRELATED, Relation, Rule
from fedsvc.errors import InvalidActivity
from fedsvc.handlers.registry import Registry, Rules

OWN = sorted((Path(__file__).parents[1] / "data" / "activities").glob("*.json"))
SERVERS = sorted((Path(__file__).parents[3] / "shared" / "activities").glob("*.json"))
REGISTRY = Registry.built_in()
ME = "https://me.example/u/ada"
ID = "https://me.example/activities/1"
POST = "https://me.example/post/1"
OTHER = "https://other.example/post/7"
NOTE: dict[str, Any] = {"id": POST, "type": "Note", "attributedTo": ME, "content": "ü"}
LIKE: dict[str, Any] = {"id": "https://me.example/like/1", "type": "Like", "actor": ME, "object": OTHER}
FOLLOW = {"id": "https://other.example/follow/1", "type": "Follow", "actor": "https://other.example/u/b"}


def judged(kind: Any, **members: Any) -> Rules:
    document = {"id": ID, "type": kind, "actor": ME, **members}
    return REGISTRY.rules(parse_activity(json.dumps(document).encode(), max_bytes=1_048_576))


def relation(kind: str, **members: Any) -> Relation:
    return judged(kind, **members).relation


@pytest.mark.parametrize("path", [*OWN, *SERVERS], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_activity_as_servers_send_it_is_taken(path: Path) -> None:
    activity = parse_activity(path.read_bytes(), max_bytes=1_048_576)
    assert REGISTRY.rules(activity).priority in Priority


TAKEN: dict[str, dict[str, Any]] = {
    "Create of an object": {"type": "Create", "object": NOTE},
    "Create of a list of one": {"type": "Create", "object": [NOTE]},
    "Create by reference": {"type": "Create", "object": POST},
    "Create that says not whose": {"type": "Create", "object": {"id": POST, "type": "Note"}},
    "Create of somebody else's at home": {
        "type": "Create",
        "object": NOTE | {"attributedTo": "https://ME.example:443/u/b"},
    },
    "Create of a video of account and channel": {
        "type": "Create",
        "object": NOTE | {"attributedTo": [{"type": "Person", "id": ME}, {"id": "https://tube.example/c"}]},
    },
    "Create attributed to something unreadable": {"type": "Create", "object": NOTE | {"attributedTo": {}}},
    "Create of several types": {"type": ["Create"], "object": NOTE | {"type": ["Note", "toot:Thing"]}},
    "Create of a chat message": {
        "type": "Create",
        "object": {"id": POST, "type": "ChatMessage", "attributedTo": ME, "to": ["https://other.example/u/b"]},
    },
    "a vote in a poll": {
        "type": "Create",
        "object": {"id": POST, "type": "Note", "name": "Yes", "inReplyTo": OTHER, "attributedTo": ME},
    },
    "unknown members and an odd context": {
        "type": "Create",
        "object": NOTE | {"x:y": [None]},
        "@context": 5,
        "z": {},
    },
    "Update of an actor": {"type": "Update", "object": {"id": ME, "type": "Person"}},
    "Update of a community by a moderator elsewhere": {
        "type": "Update",
        "object": {
            "id": "https://o.example/c/x",
            "type": "Group",
            "attributedTo": "https://o.example/c/x/moderators",
        },
    },
    "Update of a post by a moderator elsewhere": {
        "type": "Update",
        "object": {"id": OTHER, "type": "Page", "attributedTo": "https://other.example/u/b"},
    },
    "Update of a comment by a moderator elsewhere": {
        "type": "Update",
        "audience": "https://me.example/c/x",
        "object": {"id": OTHER, "type": "Note", "attributedTo": "https://other.example/u/b"},
    },
    "Delete by id": {"type": "Delete", "object": POST},
    "Delete of a Tombstone": {"type": "Delete", "object": {"id": POST, "type": "Tombstone"}},
    "Delete of oneself": {"type": "Delete", "object": ME},
    "Delete by a moderator": {"type": "Delete", "object": OTHER, "summary": "spam"},
    "Delete of a tag URI": {"type": "Delete", "object": "tag:me.example,2017-01-01:objectType=Status"},
    "Follow": {"type": "Follow", "object": "https://other.example/u/b"},
    "Follow of a relay": {"type": "Follow", "object": "https://www.w3.org/ns/activitystreams#Public"},
    "Follow of a relay, compacted": {"type": "Follow", "object": "as:Public"},
    "Follow of an embedded actor": {"type": "Follow", "object": {"id": "https://other.example/u/b"}},
    "Accept of an embedded Follow": {"type": "Accept", "object": FOLLOW},
    "Accept of a Follow without id": {"type": "Accept", "object": {"type": "Follow", "actor": OTHER}},
    "Reject by id": {"type": "Reject", "object": FOLLOW["id"]},
    "Accept of something else": {"type": "Accept", "object": {"id": OTHER, "type": "QuoteRequest"}},
    "Like": {"type": "Like", "object": OTHER},
    "Like of an embedded object": {"type": "Like", "object": {"id": OTHER}},
    "Like with a reaction": {"type": "Like", "object": OTHER, "_misskey_reaction": ":cat:"},
    "Dislike in a list": {"type": "Dislike", "object": [OTHER]},
    "Announce of a URL": {"type": "Announce", "object": OTHER},
    "Announce of an activity": {"type": "Announce", "object": LIKE | {"actor": "https://o.example/u/b"}},
    "Announce of an activity with its actor embedded": {
        "type": "Announce",
        "object": LIKE | {"actor": {"id": "https://o.example/u/b", "type": "Person"}},
    },
    "Announce of an embedded object": {"type": "Announce", "object": NOTE},
    "Announce of an embedded object without type": {"type": "Announce", "object": {"id": OTHER}},
    "Announce of an Add": {
        "type": "Announce",
        "object": {"id": ID, "type": "Add", "actor": ME, "object": {"id": OTHER}, "target": {"id": POST}},
    },
    "Undo of an embedded activity": {"type": "Undo", "object": LIKE},
    "Undo by id": {"type": "Undo", "object": LIKE["id"]},
    "Undo without the inner actor": {"type": "Undo", "object": {"type": "Like", "object": OTHER}},
    "Undo with the inner actor in full": {"type": "Undo", "object": LIKE | {"actor": [{"id": ME}]}},
    "Add of a moderator": {"type": "Add", "object": ME, "target": "https://me.example/c/x/moderators"},
    "Add of a hashtag": {
        "type": "Add",
        "object": {"type": "Hashtag", "name": "#x", "href": "https://me.example/tags/x"},
        "target": "https://me.example/u/ada/collections/tags",
    },
    "Remove from a feed": {"type": "Remove", "object": {"id": OTHER}, "target": {"type": "Collection"}},
    "Remove from an origin": {"type": "Remove", "object": OTHER, "origin": POST},
    "Block in a community": {"type": "Block", "object": OTHER, "target": "https://me.example/c/x"},
    "Flag": {"type": "Flag", "object": OTHER},
    "Flag of several": {"type": "Flag", "object": ["https://other.example/u/b", OTHER]},
    "Flag of several, embedded": {"type": "Flag", "object": ["", {"id": OTHER, "type": "Note"}]},
    "Move of an account": {"type": "Move", "object": ME, "target": "https://other.example/u/ada"},
    "Move of a post": {"type": "Move", "object": {"id": POST}, "origin": OTHER, "target": {"id": OTHER}},
    "a type that nobody knows": {"type": "Gargle"},
    "View without anything": {"type": "View", "object": None},
}  # fmt: skip

_NEITHER = "is neither a URL nor an object"
_MISSING = "is missing"
_NO_URL = "is not an absolute http(s) URL"
_NO_URI = "is not an absolute URI"
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    *(
        ({"type": kind, "target": OTHER, "object": value}, "object", problem)
        for kind in REGISTRY.types
        for value, problem in (
            (None, _MISSING), ("", _MISSING), ([], _MISSING), ({}, _MISSING), ([[]], _NEITHER), (5, _NEITHER),
            ("post/1", _NO_URI), ("https://other.example/a b", _NO_URI),
        )
    ),
    *(
        ({"type": kind, "object": {"type": "Note"}}, "object.id", _MISSING)
        for kind in REGISTRY.types if kind not in ("Accept", "Reject", "Undo", "Add", "Remove")
    ),
    *(
        ({"type": kind, "object": {"id": id, "type": "Note"}}, "object.id", problem)
        for kind in ("Create", "Update", "Announce")
        for id, problem in (("/post/1", _NO_URL), (5, "is not a string"), ("tag:me.example,2017:1", _NO_URL))
    ),
    *(
        ({"type": kind, "object": {"name": "nothing"}}, "object.id", _MISSING)
        for kind in ("Accept", "Reject", "Undo", "Add", "Remove")
    ),
    ({"type": "Create", "object": {"id": POST, "content": "x"}}, "object.type", _MISSING),
    ({"type": "Update", "object": {"id": POST, "type": []}}, "object.type", _MISSING),
    *(
        ({"type": kind, "object": NOTE | {"attributedTo": whose}}, "object.attributedTo", "on another host")
        for kind in ("Create", "Update")
        for whose in ("https://other.example/u/b", [{"id": "https://me.example.evil.example/u/ada"}])
    ),
    ({"type": "Delete", "object": {"id": "1", "type": "Tombstone"}}, "object.id", _NO_URI),
    ({"type": "Undo", "object": LIKE | {"actor": "https://me.example/u/eve"}}, "object.actor", "is not"),
    ({"type": "Undo", "object": LIKE | {"actor": {"id": OTHER}}}, "object.actor", "is not activity.actor"),
    ({"type": "Announce", "object": LIKE | {"type": None}}, "object.type", _MISSING),
    ({"type": "Announce", "object": LIKE | {"actor": None}}, "object.actor", _MISSING),
    ({"type": "Announce", "object": LIKE | {"actor": "ada"}}, "object.actor", _NO_URI),
    ({"type": "Announce", "object": LIKE | {"actor": "acct:ada@me.example"}}, "object.actor", _NO_URL),
    ({"type": "Announce", "object": LIKE | {"actor": {"name": "ada"}}}, "object.actor.id", _MISSING),
    ({"type": "Announce", "object": {"id": OTHER, "type": "Lock"}}, "object.actor", _MISSING),
    *(({"type": kind, "object": OTHER}, "target", _MISSING) for kind in ("Add", "Remove", "Move")),
    ({"type": "Remove", "object": OTHER, "origin": None}, "origin", _MISSING),
    ({"type": "Move", "object": ME, "target": {"type": "Person"}}, "target.id", _MISSING),
    ({"type": "Flag", "object": [{"type": "Note"}, 5]}, "object", "has nothing that is named"),
]  # fmt: skip


@pytest.mark.parametrize("name", TAKEN)
def test_what_some_receiver_takes_is_taken(name: str) -> None:
    members = dict(TAKEN[name])
    judged(members.pop("type"), **members)


@pytest.mark.parametrize(
    ("members", "field", "problem"),
    REFUSED,
    ids=lambda value: json.dumps(value)[:90] if isinstance(value, dict) else "",
)
def test_what_every_receiver_would_refuse_is_refused_and_the_field_named(
    members: dict[str, Any], field: str, problem: str
) -> None:
    with pytest.raises(InvalidActivity) as refused:
        judged(kind=members["type"], **{k: v for k, v in members.items() if k != "type"})
    assert refused.value.field == f"activity.{field}"
    assert problem in refused.value.problem


json_values: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["", "x", POST, OTHER, ME, "Note"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["id", "type", "actor", "object", "attributedTo", "x"]), inner)
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(REGISTRY.types), json_values, json_values, json_values)
def test_whatever_an_activity_holds_its_handler_takes_or_refuses_it(
    kind: str, object_: Any, target: Any, origin: Any
) -> None:
    refused = ""
    try:
        judged(kind, object=object_, target=target, origin=origin)
    except InvalidActivity as error:
        refused = error.field
    assert not refused or refused.startswith(("activity.object", "activity.target", "activity.origin"))


@pytest.mark.parametrize("name", REGISTRY.types)
def test_every_type_that_has_a_handler_has_a_code(name: str) -> None:
    assert type_code(name)


PRIORITIES = {
    Priority.URGENT: ["Follow", "Accept", "Reject", "Undo", "Block", "Like", "Dislike"],
    Priority.NORMAL: ["Create", "Update", "Flag", "Add", "Remove", "Move"],
    Priority.BULK: ["Announce", "Delete", "View", "like", ""],
}


@pytest.mark.parametrize(("priority", "name"), [(p, n) for p, names in PRIORITIES.items() for n in names])
def test_what_a_person_waits_for_is_urgent_content_normal_and_the_rest_bulk(
    priority: Priority, name: str
) -> None:
    assert REGISTRY.of(name).priority is priority


def test_what_concerns_one_object_keeps_its_order() -> None:
    assert relation("Create", object=NOTE) == Relation(POST, POST)
    assert relation("Update", object=NOTE) == Relation(POST, POST, Rule.OLDER_UPDATES)
    assert relation("Delete", object=POST) == Relation(POST, POST, Rule.OBJECT)
    assert relation("Accept", object=FOLLOW) == relation("Reject", object=FOLLOW) == Relation(FOLLOW["id"])


def test_an_undo_is_in_the_order_of_what_it_undoes_and_takes_it_back() -> None:
    assert relation("Undo", object=LIKE) == Relation(LIKE["id"], "", Rule.UNDONE, LIKE["id"])
    for kind in ("Like", "Dislike", "Follow", "Block", "Announce"):
        assert relation(kind, object=OTHER) == Relation(ID)
    assert relation("Undo", object={"type": "Like", "object": OTHER}) == UNRELATED


def test_a_collection_is_changed_in_order_for_each_of_its_members() -> None:
    for kind in ("Add", "Remove"):
        assert relation(kind, object=OTHER, target=POST) == Relation(f"{OTHER} {POST}")
        assert relation(kind, object=OTHER, target={"type": "Collection"}) == Relation(OTHER)


def test_what_is_announced_keeps_the_order_it_has_by_itself() -> None:
    create = {"id": ID, "type": "Create", "actor": ME, "object": NOTE}
    assert relation("Announce", object=create) == Relation(POST)
    assert relation("Announce", object=LIKE) == Relation(LIKE["id"])
    undo = {"id": ID, "type": "Undo", "actor": ME, "object": LIKE}
    assert relation("Announce", object=undo) == Relation(LIKE["id"])
    assert relation("Announce", object=NOTE) == relation("Announce", object=OTHER) == Relation(ID)


def test_others_wait_for_nobody() -> None:
    for kind in ("Flag", "Move", "View"):
        assert relation(kind, object=OTHER, target=POST) == UNRELATED


def test_what_the_caller_asks_for_has_precedence() -> None:
    update = relation("Update", object=NOTE)
    assert update.asked() is update
    assert update.asked(ordering_key="k") == Relation("k", POST, Rule.OLDER_UPDATES)
    assert update.asked(supersede_key="s") == Relation(POST, "s", Rule.SAME_KEY)
    assert relation("Undo", object=LIKE).asked(ordering_key="k").undoes == LIKE["id"]
