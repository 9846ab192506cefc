"""The page of the Python client, from its docstrings and signatures."""

import ast
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any

import fedsvc_client

_HEAD = """\
# Python client

Generated from `fedsvc_client` by `make docs`. `pip install ./clients/python` in a checkout brings it; it
needs nothing of the service. All that is public is imported from `fedsvc_client`. What its calls do in the
server, limits and all, is in the [API](api.md).
"""
_COMMENT = re.compile(r"^\s*#:\s?(.*)$")


def client_page() -> str:
    lines = [*_HEAD.splitlines(), "", "## Clients"]
    lines += _class("FedsvcClient", fedsvc_client.FedsvcClient)
    lines += _methods(fedsvc_client.FedsvcClient)
    lines += ["", *_twin()]
    clients = (fedsvc_client.FedsvcClient, fedsvc_client.AsyncFedsvcClient)
    public = [(name, getattr(fedsvc_client, name)) for name in sorted(fedsvc_client.__all__)]
    types = [(n, value) for n, value in public if value not in clients and not issubclass(value, Exception)]
    tree = importlib.import_module("fedsvc_client._exceptions").__doc__ or ""
    lines += ["", "## Exceptions", "", "```", tree.partition("\n\n")[2].rstrip(), "```"]
    lines += ["", "All have what `FedsvcError` has:", ""]
    lines += _signature_block(fedsvc_client.FedsvcError)
    lines += ["", "## What calls take and give", "", *_paragraphs(_module("_types").__doc__)]
    for name, value in types:
        lines += _class(name, value)
        lines += _fields(value)
        lines += _methods(value)
    for module in _public_modules():
        lines += _module_section(module)
    return "\n".join(lines) + "\n"


def _module(name: str) -> ModuleType:
    return importlib.import_module(f"fedsvc_client.{name}")


def _public_modules() -> Iterator[ModuleType]:
    """Those that are imported by their own name."""
    for info in pkgutil.iter_modules(fedsvc_client.__path__):
        if not info.name.startswith("_"):
            yield _module(info.name)


def _module_section(module: ModuleType) -> Iterator[str]:
    yield from ("", f"## {module.__name__}", "", *_paragraphs(module.__doc__))
    for name in sorted(getattr(module, "__all__", ())):
        value = getattr(module, name)
        if inspect.isclass(value):
            yield from _class(name, value)
            yield from _fields(value)
            yield from _methods(value)
        elif callable(value):
            yield from (
                "",
                f"### {name}",
                "",
                *_signature_block(value, name),
                "",
                *_paragraphs(value.__doc__),
            )


def _class(name: str, value: type) -> Iterator[str]:
    yield from ("", f"### {name}")
    own = value.__dict__.get("__doc__") or ""
    if own and not own.startswith(f"{name}("):  # what dataclasses make up
        yield from ("", *_paragraphs(own))
    if not is_dataclass(value) and not issubclass(value, Enum) and "__init__" in vars(value):
        yield from ("", *_signature_block(value, name), "", *_paragraphs(value.__init__.__doc__))


def _methods(value: type) -> Iterator[str]:
    """Of the class and of what it is made of, in the order in which they are written."""
    seen = set()
    for part in (value, *value.__mro__[1:-1]):
        if not part.__module__.startswith("fedsvc_client"):
            continue
        for name, member in vars(part).items():
            if name.startswith("_") or name in seen:
                continue
            seen.add(name)
            if isinstance(member, property):
                doc = " ".join((member.__doc__ or "").split())
                yield from ("", f"- `{value.__name__}.{name}`: {doc}")
            elif inspect.isfunction(member) and member.__doc__:
                yield from ("", f"#### {value.__name__}.{name}", "", *_signature_block(member, name))
                yield from ("", *_paragraphs(member.__doc__))


def _twin() -> Iterator[str]:
    """What the asynchronous client has, which is the same."""
    yield from ("### AsyncFedsvcClient", "", *_paragraphs(fedsvc_client.AsyncFedsvcClient.__doc__))
    missing = _public(fedsvc_client.FedsvcClient) ^ _public(fedsvc_client.AsyncFedsvcClient)
    if missing:
        raise AssertionError(f"the two clients differ in {sorted(missing)}")
    yield from (
        "",
        "It has the methods of `FedsvcClient`, to be awaited; those that give an iterator give an",
    )
    yield "asynchronous one."


def _public(value: type) -> set[str]:
    return {name for name in dir(value) if not name.startswith("_")}


def _signature_block(value: Any, name: str = "") -> Iterator[str]:
    """The signature as code, one parameter a line where it is long."""
    name = name or value.__name__
    signature = inspect.signature(value)
    parameters = [p for p in signature.parameters.values() if p.name != "self"]
    signature = signature.replace(parameters=parameters)
    if inspect.isclass(value):
        signature = signature.replace(return_annotation=inspect.Signature.empty)
    short = f"{name}{signature}"
    if len(short) > 100:
        parts, starred = [], False
        for parameter in parameters:
            if parameter.kind is inspect.Parameter.KEYWORD_ONLY and not starred:
                parts.append("*")
                starred = True
            parts.append(str(parameter))
        end = str(signature.replace(parameters=[])).removeprefix("()")
        short = f"{name}(\n    " + ",\n    ".join(parts) + f",\n){end}"
    # annotations are text, and shown in quotes
    short = short.replace("''", '""').replace("'", "")
    yield from ("```", *short.splitlines(), "```")


def _fields(value: type) -> Iterator[str]:
    """Of a dataclass or an enum."""
    if issubclass(value, Enum):
        yield from ("", "Values: " + ", ".join(f"`{member.name}`" for member in value) + ".")
        return
    if not is_dataclass(value):
        return
    comments = _comments(value)
    yield from ("", "| field | type | what it is |", "|---|---|---|")
    for field in fields(value):
        kind = str(field.type).replace("|", "or")
        yield f"| `{field.name}` | {kind} | {comments.get(field.name, '')} |"


def _comments(value: type) -> dict[str, str]:
    """What stands after `#:` before a field."""
    source = textwrap.dedent(inspect.getsource(value))
    lines = source.splitlines()
    found = {}
    tree = ast.parse(source).body[0]
    assert isinstance(tree, ast.ClassDef)
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            words: list[str] = []
            at = node.lineno - 2
            while at >= 0 and (match := _COMMENT.match(lines[at])):
                words.insert(0, match[1])
                at -= 1
            found[node.target.id] = " ".join(words).replace("|", "&#124;")
    return found


def _paragraphs(doc: str | None) -> list[str]:
    """A docstring as markdown: what is indented in it is code."""
    lines: list[str] = []
    code = False
    for line in inspect.cleandoc(doc or "").splitlines():
        if line.startswith("    ") and not code and (not lines or not lines[-1]):
            lines.append("```")
            code = True
        elif line and not line.startswith("    ") and code:
            while not lines[-1]:
                lines.pop()
            lines += ["```", ""]
            code = False
        lines.append(line.removeprefix("    ") if code else line)
    if code:
        lines.append("```")
    return lines
