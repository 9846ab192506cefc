from __future__ import annotations

from pathlib import Path

import pytest

from fedsvc.config import Settings
from fedsvc.config_files import check_authorities
from fedsvc.config_types import Address
from fedsvc.errors import ConfigurationError


def test_the_defaults_are_those_of_the_design() -> None:
    settings = Settings.from_environment({})
    assert settings.max_retry_duration == 172_800
    assert settings.task_ttl == 86_400
    assert settings.max_batch_size == 10
    assert settings.listen == Address("127.0.0.1", 50051)
    assert settings.http_listen == Address("127.0.0.1", 8080)
    assert settings.allow_http is False
    assert settings.allowed_cidrs == ()
    assert settings.retry_scale == 1.0
    assert settings.host_concurrency == 8


def test_inherited_names_have_no_prefix() -> None:
    inherited = {"REDIS_URL", "DATABASE_URL", "MAX_RETRY_DURATION", "TASK_TTL", "MAX_BATCH_SIZE"}
    variables = {Settings.variable(field) for field in Settings.model_fields}
    assert inherited == {name for name in variables if not name.startswith("FEDSVC_")}


def test_every_setting_is_described() -> None:
    assert not [name for name, field in Settings.model_fields.items() if not field.description]


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("FEDSVC_CONCURENCY", "5"),
        ("FEDSVC_CONCURRENCY", "0"),
        ("FEDSVC_CONCURRENCY", "many"),
        ("FEDSVC_LISTEN", "nonsense"),
        ("FEDSVC_LISTEN", "127.0.0.1:99999"),
        ("FEDSVC_LISTEN", "127.0.0.1:٣"),
        ("FEDSVC_LISTEN", ":50051"),
        ("FEDSVC_LISTEN", "[::1:5"),
        ("FEDSVC_ALLOW_HTTP", "perhaps"),
        ("FEDSVC_ALLOWED_CIDRS", "10.0.0.1/8"),
        ("FEDSVC_ALLOWED_CIDRS", "nonsense"),
        ("FEDSVC_ALLOWED_PORTS", "https"),
        ("FEDSVC_LOG_LEVEL", "loud"),
        ("FEDSVC_RETRY_SCALE", "-1"),
        ("FEDSVC_USER_AGENT", "a\nb"),
        ("FEDSVC_NAMESPACE", "{x}"),
        ("FEDSVC_PARTITIONS", "5000"),
        ("MAX_RETRY_DURATION", "soon"),
        ("TASK_TTL", "0"),
        ("MAX_RETRY_DURATION", "99999999999999999999"),
        ("TASK_TTL", "999999999999999999"),
        ("FEDSVC_OUTCOME_RETENTION", "99999999999999999"),
        ("FEDSVC_HOST_DOWN_AFTER", "inf"),
        ("FEDSVC_RETRY_SCALE", "nan"),
        ("FEDSVC_ALLOWED_PORTS", "443,99999"),
        ("FEDSVC_ALLOWED_PORTS", "0"),
        ("FEDSVC_ALLOWED_PORTS", "٣"),
        ("FEDSVC_MEMORY_WARNING", "0.95"),
        ("FEDSVC_CONNECT_TIMEOUT", "50"),
    ],
)
def test_a_bad_or_unknown_setting_is_named(variable: str, value: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_environment({variable: value})
    assert refused.value.setting == variable


@pytest.mark.parametrize(
    ("variable", "value"), [("FEDSVC_DELIVERY_TIMEOUT", "2"), ("FEDSVC_MEMORY_CRITICAL", "0.5")]
)
def test_what_was_not_set_gives_way_to_what_was(variable: str, value: str) -> None:
    settings = Settings.from_environment({variable: value})
    assert Settings.from_environment(settings.to_environment()) == settings


def test_all_that_is_wrong_is_named_in_one_line(tmp_path: Path) -> None:
    wrong = {
        "FEDSVC_CONCURENCY": "5",
        "FEDSVC_DATABASE_URL_FILE": str(tmp_path / "none"),
        "FEDSVC_LOG_LEVEL": "loud",
        "TASK_TTL": "0",
    }
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_environment(wrong | {"FEDSVC_PROCESSES": "3"})
    text = str(refused.value)
    assert "\n" not in text
    assert [name for name in wrong if f"{name}: " in text] == list(wrong)


def test_what_is_bad_is_as_if_it_were_not_set_for_those_who_go_on_without() -> None:
    settings, problems = Settings.read({"FEDSVC_CONCURENCY": "5", "TASK_TTL": "0", "FEDSVC_PROCESSES": "3"})
    assert [problem.setting for problem in problems] == ["FEDSVC_CONCURENCY", "TASK_TTL"]
    assert (settings.task_ttl, settings.processes) == (86_400, 3)


def test_every_duration_has_an_upper_bound() -> None:
    unbounded = [
        name
        for name, field in Settings.model_fields.items()
        if (field.description or "").startswith("Seconds")
        and not any(hasattr(limit, "le") for limit in field.metadata)
    ]
    assert not unbounded


def test_the_log_level_is_taken_in_any_case() -> None:
    assert Settings.from_environment({"FEDSVC_LOG_LEVEL": "INFO"}).log_level == "info"


def test_authorities_that_are_none_are_told_with_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    for name in (str(file), str(tmp_path), str(tmp_path / "none")):
        with pytest.raises(ConfigurationError) as refused:
            check_authorities("FEDSVC_CA_FILE", name)
        assert refused.value.setting == "FEDSVC_CA_FILE"
        assert "[X509" not in str(refused.value)
    check_authorities("FEDSVC_CA_FILE", "")


def test_what_only_the_client_reads_is_no_unknown_setting() -> None:
    assert Settings.from_environment({"FEDSVC_CLIENT_TIMEOUT": "3"}) == Settings.from_environment({})


def test_addresses_may_be_ipv6() -> None:
    assert Settings.from_environment({"FEDSVC_LISTEN": "[::1]:0"}).listen == Address("::1", 0)
    assert str(Address("::1", 50051)) == "[::1]:50051"


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.3.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False),
        ("::", False), ("10.0.0.1", False), ("fe80::1%eth0", False), ("fedsvc.example", False),
    ],
)  # fmt: skip
def test_an_address_is_local_if_nobody_but_this_machine_reaches_it(host: str, local: bool) -> None:
    assert Address(host, 1).local is local


