"""The docs speak of what exists, and the checker would notice if they did not."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from importlib import metadata
from pathlib import Path

import fedsvc_client
import pytest

from fedsvc.demo.app import Result, _table
from fedsvc.handlers import Activity, DeliveryOutcome
from tools import docs
from tools.docs.contract import contract

ROOT = docs.ROOT
PAGES = [str(page.relative_to(ROOT)) for page in docs.pages()]
FENCE = "```"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small project with a page to link to."""
    (tmp_path / "Makefile").write_text("test: setup\n\ndemo:\n")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/other.md").write_text(
        f"# Other page\n\n{FENCE}sh\n# no heading\n{FENCE}\n## It's `here`\n"
    )
    (tmp_path / "tests/chaos").mkdir(parents=True)
    (tmp_path / "tests/chaos/__main__.py").touch()
    (tmp_path / "fedsvc").mkdir()
    (tmp_path / "fedsvc/config.py").write_text("def parse(): ...\n")
    return tmp_path


def found_in(checkout: Path, text: str) -> list[str]:
    page = checkout / "README.md"
    page.write_text(text)
    return list(docs.problems(page, checkout))


@pytest.mark.parametrize("name", PAGES)
def test_every_page_speaks_of_what_exists(name: str) -> None:
    assert list(docs.problems(ROOT / name)) == []


def test_the_code_of_the_page_on_handlers_is_that_of_the_example() -> None:
    example = ROOT / "docs/examples/fedsvc-example-handler"
    files = "".join(path.read_text() for path in example.glob("*.*"))
    blocks = re.findall(r"```(?:python|toml)\n(.*?)```", (ROOT / "docs/handlers.md").read_text(), re.DOTALL)
    assert len(blocks) == 3
    assert [block for block in blocks if block not in files] == []


@pytest.mark.parametrize("given", [Activity, DeliveryOutcome])
def test_the_page_on_handlers_names_all_that_a_handler_is_given(
    given: type[Activity | DeliveryOutcome],
) -> None:
    page = (ROOT / "docs/handlers.md").read_text()
    assert [field.name for field in fields(given) if f"`{field.name}`" not in page] == []


