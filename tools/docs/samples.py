"""Calls of ours in samples of Python, held against what they call."""

import ast
import importlib
import inspect
from collections.abc import Iterator
from typing import Any

from fedsvc_client import FedsvcClient


def bad_calls(code: str) -> Iterator[str]:
    """What a sample calls that is not there, or cannot be called so. Nothing is run: a name is known if the
    sample imports it from a module of ours, a variable if it is made of such a class; `client` is always a
    FedsvcClient, which not every sample makes."""
    tree = ast.parse(code)
    names = dict(_imported(tree))
    variables: dict[str, Any] = {"client": FedsvcClient} | dict(_made(tree, names))
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        match call.func:
            case ast.Name(id=name) if name in names:
                called, of_object = names[name], False
            case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name in names | variables:
                of_object = name not in names
                owner = variables[name] if of_object else names[name]
                name = f"{name}.{attribute}"
                called = getattr(owner, attribute, None)
                if called is None:
                    yield f"there is no {name}()"
                    continue
            case _:
                continue
        yield from _misfit(name, called, call, of_object)


def _imported(tree: ast.AST) -> Iterator[tuple[str, Any]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fedsvc"):
            module = importlib.import_module(str(node.module))
            for alias in node.names:
                yield alias.asname or alias.name, getattr(module, alias.name)


def _made(tree: ast.AST, names: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Variables that hold an object of a class of `names`."""
    for node in ast.walk(tree):
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=variable)], value=ast.Call(func=ast.Name(id=name)))
                | ast.withitem(
                    optional_vars=ast.Name(id=variable), context_expr=ast.Call(func=ast.Name(id=name))
                )
            ) if inspect.isclass(names.get(name)):
                yield variable, names[name]


def _misfit(name: str, called: Any, call: ast.Call, of_object: bool) -> Iterator[str]:
    if any(isinstance(argument, ast.Starred) for argument in call.args):
        return
    given: list[Any] = [None] * (len(call.args) + of_object)
    by_name = {keyword.arg: None for keyword in call.keywords}
    if None in by_name:
        return
    try:
        inspect.signature(called).bind(*given, **{str(keyword): None for keyword in by_name})
    except TypeError as error:
        yield f"{name}(): {error}"
