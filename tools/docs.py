"""Reference pages made from the code, and checks that the docs speak of what exists.

python tools/docs.py            write docs/reference/
python tools/docs.py --check    exit 1 if a page is stale, a link leads nowhere, or something named in the
                                docs (a setting, a make target, a command, a file) is not there
"""

import re
import sys
from pathlib import Path

import click

from fedsvc.cli.main import cli
from fedsvc.config import Address, Settings

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted(
    path
    for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("clients/**/*.md")]
    if ".venv" not in path.parts
)

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
_CODE = re.compile(r"`([^`\n]+)`")
_FENCE = re.compile(r"```.*?```", re.DOTALL)
_PATH = re.compile(r"(?!fedsvc/\d)(?:fedsvc|tests|tools|docs|proto|clients|benchmarks|deploy)/[\w./-]+")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_SETTING = re.compile(r"\bFEDSVC_[A-Z_]+[A-Z]\b")
_MAKE = re.compile(r"\bmake ([a-z]+)\b")
_COMMAND = re.compile(r"(?:^|[\s/`])fedsvc ([a-z][a-z-]+)(?: ([a-z][a-z-]+))?")


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

    def describe(command: click.Command, names: list[str]) -> None:
        if command.hidden:
            return
        context = click.Context(command, info_name=" ".join(names), max_content_width=100, terminal_width=100)
        lines.extend(["", f"## {' '.join(names)}", "", "```", command.get_help(context), "```"])
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                inner = command.get_command(context, name)
                assert inner is not None
                describe(inner, [*names, name])

    describe(cli, ["fedsvc"])
    return "\n".join(lines) + "\n"


GENERATED = {"docs/reference/settings.md": settings_page, "docs/reference/cli.md": cli_page}


def problems() -> list[str]:
    found = [
        f"{name} is stale: run `make docs`"
        for name, make in GENERATED.items()
        if not (ROOT / name).is_file() or (ROOT / name).read_text() != make()
    ]
    settings = {Settings.variable(field) for field in Settings.model_fields}
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for page in PAGES:
        text = page.read_text()
        name = page.relative_to(ROOT)
        found += [f"{name}: {problem}" for problem in broken_links(page, text)]
        for setting in set(_SETTING.findall(text)) - settings:
            found.append(f"{name}: there is no setting {setting}")
        code = "\n".join(_CODE.findall(text) + _FENCE.findall(text))
        for target in set(_MAKE.findall(code)) - targets:
            found.append(f"{name}: there is no target `make {target}`")
        found += [f"{name}: {problem}" for problem in unknown_commands(code)]
        for path in _CODE.findall(text):
            if _PATH.fullmatch(path) and not (ROOT / path).exists():
                found.append(f"{name}: there is no {path}")
    return found


def broken_links(page: Path, text: str) -> list[str]:
    found = []
    for groups in _LINK.findall(_FENCE.sub("", text)):
        target = groups[0] or groups[1]
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists():
            found.append(f"link to {target} leads nowhere")
        elif anchor and anchor not in {slug(h) for h in _HEADING.findall(file.read_text())}:
            found.append(f"link to {target}: there is no such heading")
    return found


def slug(heading: str) -> str:
    return re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-")


def unknown_commands(code: str) -> list[str]:
    context = click.Context(cli)
    found = []
    for name, inner in set(_COMMAND.findall(code.replace("fedsvc is ready", ""))):
        command = cli.get_command(context, name)
        if command is None:
            found.append(f"there is no command `fedsvc {name}`")
        elif isinstance(command, click.Group) and inner and command.get_command(context, inner) is None:
            found.append(f"there is no command `fedsvc {name} {inner}`")
    return found


def main() -> None:
    if sys.argv[1:] == ["--check"]:
        found = problems()
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