def test_the_table_of_the_demo_in_the_readme_is_the_one_that_it_prints() -> None:
    columns = _table(Result()).columns
    printed = [str(cell) for cell in columns[0].cells]
    shown = re.findall(r"^│ (.+?) +│ [\d,]+(?: ms)? +│$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert shown == printed


def test_operators_are_told_what_to_do_about_every_reason(tmp_path: Path) -> None:
    assert list(docs.unexplained_reasons()) == []
    (tmp_path / "docs").mkdir()
    page = (ROOT / "docs/operations.md").read_text()
    (tmp_path / "docs/operations.md").write_text(page.replace("`HANDLER_ERROR`", "`PURGED`"))
    assert list(docs.unexplained_reasons(tmp_path)) == [
        "docs/operations.md: HANDLER_ERROR is in no table of reasons",
        "docs/operations.md: PURGED is no reason for a table",
    ]


def test_the_pages_are_found() -> None:
    assert {"README.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/reference/settings.md"} <= {*PAGES}


def test_generated_pages_are_fresh() -> None:
    # by a process of its own: click remembers of a command how it was called before
    command = [sys.executable, "-m", "tools.docs", "--check"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_setting_is_on_its_page_with_its_default() -> None:
    page = (ROOT / "docs/reference/settings.md").read_text()
    assert all(f"| `{setting}` |" in page for setting in docs.SETTINGS)
    assert "| `MAX_RETRY_DURATION` | `172800` |" in page
    assert "| `FEDSVC_ALLOW_HTTP` | `false` |" in page


@pytest.mark.parametrize(
    "text",
    [
        "[a page](docs/other.md) and [a place](docs/other.md#its-here), [elsewhere](https://example.org/)",
        f"{FENCE}sh\nmake test demo   # both\n{FENCE}",
        f"{FENCE}sh\n.venv/bin/fedsvc enqueue like.json --inbox URL \\\n  --key-file me.pem\n{FENCE}",
        "`fedsvc worker --processes 2`, `fedsvc dead list`, `fedsvc --version`; fedsvc is a service",
        "`FEDSVC_LISTEN` and `REDIS_URL`; `NOT_FOUND`, `READY`, `UNAVAILABLE`",
        "`fedsvc/config.py`, `fedsvc/config.py::parse` and `fedsvc/1.0` as a user agent",
        "`python -m chaos`, `.venv/bin/python -m pytest tests`",
        '`sum(fedsvc_rpcs_total{code="OK"})`, `fedsvc_settle_seconds_sum`, `client.fan_out()`, `client.md`',
        f"{FENCE}python\nclient.queue_activity(*what, **how)\nprint(pot.brew())\n{FENCE}",
        f'{FENCE}json\n{{"a": 1}}\n{FENCE}\n{FENCE}python\nfrom fedsvc_client import FedsvcClient\n{FENCE}',
    ],
)
def test_what_exists_is_no_problem(checkout: Path, text: str) -> None:
    assert found_in(checkout, text) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a page](docs/gone.md)", "link to docs/gone.md leads nowhere"),
        ("![a picture](docs/gone.png)", "link to docs/gone.png leads nowhere"),
        ("[out](../elsewhere.md)", "link to ../elsewhere.md leads nowhere"),
        ("[a place](docs/other.md#gone)", "link to docs/other.md#gone: there is no such heading"),
        (
            "[a comment](docs/other.md#no-heading)",
            "link to docs/other.md#no-heading: there is no such heading",
        ),
        ("set FEDSVC_COLOUR", "there is no setting FEDSVC_COLOUR"),
        ("`make tea`", "there is no target `make tea`"),
        ("`make test tea`", "there is no target `make tea`"),
        ("`fedsvc brew`", "there is no command `fedsvc brew`"),
        ("`fedsvc dead brew`", "there is no command `fedsvc dead brew`"),
        ("`fedsvc worker --cups 2`", "`fedsvc worker` has no option --cups"),
        (f"{FENCE}\nfedsvc enqueue a.json \\\n  --cups 2\n{FENCE}", "`fedsvc enqueue` has no option --cups"),
        ("`fedsvc/gone.py`", "there is no fedsvc/gone.py"),
        ("`fedsvc/config.py::gone`", "there is no gone in fedsvc/config.py"),
        ("`python -m kettle`", "there is no module to run: python -m kettle"),
        (f"{FENCE}python\nwith tea as:\n{FENCE}", "a block of python cannot be read: invalid syntax, line 1"),
        (
            f"{FENCE}python\nfrom fedsvc_client import Teapot\n{FENCE}",
            "there is no Teapot in fedsvc_client",
        ),
        (
            f"{FENCE}python\nfrom fedsvc_client.tea import pot\n{FENCE}",
            "there is no module fedsvc_client.tea",
        ),
        (
            f'{FENCE}json\n{{"a"}}\n{FENCE}',
            "a block of json cannot be read: Expecting ':' delimiter: line 1 column 5 (char 4)",
        ),
        ("`TEAPOT`", "TEAPOT is no setting, reason, state or gRPC code"),
        ("`rate(fedsvc_cups_total[5m])`", "there is no metric fedsvc_cups_total"),
        ("`client.brew(tea)`", "there is no client.brew"),
        (f"{FENCE}python\nclient.brew(tea)\n{FENCE}", "there is no client.brew()"),
        (
            f"{FENCE}python\nclient.queue_activity(a, inbox, key=pem)\n{FENCE}",
            "client.queue_activity(): missing a required argument: 'key_id'",
        ),
        (
            f"{FENCE}python\nfrom fedsvc_client import TLS\n\nTLS(authorities='ca.pem')\n{FENCE}",
            "TLS(): got an unexpected keyword argument 'authorities'",
        ),
        (
            f"{FENCE}python\nfrom fedsvc_client.outbox import Outbox\n\n"
            f"outbox = Outbox()\noutbox.fan_out(session, activity)\n{FENCE}",
            "outbox.fan_out(): missing a required argument: 'inboxes'",
        ),
    ],
)
def test_what_does_not_exist_is_named(checkout: Path, text: str, problem: str) -> None:
    assert found_in(checkout, text) == [problem]


def test_the_index_lists_every_page_under_the_four_kinds() -> None:
    assert list(docs.unlisted()) == []


