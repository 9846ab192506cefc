"""What a page says that is not so."""

import ast
import importlib
import importlib.util
import json
import re
import textwrap
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import grpc
from fedsvc_client import FedsvcClient
from fedsvc_client._configuration import SETTINGS as CLIENT_SETTINGS
from opentelemetry.environment_variables import OTEL_TRACES_EXPORTER
from opentelemetry.sdk import environment_variables as otel

from fedsvc.cli.main import cli
from fedsvc.config import Settings
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.server.errors import TOLD
from tools.docs.cli_page import context_of, path_of
from tools.docs.contract import INVALID, client_enums, names_in_contract
from tools.docs.metrics_page import metric_families
from tools.docs.samples import bad_calls

ROOT = Path(__file__).resolve().parents[2]
SETTINGS = {Settings.variable(field) for field in Settings.model_fields}
#: those of the client too, which its own page describes
KNOWN = SETTINGS | set(CLIENT_SETTINGS)
#: what a word in capitals may be, if it stands as code
NAMES = (
    KNOWN
    | {member.name for kind in (Reason, DeliveryState, grpc.StatusCode) for member in kind}
    | names_in_contract()
    | {reason for _, _, reason in TOLD}
    | set(INVALID)
    | {member.name for enum in client_enums() for member in enum}
    | {OTEL_TRACES_EXPORTER, *(name for name in vars(otel) if name.startswith("OTEL_"))}
    # of Redis, and the number of the data's format
    | {"NOAUTH", "WAITAOF", "FORMAT"}
)

#: what begins as metrics do: a package, tables of its outbox, a network of the compose file
NO_METRICS = {"fedsvc_client", "fedsvc_outbox", "fedsvc_cursor", "fedsvc_outside"}
METRICS = {name for family in metric_families() for name in (family.name, *family.exported)}

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PATH = re.compile(
    r"((?!fedsvc/\d)(?:fedsvc|tests|tools|docs|proto|clients|benchmarks|deploy|requirements|\.ci)/[\w./-]+)"
    r"(?:::(\w+))?"
)
_SETTING = re.compile(r"\bFEDSVC_[A-Z_]*[A-Z]\b")
_CLIENT = re.compile(r"\bclient\.(?!md\b)(\w+)")
_METRIC = re.compile(r"\bfedsvc_\w+")
_CAPITALS = re.compile(r"[A-Z][A-Z_]{2,}[A-Z]")
_MAKE = re.compile(r"\bmake ([a-z]+(?: [a-z]+)*)")
_COMMAND = re.compile(r"(?:^|[\s/])fedsvc ([a-z][^\n#|&;\[]*)", re.MULTILINE)
_MODULE = re.compile(r"\bpython3? -m ([\w.]+)")
_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
_OPTION = re.compile(r"(?<!\S)(--?[a-z][a-z-]*)")


def pages(root: Path = ROOT) -> list[Path]:
    """All pages that people read."""
    return sorted({*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("clients/python/*.md")})


def problems(page: Path, root: Path = ROOT) -> Iterator[str]:
    """What `page` says that is not so."""
    text = page.read_text()
    prose = _FENCE.sub("", text)
    spans = _CODE.findall(prose)
    code = "\n".join([*spans, *_FENCE.findall(text)]).replace("\\\n", " ")
    yield from broken_links(page, prose, root)
    for setting in sorted(set(_SETTING.findall(text)) - KNOWN):
        yield f"there is no setting {setting}"
    targets = set(re.findall(r"^([a-z-]+):", (root / "Makefile").read_text(), re.MULTILINE))
    called = {target for words in _MAKE.findall(code) for target in words.split()}
    for target in sorted(called - targets):
        yield f"there is no target `make {target}`"
    for words in dict.fromkeys(_COMMAND.findall(code)):
        if not words.startswith("is ready:"):
            yield from unknown_command(words)
    for module in dict.fromkeys(_MODULE.findall(code)):
        if not runs(module, root):
            yield f"there is no module to run: python -m {module}"
    for language, block in _BLOCK.findall(text):
        yield from bad_block(language, textwrap.dedent(block))
    for name in sorted({name for span in spans for name in _METRIC.findall(span)} - METRICS - NO_METRICS):
        yield f"there is no metric {name}"
    for name in dict.fromkeys(name for span in spans for name in _CLIENT.findall(span)):
        if not hasattr(FedsvcClient, name):
            yield f"there is no client.{name}"
    for span in dict.fromkeys(spans):
        if match := _PATH.fullmatch(span):
            yield from missing_file(root, match[1], match[2])
        elif _CAPITALS.fullmatch(span) and span not in NAMES:
            yield f"{span} is no setting, reason, state or gRPC code"


