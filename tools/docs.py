"""Reference pages made from the code, and checks that the docs speak of what exists.

python tools/docs.py            write docs/reference/
python tools/docs.py --check    exit 1 if a page is stale, a link leads nowhere, or something named in the
                                docs (a setting, a make target, a command or its option, a file or test in
                                it, a reason or state) is not there
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import grpc

from fedsvc.cli.main import cli
from fedsvc.config import Settings
from fedsvc.config_types import Address
from fedsvc.domain.activity import Activity
from fedsvc.domain.delivery import DeliveryState, Reason
from fedsvc.domain.relations import Rule
from fedsvc.handlers.registry import Registry

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = {Settings.variable(field) for field in Settings.model_fields}
#: what a word in capitals may be, if it stands as code
NAMES = SETTINGS | {member.name for kind in (Reason, DeliveryState, grpc.StatusCode) for member in kind}

_LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_PATH = re.compile(
    r"((?!fedsvc/\d)(?:fedsvc|tests|tools|docs|proto|clients|benchmarks|deploy|requirements|\.ci)/[\w./-]+)"
    r"(?:::(\w+))?"
)
_SETTING = re.compile(r"\bFEDSVC_[A-Z_]*[A-Z]\b")
_CAPITALS = re.compile(r"[A-Z][A-Z_]{2,}[A-Z]")
_MAKE = re.compile(r"\bmake ([a-z]+(?: [a-z]+)*)")
_COMMAND = re.compile(r"(?:^|[\s/])fedsvc ([a-z][^\n#|&;\[]*)", re.MULTILINE)
_OPTION = re.compile(r"(?<!\S)(--?[a-z][a-z-]*)")


def settings_page() -> str:
    lines = [
        "# Settings",
        "",
        "Environment variables, read by every command. Generated from `fedsvc/config.py` by `make docs`.",
        "An unknown `FEDSVC_` variable or a bad value is an error at start that names it.",
        "",
        "| variable | default | what it is |",
        "|---|---|---|",
    ]
    for name, field in Settings.model_fields.items():
        default = field.get_default()
        if hasattr(default, "get_secret_value"):
            default = default.get_secret_value()
        if isinstance(default, (tuple, frozenset)) and not isinstance(default, Address):
            default = ",".join(map(str, sorted(default)))
        text = str(default).lower() if isinstance(default, bool) else str(default)
        shown = f"`{text}`" if text else "-"
        lines.append(f"| `{Settings.variable(name)}` | {shown} | {field.description} |")
    return "\n".join(lines) + "\n"


def cli_page() -> str:
    lines = [
        "# Command line",
        "",
        "Generated from the commands themselves by `make docs`. Exit codes: 0 done, 1 not done (one line on",
        "standard error says why), 2 called wrongly.",
    ]

    def describe(command: click.Command, name: str, parent: click.Context | None) -> None:
        if command.hidden:
            return
        context = context_of(command, name, parent)
        lines.extend(["", f"## {path_of(context)}", "", "```", command.get_help(context), "```"])
        if isinstance(command, click.Group):
            for inner_name in command.list_commands(context):
                inner = command.get_command(context, inner_name)
                assert inner is not None
                describe(inner, inner_name, context)

    describe(cli, "fedsvc", None)
    return "\n".join(lines) + "\n"


def context_of(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    """As when it is called: a command has something of its parents, such as -h."""
    return click.Context(command, parent, name, **{**command.context_settings, "terminal_width": 100})


#: what a delivery takes back that was not sent yet, in words
_TAKEN_BACK = {
    Rule.NONE: "-",
    Rule.SAME_KEY: "what has the same key",
    Rule.OLDER_UPDATES: "Updates of the same object",
    Rule.OBJECT: "Create and Updates of the same object",
    Rule.UNDONE: "the activity that it undoes",
}


def handlers_page() -> str:
    lines = [
        "# Activity types",
        "",
        "What holds for each type if the caller asks for nothing else. Generated from `fedsvc/handlers` by",
        "`make docs`; [how to add a type](../handlers.md).",
        "",
        "Attempts are one more than retries. The delay before a retry is the first delay, times the factor",
        "for each one before it, up to the longest; of that 80 to 100 percent are waited, times",
        "`FEDSVC_RETRY_SCALE`. Deliveries that share an ordering key and a host go one after the other; an",
        "Announce of an activity goes in the order of what it announces. What is taken back was not sent.",
        "",
        "| type | priority | retries | factor | first delay s | longest s | ordering key | takes back |",
        "|---|---|---|---|---|---|---|---|",
    ]
    registry = Registry.built_in()
    for name in (*registry.types, "others"):
        handler = registry.of(name)
        policy = handler.retry
        relation = handler.relation(_sample(name))
        keys = [relation.ordering_key]
        if name == "Announce":  # of what else may be announced
            keys += [handler.relation(_sample(name, inner)).ordering_key for inner in ("Create", "Like")]
        shown = " or ".join(f"`{key}`" for key in keys) if any(keys) else "-"
        retries = f"{policy.retries} | {policy.factor}"
        delays = f"{policy.first_delay_s:g} | {policy.longest_delay_s:g}"
        taken_back = _TAKEN_BACK[relation.rule]
        lines.append(f"| {name} | {handler.priority.name} | {retries} | {delays} | {shown} | {taken_back} |")
    return "\n".join(lines) + "\n"


def _sample(name: str, inner: str = "") -> Activity:
    """An activity whose members say where they come from."""
    return Activity("id", name, "actor", "object", inner, "object.object", "target")


GENERATED = {
    "docs/reference/settings.md": settings_page,
    "docs/reference/cli.md": cli_page,
    "docs/reference/activity-types.md": handlers_page,
}


def pages(root: Path = ROOT) -> list[Path]:
    """All pages that people read."""
    return sorted({*root.glob("*.md"), *root.glob("docs/**/*.md"), *root.glob("clients/python/*.md")})


def stale() -> list[str]:
    """Generated pages that are not what would be generated now."""
    return [
        name
        for name, make in GENERATED.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text() != make()
    ]


def problems(page: Path, root: Path = ROOT) -> Iterator[str]:
    """What `page` says that is not so."""
    text = page.read_text()
    prose = _FENCE.sub("", text)
    spans = _CODE.findall(prose)
    code = "\n".join([*spans, *_FENCE.findall(text)]).replace("\\\n", " ")
    yield from broken_links(page, prose, root)
    for setting in sorted(set(_SETTING.findall(text)) - SETTINGS):
        yield f"there is no setting {setting}"
    targets = set(re.findall(r"^([a-z]+):", (root / "Makefile").read_text(), re.MULTILINE))
    called = {target for words in _MAKE.findall(code) for target in words.split()}
    for target in sorted(called - targets):
        yield f"there is no target `make {target}`"
    for words in dict.fromkeys(_COMMAND.findall(code)):
        if not words.startswith("is ready:"):
            yield from unknown_command(words)
    for span in dict.fromkeys(spans):
        if match := _PATH.fullmatch(span):
            yield from missing_file(root, match[1], match[2])
        elif _CAPITALS.fullmatch(span) and span not in NAMES:
            yield f"{span} is no setting, reason, state or gRPC code"


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
    known = {option for parameter in command.get_params(context) for option in parameter.opts}
    for option in _OPTION.findall(words):
        if option not in known:
            yield f"`{path_of(context)}` has no option {option}"


def path_of(context: click.Context) -> str:
    """The command as it is typed, without what its parents may take between."""
    name = context.info_name or ""
    return name if context.parent is None else f"{path_of(context.parent)} {name}"


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        found = [f"{name} is stale: run `make docs`" for name in stale()]
        found += [f"{page.relative_to(ROOT)}: {problem}" for page in pages() for problem in problems(page)]
        if found:
            sys.exit("\n".join(found))
    elif sys.argv[1:]:
        sys.exit(__doc__)
    else:
        for name, make in GENERATED.items():
            (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
            (ROOT / name).write_text(make())


if __name__ == "__main__":
    main()
