"""How to reach a server: targets, channel options, and when to try again."""

from __future__ import annotations

import json
import random
import re
import ssl
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NoReturn

import grpc

from fedsvc_client._arguments import seconds
from fedsvc_client._exceptions import ConfigurationError, FedsvcError, from_call

#: seconds before the first repetition, and the longest
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 2.0
#: bytes of one message
LARGEST = 64 * 1024 * 1024


@dataclass(frozen=True)
class TLS:
    """How to trust the server, and how it can trust us. Files are in PEM, read when a connection is made; the
    call that makes it raises ConfigurationError if they are not. Those that have changed are read again once
    the server cannot be reached."""

    #: authorities to trust; the system's if not given
    ca_file: str | Path | None = None
    #: our own certificate with its chain, and its key, for a server that wants one
    cert_file: str | Path | None = None
    key_file: str | Path | None = None

    def __post_init__(self) -> None:
        # gRPC would end the process.
        if (self.cert_file is None) != (self.key_file is None):
            raise ConfigurationError("cert_file and key_file belong together")

    def credentials(self) -> grpc.ChannelCredentials:
        files = authorities_of(self.ca_file), pem_of(self.key_file), pem_of(self.cert_file)
        check_pair(self.cert_file, self.key_file)
        return grpc.ssl_channel_credentials(*files)


def stamps_of(tls: TLS | None) -> list[tuple[int, ...]]:
    """What tells whether its files are others than before."""
    files = (tls.ca_file, tls.cert_file, tls.key_file) if tls is not None else ()
    return [_stamp_of(file) for file in files if file is not None]


def _stamp_of(file: str | Path) -> tuple[int, ...]:
    try:
        status = Path(file).stat()
    except (OSError, TypeError, ValueError):
        return ()  # as whoever reads it is told
    return (status.st_mtime_ns, status.st_size, status.st_ino)


def pem_of(path: str | Path | None) -> bytes | None:
    """What a file holds. Raises ConfigurationError if that is nothing in PEM: an empty file is none to gRPC,
    which would trust whom the system trusts."""
    try:
        found = None if path is None else Path(path).read_bytes()
    except (OSError, TypeError, ValueError):
        raise ConfigurationError(f"{path} cannot be read") from None
    if found is not None and b"-----BEGIN " not in found:
        raise ConfigurationError(f"{path} holds nothing in PEM")
    return found


def authorities_of(path: str | Path | None) -> bytes | None:
    """Likewise, of a file with certificates: without any gRPC would only say that the server cannot be
    reached."""
    found = pem_of(path)
    if path is not None and found is not None and not _has_certificates(str(path), found):
        raise ConfigurationError(f"{path} holds no certificates that can be read")
    return found


@lru_cache(maxsize=8)  # settings are read at each call
def _has_certificates(path: str, held: bytes) -> bool:
    """Whether OpenSSL reads any there. `held` is what the file holds, for which the answer is kept."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(path)
    except OSError:  # ssl.SSLError among them
        return False
    return context.cert_store_stats()["x509"] > 0


def check_pair(cert_file: str | Path | None, key_file: str | Path | None) -> None:
    """Raises ConfigurationError if a certificate and a key cannot be used together, of which gRPC only says
    that the server cannot be reached."""
    if cert_file is None or key_file is None:
        return

    def encrypted() -> NoReturn:
        """In place of OpenSSL's question for a password at the terminal."""
        raise ConfigurationError(f"{key_file} is encrypted; the key in clear is needed")

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(cert_file, key_file, password=encrypted)
    except OSError:  # ssl.SSLError among them
        raise ConfigurationError(f"{cert_file} does not go with {key_file}") from None


RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.ABORTED})


#: service whose health tells whether a server takes calls
HEALTH_SERVICE = "fedsvc.v1.DeliveryService"


def channel_target(target: str) -> str:
    """The gRPC target of HOST:PORT, of several such addresses with commas between, or of what is one already.
    Raises ConfigurationError."""
    if not isinstance(target, str):
        raise ConfigurationError(f"the target is no text but {type(target).__name__}")
    word = target.strip()  # as a file or a setting that it was read from may have more
    if not word:
        raise ConfigurationError("the target is empty")
    places = [place.strip() for place in word.split(",")]
    if _SCHEME.match(word):
        return word
    for place in places:
        _check_place(place)
    if len(places) == 1:
        return word
    hosts = [place.rpartition(":")[0] for place in places]
    for kind, version in (("ipv4", 4), ("ipv6", 6)):
        if all(_version(host) == version for host in hosts):
            return f"{kind}:{','.join(places)}"
    raise ConfigurationError(
        "several servers are told by their IP addresses, all of one kind, or by one name that DNS knows all "
        "of them by: dns:///NAME:PORT"
    )


def _check_place(place: str) -> None:
    """HOST:PORT. Of an address of the web gRPC would ask DNS, and it takes a port modulo 65,536."""
    scheme, between, _ = place.partition("://")
    if between:
        raise ConfigurationError(f"the target is HOST:PORT, without {scheme}://")
    host, colon, port = place.rpartition(":")
    if not colon or (":" in host and not host.endswith("]")):  # an IPv6 address may have no port
        return
    number = int(port) if port.strip().isdecimal() else 0
    if not 0 < number <= _LAST_PORT and port not in _PORTS_BY_NAME:
        raise ConfigurationError(f"the target's port is no number from 1 to {_LAST_PORT}: {port!r}")


