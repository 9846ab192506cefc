"""What `fedsvc doctor` can tell from settings and files alone."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from fedsvc.cli.findings import Finding, failed, mounted, ok, permissions, warning
from fedsvc.cli.output import counted
from fedsvc.config import Settings
from fedsvc.config_files import check_authorities
from fedsvc.errors import ConfigurationError

#: a certificate that ends sooner should have been renewed by now
_RENEW_BEFORE: Final = timedelta(days=14)


def local(settings: Settings) -> list[Finding]:
    """All of them."""
    found = [keys(settings), callers(settings)]
    if settings.tls_cert and found[-1].grade != "failed":
        found.append(certificate(settings))
    found += [tokens_file(settings)] if settings.tokens_file else []
    found += [authorities(settings)] if settings.ca_file else []
    found += [tracing(settings)] if settings.tracing else []
    return [*found, *contradictions(settings)]


def keys(settings: Settings) -> Finding:
    from fedsvc.queue.keystore import key_cipher

    check = "key encryption keys"
    try:
        cipher = key_cipher(settings)
    except ConfigurationError as error:
        advice = (
            "make one with: head -c 32 /dev/urandom | base64, and set FEDSVC_KEY_ENCRYPTION_KEYS or _FILE"
        )
        return failed(check, str(error), advice)
    file = settings.key_encryption_keys_file
    if file and not settings.key_encryption_keys.get_secret_value():
        may = permissions(file)
        if may & (0o022 if mounted(file) else 0o077):
            return failed(check, f"others than its owner can use {file}", f"chmod 600 {file}")
        if may & 0o004:
            return warning(check, f"everybody here can read {file}", _keep_to_yourself(file))
    count = len(cipher.parse(settings.key_encryption_secret()))
    return ok(check, "one" if count == 1 else f"{count}: the first encrypts, all decrypt")


def callers(settings: Settings) -> Finding:
    from fedsvc.server.door import check_door
    from fedsvc.server.limits import Limits
    from fedsvc.server.tls import Certificates
    from fedsvc.server.tokens import TokenBook

    check = "callers"
    try:
        tokens = TokenBook(settings)
        Limits(settings)
        check_door(settings, tokens)
        if settings.tls_cert or settings.tls_key:
            Certificates(settings).credentials()
    except ConfigurationError as error:
        return failed(check, str(error), _advice(error.setting))
    if tokens.open and not settings.insecure:
        return ok(check, f"all of this machine may call, on {settings.listen}")
    if tokens.open:
        advice = "keep it where something else says who may call, and encrypts: a service mesh, a tunnel"
        return warning(check, f"--insecure: whoever reaches {settings.listen} may call", advice)
    if not settings.tls_cert and not settings.listen.local:
        advice = "keep it where nobody listens in: within one machine, a service mesh, a tunnel"
        return warning(check, f"--insecure: tokens and keys come to {settings.listen} without TLS", advice)
    return ok(check, counted(tokens.callers, "has a token", "have tokens"))


def _advice(setting: str) -> str:
    if setting.startswith("FEDSVC_TLS"):
        return f"correct {setting}: certificate and key are two PEM files that belong together"
    if setting.startswith("FEDSVC_TOKENS"):
        return f"correct {setting}: `fedsvc tokens new` makes an entry, and this user must be able to read it"
    return f"correct {setting}; `fedsvc tokens new` makes a token"


def tokens_file(settings: Settings) -> Finding:
    """It holds hashes only, so that to read it is no disaster; to write it is to let oneself in."""
    file, check = settings.tokens_file, "tokens file"
    for bits, grade, may in ((0o022, failed, "write"), (0o004, warning, "read")):
        if permissions(file) & bits:
            return grade(check, f"others than its owner can {may} {file}", _keep_to_yourself(file))
    return ok(check, file)


def _keep_to_yourself(file: str) -> str:
    if mounted(file):
        return "no harm in a container, where nobody else is; elsewhere give it to this user, and chmod 600"
    return f"chmod 600 {file}"


def certificate(settings: Settings) -> Finding:
    """Of the server, which is known to be there and to go with its key."""
    from cryptography import x509

    check = "TLS certificate"
    if permissions(settings.tls_key) & 0o007:
        return failed(check, f"everybody can use {settings.tls_key}", f"chmod 600 {settings.tls_key}")
    leaf = x509.load_pem_x509_certificates(Path(settings.tls_cert).read_bytes())[0]
    now, begins, ends = datetime.now(UTC), leaf.not_valid_before_utc, leaf.not_valid_after_utc
    renew = "renew it: the server reads the files again by itself"
    if ends <= now:
        return failed(check, f"ended on {ends:%Y-%m-%d %H:%M} UTC", renew)
    if begins > now:
        return failed(check, f"begins on {begins:%Y-%m-%d %H:%M} UTC", "wait, or set this machine's clock")
    if ends - now < _RENEW_BEFORE:
        return warning(check, f"ends on {ends:%Y-%m-%d %H:%M} UTC", renew)
    return ok(check, f"good until {ends:%Y-%m-%d}")


def authorities(settings: Settings) -> Finding:
    check = "authorities (FEDSVC_CA_FILE)"
    try:
        check_authorities("FEDSVC_CA_FILE", settings.ca_file)
    except ConfigurationError as error:
        advice = "correct FEDSVC_CA_FILE: certificates in PEM, readable by this user"
        return failed(check, error.problem, advice)
    return ok(check, settings.ca_file)


def tracing(settings: Settings) -> Finding:
    from fedsvc.tracing import Tracing

    try:
        traced = Tracing.from_settings(settings, "fedsvc-doctor")
    except ConfigurationError as error:
        return failed("tracing", str(error), f"correct {error.setting}, or unset FEDSVC_TRACING")
    return ok("tracing", "on" if traced is not None else "turned off by OTEL_ variables")


def contradictions(settings: Settings) -> list[Finding]:
    """Settings that are each valid, and do not go together."""
    found = list(_contradictions(settings))
    return found or [ok("settings together", "nothing contradicts")]


def _contradictions(s: Settings) -> Iterator[Finding]:
    for shorter, longer, why in (
        ("archive_dead_retention", "dead_letter_retention", "the archive forgets dead letters before Redis"),
        ("archive_retention", "task_ttl", "the archive forgets deliveries that should still be shown"),
    ):
        have, need = getattr(s, shorter), getattr(s, longer)
        if have < need:
            names = f"{s.variable(shorter)} ({have}) is less than {s.variable(longer)} ({need})"
            yield failed("settings together", f"{names}: {why}", f"raise {s.variable(shorter)}")
    for error in s.contradictions():
        yield failed(
            "settings together", str(error), f"lower {error.setting}, or raise the other: so, nothing starts"
        )
    if s.circuit_longest_probe < s.circuit_first_probe:
        advice = "raise FEDSVC_CIRCUIT_LONGEST_PROBE"
        yield failed("settings together", "FEDSVC_CIRCUIT_FIRST_PROBE is above the longest", advice)
    if s.host_start > s.host_concurrency:
        advice = "lower FEDSVC_HOST_START: a host gets no more than FEDSVC_HOST_CONCURRENCY"
        yield failed("settings together", "FEDSVC_HOST_START is above FEDSVC_HOST_CONCURRENCY", advice)
    if s.shutdown_grace < s.delivery_timeout:
        found = f"FEDSVC_SHUTDOWN_GRACE ({s.shutdown_grace:g} s) is less than FEDSVC_DELIVERY_TIMEOUT"
        advice = "raise it: what is cut off is sent again, and inboxes may see it twice"
        yield warning("settings together", found, advice)
