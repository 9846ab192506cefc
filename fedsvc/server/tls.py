"""TLS for the gRPC side: certificates that are read again when their files change."""

from __future__ import annotations

import ssl
from pathlib import Path
from typing import Any, NoReturn

import grpc
import structlog

from fedsvc.config import Settings
from fedsvc.errors import ConfigurationError
from fedsvc.watched_files import WatchedFiles

log = structlog.get_logger(__name__)


class Certificates:
    """The server's certificate, its key and the authorities of clients, as the files have them now."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files = [
            (Settings.variable(field), Path(name))
            for field in ("tls_cert", "tls_key", "tls_client_ca")
            if (name := getattr(settings, field))
        ]
        self._watched = WatchedFiles([str(path) for _, path in self._files])

    def credentials(self) -> grpc.ServerCredentials:
        """Raises ConfigurationError."""
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._read(), self.changed, require_client_authentication=bool(self._settings.tls_client_ca)
        )
        return credentials

    def changed(self) -> Any:
        """What the files have now if they have changed; None if not, or if it cannot be used. Called at every
        handshake, from gRPC's threads."""
        if not self._watched.changed():
            return None
        self._watched.keep()
        try:
            fresh = self._read()
        except ConfigurationError as error:
            # The new key may come a moment after the new certificate: looked at again at the next handshake.
            self._watched.forget()
            log.error("certificates_not_read", problem=str(error))
            return None
        log.info("certificates_read")
        return fresh

    def _read(self) -> Any:
        settings = self._settings
        if not settings.tls_cert or not settings.tls_key:
            missing = "tls_key" if settings.tls_cert else "tls_cert"
            raise ConfigurationError(Settings.variable(missing), "is needed too, for TLS")
        contents = {}
        for variable, path in self._files:
            try:
                contents[variable] = path.read_bytes()
            except OSError as error:
                raise ConfigurationError(variable, f"cannot be read: {type(error).__name__}") from None
        check = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            check.load_cert_chain(settings.tls_cert, settings.tls_key, password=_encrypted)
        except (ssl.SSLError, OSError) as error:
            raise ConfigurationError(
                "FEDSVC_TLS_CERT", f"does not go with FEDSVC_TLS_KEY, or is no PEM: {type(error).__name__}"
            ) from None
        if settings.tls_client_ca:
            try:
                check.load_verify_locations(settings.tls_client_ca)
            except (ssl.SSLError, OSError) as error:
                raise ConfigurationError(
                    "FEDSVC_TLS_CLIENT_CA", f"is no PEM: {type(error).__name__}"
                ) from None
        return grpc.ssl_server_certificate_configuration(
            [(contents["FEDSVC_TLS_KEY"], contents["FEDSVC_TLS_CERT"])],
            root_certificates=contents.get("FEDSVC_TLS_CLIENT_CA"),
        )


def _encrypted() -> NoReturn:
    """In place of OpenSSL's question for a password, which waits for an answer at the terminal."""
    raise ConfigurationError("FEDSVC_TLS_KEY", "is encrypted; the key in clear is needed")