def test_settings_are_handed_on_to_another_process_whole() -> None:
    settings = Settings.from_environment(
        {
            "FEDSVC_ALLOWED_CIDRS": "127.0.0.0/8, ::1",
            "FEDSVC_ALLOWED_PORTS": "1,443,65535",
            "FEDSVC_ALLOW_HTTP": "yes",
            "FEDSVC_KEY_ENCRYPTION_KEYS": "secret",
            "FEDSVC_LISTEN": "[::1]:5",
        }
    )
    assert Settings.from_environment(settings.to_environment()) == settings


def test_overrides_win_unless_they_are_none() -> None:
    environment = {"FEDSVC_PROCESSES": "3"}
    assert Settings.from_environment(environment, processes=2).processes == 2
    assert Settings.from_environment(environment, processes=None).processes == 3


def test_secrets_are_in_no_repr_and_no_error() -> None:
    settings = Settings.from_environment({"FEDSVC_KEY_ENCRYPTION_KEYS": "geheim"})
    assert "geheim" not in repr(settings) + str(settings)


def test_key_encryption_keys_come_from_the_variable_or_the_file(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("from-file\n")
    name = "FEDSVC_KEY_ENCRYPTION_KEYS"
    assert Settings.from_environment({name: "direct"}).key_encryption_secret() == "direct"
    assert Settings.from_environment({f"{name}_FILE": str(file)}).key_encryption_secret() == "from-file"
    for environment in ({}, {f"{name}_FILE": str(tmp_path / "none")}, {f"{name}_FILE": "/dev/null"}):
        with pytest.raises(ConfigurationError, match=name):
            Settings.from_environment(environment).key_encryption_secret()


@pytest.mark.parametrize("url", ["REDIS_URL", "DATABASE_URL"])
def test_a_url_comes_from_the_variable_or_the_file_and_never_from_both(tmp_path: Path, url: str) -> None:
    file = tmp_path / "url"
    file.write_text("sqlite:///from-file.db\n")
    variable = f"FEDSVC_{url}_FILE"
    settings = Settings.from_environment({variable: str(file)})
    assert getattr(settings, url.lower()) == "sqlite:///from-file.db"
    # as a process is started by another that has read the file
    assert Settings.from_environment(settings.to_environment()) == settings
    overridden = Settings.from_environment({variable: "/nonexistent"}, **{url.lower(): "sqlite:///o.db"})
    assert getattr(overridden, url.lower()) == "sqlite:///o.db"
    for environment in (
        {variable: str(file), url: "sqlite:///a.db"},
        {variable: str(tmp_path / "none")},
        {variable: str(tmp_path)},
    ):
        with pytest.raises(ConfigurationError) as refused:
            Settings.from_environment(environment)
        assert refused.value.setting == variable


@pytest.mark.parametrize("setting", ["FEDSVC_REDIS_URL_FILE", "FEDSVC_TOKENS_FILE"])
@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "is empty"),
        (b"\xff", "is not text in UTF-8"),
        (None, "cannot be read: No such file or directory"),
        ("\0", "cannot be read: embedded null byte"),
    ],
)
def test_a_file_that_says_no_setting_is_told_by_the_setting_that_names_it(
    tmp_path: Path, setting: str, content: bytes | str | None, problem: str
) -> None:
    file = tmp_path / "value"
    name = str(file)
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        name += content
    with pytest.raises(ConfigurationError) as refused:
        Settings.from_environment({setting: name}).secret("tokens")
    # Somebody may have written the value itself in place of the file's name.
    assert (refused.value.setting, refused.value.problem) == (setting, problem)


def test_where_nothing_is_said_nothing_speaks_of_health_alone() -> None:
    assert Settings.from_environment({}).health_listen is None
    assert Settings.from_environment({"FEDSVC_HEALTH_LISTEN": ""}).health_listen is None
    assert Settings.from_environment({"FEDSVC_HEALTH_LISTEN": "[::1]:50052"}).health_listen == ("::1", 50052)
