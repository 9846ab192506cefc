"""TLS for the gRPC side: certificates that are read again when their files change."""

from __future__ import annotations

from typing import Any

import grpc
import structlog

from fedsvc.config import Settings
from fedsvc.config_files import check_authorities, check_own_certificate, read_file
from fedsvc.errors import ConfigurationError
from fedsvc.watched_files import WatchedFiles

log = structlog.get_logger(__name__)


class Certificates:
    """The server's certificate, its key and the authorities of clients, as the files have them now."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._files = [
            (Settings.variable(field), name)
            for field in ("tls_cert", "tls_key", "tls_client_ca")
            if (name := getattr(settings, field))
        ]
        self._watched = WatchedFiles([name for _, name in self._files])

    def credentials(self) -> grpc.ServerCredentials:
        """Raises ConfigurationError."""
        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            self._read(), self.changed, require_client_authentication=bool(self._settings.tls_client_ca)
        )
        return credentials

    def changed(self) -> Any:
        """What the files have now if they have changed; None if not, or if it cannot be used. Called at every
        handshake, from gRPC's threads."""
        # The new key may come a moment after the new certificate.
        fresh = self._watched.read_again(
            self._read, lambda problem: log.error("certificates_not_read", problem=problem)
        )
        if fresh is not None:
            log.info("certificates_read")
        return fresh

    def _read(self) -> Any:
        settings = self._settings
        if not settings.tls_cert or not settings.tls_key:
            missing = "tls_key" if settings.tls_cert else "tls_cert"
            raise ConfigurationError(Settings.variable(missing), "is needed too, for TLS")
        contents = {variable: read_file(variable, name) for variable, name in self._files}
        check_own_certificate(
            "FEDSVC_TLS_CERT", settings.tls_cert, settings.tls_key, key_variable="FEDSVC_TLS_KEY"
        )
        check_authorities("FEDSVC_TLS_CLIENT_CA", settings.tls_client_ca)
        return grpc.ssl_server_certificate_configuration(
            [(contents["FEDSVC_TLS_KEY"], contents["FEDSVC_TLS_CERT"])],
            root_certificates=contents.get("FEDSVC_TLS_CLIENT_CA"),
        )
