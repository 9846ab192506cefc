"""What handlers check of an activity. Each raises InvalidActivity with the field's path.

JSON-LD makes no difference between a value and a list of it, nor between an object and its id: neither do
these.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

from fedsvc.domain.activity import Activity, first, is_url
from fedsvc.domain.errors import InvalidActivity

#: any absolute URI: what an activity refers to need not be on the web ("as:Public", "tag:...", "at://...")
_URI: Final = re.compile(r"[a-z][a-z0-9+.-]*:\S+", re.IGNORECASE)
_HOST: Final = re.compile(r"https?://(?:[^/?#@]*@)?(\[[^\]]*\]|[^/?#:]*)", re.IGNORECASE)


def is_reference(text: str) -> bool:
    """Whether it is an absolute URI, of any kind."""
    return _URI.fullmatch(text) is not None


def required(parent: Mapping[str, Any], name: str, path: str = "activity") -> str | dict[str, Any]:
    """What stands in `name`, the first if it is a list: an absolute URI, or an object that is not empty."""
    value: str | dict[str, Any] | None = first(parent.get(name))
    if isinstance(value, str):
        if value and not is_reference(value):
            raise InvalidActivity(f"{path}.{name}", "is not an absolute URI")
    elif value is not None and not isinstance(value, dict):
        raise InvalidActivity(f"{path}.{name}", "is neither a URL nor an object")
    if not value:
        raise InvalidActivity(f"{path}.{name}", "is missing")
    return value


def identified(parent: Mapping[str, Any], name: str, path: str = "activity") -> str | dict[str, Any]:
    """As `required`; if it is embedded it must have an id, since receivers go by that."""
    value = required(parent, name, path)
    if isinstance(value, dict):
        required_id(value, f"{path}.{name}", web=False)
    return value


def named(parent: Mapping[str, Any], name: str, path: str = "activity") -> str | dict[str, Any]:
    """As `required`; if it is embedded it must have an id or a type, to be told from anything else."""
    value = required(parent, name, path)
    if isinstance(value, dict) and not type_of(value):
        required_id(value, f"{path}.{name}", web=False)
    return value


def embedded(parent: Mapping[str, Any], name: str, path: str = "activity") -> str | dict[str, Any]:
    """As `required`; if it is embedded it must have a type, and an http(s) URL as id."""
    value = required(parent, name, path)
    if isinstance(value, dict):
        required_id(value, f"{path}.{name}")
        if not type_of(value):
            raise InvalidActivity(f"{path}.{name}.type", "is missing")
    return value


def required_id(value: Mapping[str, Any], path: str, *, web: bool = True) -> None:
    """`web`: it must be an http(s) URL, else any absolute URI will do."""
    id = value.get("id")
    if id is None or id == "":
        raise InvalidActivity(f"{path}.id", "is missing")
    if not isinstance(id, str):
        raise InvalidActivity(f"{path}.id", "is not a string")
    if web:
        if not is_url(id):
            raise InvalidActivity(f"{path}.id", "is not an absolute http(s) URL")
    elif not is_reference(id):
        raise InvalidActivity(f"{path}.id", "is not an absolute URI")


def type_of(value: Mapping[str, Any]) -> str:
    """The first type; empty if there is none."""
    name = first(value.get("type"))
    return name if isinstance(name, str) else ""


def ids_of(value: Any) -> list[str]:
    """Of one or many, each an id or an object that has one; what has none is left out."""
    found = (
        one.get("id") if isinstance(one, dict) else one
        for one in (value if isinstance(value, list) else [value])
    )
    return [id for id in found if isinstance(id, str)]


def host_of(url: str) -> str:
    """In lower case and without the port; empty if it is no http(s) URL."""
    match = _HOST.match(url)
    return match[1].lower() if match else ""


def attributed(activity: Activity, value: Mapping[str, Any], path: str) -> None:
    """What says whose it is must be of the actor's host, or of somebody there beside others."""
    to = value.get("attributedTo")
    if to is None or to == activity.actor:
        return
    hosts = {host_of(id) for id in ids_of(to)} - {""}
    if hosts and host_of(activity.actor) not in hosts:
        raise InvalidActivity(f"{path}.attributedTo", "is on another host than activity.actor")