_LAST_PORT = 65_535
#: that gRPC knows
_PORTS_BY_NAME = frozenset({"http", "https"})
_SCHEME = re.compile(r"(dns|ipv4|ipv6|unix|unix-abstract|vsock|xds|google-c2p|passthrough):", re.IGNORECASE)


def _version(host: str) -> int:
    try:
        return ip_address(host[1:-1] if host.startswith("[") else host).version
    except ValueError:
        return 0


def channel_options(target: str, timeout: float) -> list[tuple[str, Any]]:
    """`target`: as `channel_target` gives it. `timeout`: seconds that a call takes at most."""
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if target.startswith(("dns:", "ipv4:", "ipv6:")):
        # Where there are several, those that say that they cannot serve are passed over. A single one is
        # asked all the same: it tells best what is wrong.
        config["healthCheckConfig"] = {"serviceName": HEALTH_SERVICE}
    return [
        ("grpc.service_config", json.dumps(config)),
        # After a server has gone, names are looked up anew; gRPC's own 30 s are longer than calls wait.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
        ("grpc.max_receive_message_length", LARGEST),
        ("grpc.max_send_message_length", LARGEST),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2_000),
        # How long it may take to connect, also to what lets us in and is silent: there is time for another
        # try within a call. gRPC's own 20 s are longer than calls wait, and streams would wait all of them.
        ("grpc.min_reconnect_backoff_ms", int(1000 * min(20.0, max(1.0, timeout / 2)))),
        # We repeat calls ourselves, under one request id.
        ("grpc.enable_retries", 0),
        # Channels with equal arguments would share connections, also with those of before a fork.
        ("grpc.use_local_subchannel_pool", 1),
    ]


def channel_token(token: str | None) -> str:
    """A token without the white space around it, as a file that it was read from has; empty for none. Raises
    ConfigurationError for one that cannot travel."""
    if not isinstance(token, (str, type(None))):
        raise ConfigurationError(f"the token is no text but {type(token).__name__}")
    word = (token or "").strip()
    if not (word.isascii() and word.isprintable()):
        raise ConfigurationError(
            "this is no token: it has more than one line, or characters that no token has"
        )
    return word


def channel_tls(tls: TLS | bool | None) -> TLS | None:
    """None for none. Raises ConfigurationError: a path is no TLS, and would be taken for True."""
    if not isinstance(tls, (TLS, bool, type(None))):
        raise ConfigurationError(f"tls is True, False or a TLS, not {type(tls).__name__}")
    return TLS() if tls is True else tls or None


def explained(details: str | None, tls: TLS | None) -> str | None:
    """What gRPC says of a server that cannot be reached, and that one side alone may speak TLS."""
    told = details or ""
    if "WRONG_VERSION_NUMBER" in told:
        return f"{told} (the server does not speak TLS, which tls turns on)"
    # Before it has said anything. One that goes away during a call is told of without the first part.
    if tls is None and re.search(r"last error: .*: Socket closed$", told):
        return f"{told} (the server hung up at once; if it speaks TLS, set tls)"
    return details


def metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),) if token else ()


class Attempts:
    """Attempts of one call within one deadline, with growing pauses between them."""

    def __init__(self, timeout: float) -> None:
        """`timeout`: seconds for all of them together. Raises InvalidRequest."""
        self._end = time.monotonic() + seconds("timeout", timeout)
        self._pauses = self.pauses()
        #: what the attempt before was told
        self._told: FedsvcError | None = None

    @property
    def left(self) -> float:
        """Seconds."""
        return max(0.0, self._end - time.monotonic())

    def pause_after(
        self, code: grpc.StatusCode, details: str | None, trailers: Iterable[Any], request_id: str
    ) -> float:
        """Seconds to wait before an attempt that ended so is repeated. Raises FedsvcError if it is not: what
        it was told, or if our own deadline cut it off, what the one before was told, which says more."""
        failure = from_call(code, details, trailers, request_id)
        pause = next(self._pauses, None) if code in RETRYABLE else None
        if pause is not None:
            self._told = failure
            return pause
        cut_off = code is grpc.StatusCode.DEADLINE_EXCEEDED
        raise (self._told or failure) if cut_off else failure

    def pauses(self) -> Iterator[float]:
        """Seconds to wait before each repetition; ends when there is no time for another."""
        pause = FIRST_PAUSE
        while True:
            wait = pause * (0.5 + random.random() / 2)
            if wait >= self.left:
                return
            yield wait
            pause = min(pause * 2, LONGEST_PAUSE)


class Remakings:
    """Of a stream: it is made again within `timeout` seconds of when it broke. How long it was quiet before
    does not count."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._attempts: Attempts | None = None

    def works(self) -> None:
        """It has given something."""
        self._attempts = None

    def pause_after(self, code: grpc.StatusCode, details: str | None, trailers: Iterable[Any]) -> float:
        """Seconds to wait before it is made again, as it broke so. Raises FedsvcError if it is not."""
        self._attempts = self._attempts or Attempts(self._timeout)
        return self._attempts.pause_after(code, details, trailers, "")

    def pause_after_end(self) -> float:
        """Likewise, as the server has ended it in order."""
        try:
            return self.pause_after(grpc.StatusCode.UNAVAILABLE, "", ())
        except FedsvcError:
            return LONGEST_PAUSE