def runs(module: str, root: Path) -> bool:
    """Whether `python -m module` finds something, in the checkout or in its tests."""
    path = module.replace(".", "/")
    for base in (root, root / "tests"):
        if (base / f"{path}.py").is_file() or (base / path / "__main__.py").is_file():
            return True
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def bad_block(language: str, code: str) -> Iterator[str]:
    """What is wrong with a block of code that is not meant for a shell."""
    readers: dict[str, Callable[[str], object]] = {
        "python": ast.parse,
        "json": json.loads,
        "toml": tomllib.loads,
    }
    if language not in readers:
        return
    try:
        readers[language](code)
    except ValueError as error:
        yield f"a block of {language} cannot be read: {error}"
    except SyntaxError as error:
        yield f"a block of {language} cannot be read: {error.msg}, line {error.lineno}"
    else:
        if language == "python":
            missing = list(missing_imports(code))
            yield from missing or bad_calls(code)


def missing_imports(code: str) -> Iterator[str]:
    """Names of ours that a block imports and that are not there."""
    for node in ast.walk(ast.parse(code)):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("fedsvc"):
            continue
        try:
            module = importlib.import_module(str(node.module))
        except ImportError:
            yield f"there is no module {node.module}"
            continue
        for alias in node.names:
            if not hasattr(module, alias.name):
                yield f"there is no {alias.name} in {node.module}"


def broken_links(page: Path, prose: str, root: Path = ROOT) -> Iterator[str]:
    for target in _LINK.findall(prose):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or not file.is_relative_to(root.resolve()):
            yield f"link to {target} leads nowhere"
        elif anchor and anchor not in map(slug, _HEADING.findall(_FENCE.sub("", file.read_text()))):
            yield f"link to {target}: there is no such heading"


def slug(heading: str) -> str:
    """A heading's anchor, as forges make it."""
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def missing_file(root: Path, path: str, name: str | None) -> Iterator[str]:
    if not (root / path).exists():
        yield f"there is no {path}"
    elif name and not re.search(rf"\bdef {name}\(", (root / path).read_text()):
        yield f"there is no {name} in {path}"


def unknown_command(words: str) -> Iterator[str]:
    """`words`: what stands after `fedsvc`, such as `worker --processes 2`."""
    command: click.Command = cli
    context = context_of(command, "fedsvc", None)
    for word in words.split():
        if not isinstance(command, click.Group):
            break
        inner = command.get_command(context, word)
        if inner is None:
            if not word.startswith("-"):
                yield f"there is no command `{path_of(context)} {word}`"
            return
        command, context = inner, context_of(inner, word, context)
    known = {
        option
        for parameter in command.get_params(context)
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    for option in _OPTION.findall(words):
        if option not in known:
            yield f"`{path_of(context)}` has no option {option}"


OPERATIONS = "docs/operations.md"
#: no operator has to mend them: not of a dead letter, or of a version that is not this one
_NO_FAILURE = {
    *(Reason.OK, Reason.SUSPECT, Reason.EXPIRED, Reason.CANCELLED, Reason.SUPERSEDED, Reason.PURGED),
    Reason.OTHER,
}


def unexplained_reasons(root: Path = ROOT) -> Iterator[str]:
    """Reasons of which the tables for operators do not say what to do, or say it without need."""
    rows = re.findall(r"^\| ((?:`[A-Z_]+`(?:, )?)+) \|", (root / OPERATIONS).read_text(), re.MULTILINE)
    told = {name for row in rows for name in _CODE.findall(row)} & {reason.name for reason in Reason}
    wanted = {reason.name for reason in Reason if reason not in _NO_FAILURE}
    for name in sorted(told ^ wanted):
        problem = "no reason for a table" if name in told else "in no table of reasons"
        yield f"{OPERATIONS}: {name} is {problem}"


#: the kinds of page that the guide has, as headings of its index
KINDS = ("Tutorial", "How-to", "Reference", "Explanation")
INDEX = "docs/README.md"


def unlisted(root: Path = ROOT) -> Iterator[str]:
    """What the index of the guide leaves out: a page of docs/, or one of the four kinds. Pictures that
    no page shows."""
    page = root / INDEX
    text = page.read_text()
    for kind in KINDS:
        if kind not in (heading.partition(":")[0] for heading in _HEADING.findall(text)):
            yield f"{INDEX} has no heading {kind}"
    linked = {(page.parent / target.partition("#")[0]).resolve() for target in _LINK.findall(text)}
    for other in sorted(root.glob("docs/**/*.md")):
        if other != page and "examples" not in other.parts and other.resolve() not in linked:
            yield f"{INDEX} does not list {other.relative_to(root)}"
    shown = {
        (page.parent / target).resolve() for page in pages(root) for target in _LINK.findall(page.read_text())
    }
    for image in sorted(root.glob("docs/images/*")):
        if image.resolve() not in shown:
            yield f"no page shows {image.relative_to(root)}"
    if page.resolve() not in {
        (root / target.partition("#")[0]).resolve()
        for target in _LINK.findall((root / "README.md").read_text())
    }:
        yield f"README.md does not lead to {INDEX}"
