"""Whether the server may listen where it is told to."""

from __future__ import annotations

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError
from fedsvc.server.tokens import TokenBook


def check_door(settings: Settings, tokens: TokenBook) -> None:
    """Raises ConfigurationError if strangers could come in."""
    if settings.tls_client_ca and not settings.tls_cert:
        raise ConfigurationError("FEDSVC_TLS_CLIENT_CA", "is of no use without FEDSVC_TLS_CERT")
    if settings.listen.local or settings.insecure:
        return
    missing = [
        name
        for name, there in (
            ("FEDSVC_TOKENS", not tokens.open),
            ("FEDSVC_TLS_CERT and FEDSVC_TLS_KEY", bool(settings.tls_cert)),
        )
        if not there
    ]
    if missing:
        raise ConfigurationError(
            "FEDSVC_LISTEN",
            f"others than this machine reach {settings.listen}: set {' and '.join(missing)}, or say "
            "--insecure if something else guards it",
        )