def test_a_page_or_kind_that_the_index_leaves_out_is_named(checkout: Path) -> None:
    (checkout / "README.md").write_text("# Nothing to see")
    (checkout / "docs/README.md").write_text("# Guide\n\n## Tutorial: learn\n\n## How-to\n\n## Reference\n")
    (checkout / "docs/images").mkdir()
    for name in ("shown.png", "hidden.png"):
        (checkout / "docs/images" / name).touch()
    (checkout / "docs/other.md").write_text("![a picture](images/shown.png)")
    assert list(docs.unlisted(checkout)) == [
        "docs/README.md has no heading Explanation",
        "docs/README.md does not list docs/other.md",
        "no page shows docs/images/hidden.png",
        "README.md does not lead to docs/README.md",
    ]


def test_the_api_page_has_every_call_with_its_scope_and_every_message() -> None:
    page = (ROOT / "docs/reference/api.md").read_text()
    for source in contract():
        for service in source.file.service:
            for method in service.method:
                assert re.search(rf"^### {method.name}\n\n\S.*?Scope: `", page, re.MULTILINE | re.DOTALL)
        for message in source.file.message_type:
            assert f"\n### {message.name}\n" in page
            assert all(f"\n| `{field.name}` | {field.number} |" in page for field in message.field)
    assert "| RESOURCE_EXHAUSTED | `ORIGIN_BACKLOG` | An origin has" in page


def test_the_client_page_has_every_public_name_and_method() -> None:
    page = (ROOT / "docs/reference/python-client.md").read_text()
    assert all(name in page for name in fedsvc_client.__all__)
    methods = {name for name in dir(fedsvc_client.FedsvcClient) if not name.startswith("_")}
    assert methods == set(re.findall(r"^#### FedsvcClient\.(\w+)$", page, re.MULTILINE))


def direct_dependencies() -> set[str]:
    """Of service and client, to run and to build, without our own."""
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())
    client = tomllib.loads((ROOT / "clients/python/pyproject.toml").read_text())
    requirements = [
        *ours["project"]["dependencies"],
        *(r for extra in ours["project"]["optional-dependencies"].values() for r in extra),
        *(r for group in ours["dependency-groups"].values() for r in group),
        *ours["build-system"]["requires"],
        *client["project"]["dependencies"],
        *(r for extra in client["project"]["optional-dependencies"].values() for r in extra),
    ]
    names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0] for requirement in requirements}
    return names - {"fedsvc-client"}


def listed() -> dict[str, tuple[str, str]]:
    """Each package of docs/dependencies.md with its licence and why it is there."""
    rows = re.findall(
        r"^\| ([\w.-]+) \| ([^|]+) \| ([^|]+) \|$", (ROOT / "docs/dependencies.md").read_text(), re.MULTILINE
    )
    return {name: (licence, why) for name, licence, why in rows if name != "package"}


def test_every_direct_dependency_has_a_line_of_why_and_no_other_has() -> None:
    assert set(listed()) == direct_dependencies()
    assert all(len(why) > 10 for _, why in listed().values())


def installed_elsewhere() -> set[str]:
    """What is never installed beside fedsvc: tools in environments of their own."""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    return {
        re.split(r"[^\w.-]", requirement, maxsplit=1)[0]
        for group in ("image", "deploy", "helm", "bench")
        for requirement in groups[group]
    } - {"hatchling"}


@pytest.mark.parametrize("name", sorted(direct_dependencies() - installed_elsewhere()))
def test_a_dependency_has_the_licence_that_we_say(name: str) -> None:
    told = metadata.metadata(name).json.get("license_expression")
    if told is not None:  # older packages name it in prose only
        assert listed()[name][0] == told


@pytest.mark.parametrize("lock", ["runtime", "dev", "image", "deploy", "helm", "bench"])
def test_a_lock_holds_every_dependency_with_hashes(lock: str) -> None:
    text = (ROOT / f"requirements/{lock}.lock").read_text()
    locked = re.findall(r"^([\w.-]+)==\S+ ?(?:;[^\n]*)?\\\n    --hash=sha256:", text, re.MULTILINE)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = project["dependency-groups"].get(lock, [])
    if lock in ("runtime", "dev"):
        wanted += project["project"]["dependencies"]
    names = {re.split(r"[^\w.-]", requirement, maxsplit=1)[0].lower() for requirement in wanted}
    assert names <= {name.lower() for name in locked}
    assert "://" not in text, "a lock names no index"
