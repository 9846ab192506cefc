"""Certificates of all kinds, good and bad, made on the spot."""

from __future__ import annotations

import datetime
import itertools
import ssl
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey

_DAY = datetime.timedelta(days=1)
_serials = itertools.count(1)
#: goes with the process
_directory = tempfile.TemporaryDirectory(prefix="fedsvc-certificates-")


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(*parts: x509.Certificate | Key) -> bytes:
    return b"".join(
        part.public_bytes(serialization.Encoding.PEM)
        if isinstance(part, x509.Certificate)
        else part.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        for part in parts
    )


def _write(content: bytes) -> Path:
    path = Path(_directory.name) / f"{next(_serials)}.pem"
    path.write_bytes(content)
    return path


@dataclass(frozen=True)
class Authority:
    certificate: x509.Certificate
    key: Key
    #: its certificate, for `ca_file`
    file: Path
    #: certificates between it and a trusted one
    chain: tuple[x509.Certificate, ...] = ()

    def certify(
        self,
        *names: str,
        days: tuple[int, int] = (-1, 1),
        common_name: str = "server",
        usage: x509.ObjectIdentifier = ExtendedKeyUsageOID.SERVER_AUTH,
        key: Key | None = None,
    ) -> Path:
        """A PEM file for a server of `names` (SANs), valid between those `days` from now."""
        key = key or ec.generate_private_key(ec.SECP256R1())
        builder = _builder(common_name, self.certificate.subject, key, days).add_extension(
            x509.ExtendedKeyUsage([usage]), critical=False
        )
        if names:
            alternatives = x509.SubjectAlternativeName([_alternative(name) for name in names])
            builder = builder.add_extension(alternatives, critical=False)
        return _write(_pem(key, builder.sign(self.key, hashes.SHA256()), *self.chain))

    def subordinate(self, *, ca: bool = True, days: tuple[int, int] = (-1, 1)) -> Authority:
        """Another that this one vouches for; not as an authority unless `ca`."""
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder("between", self.certificate.subject, key, days)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .sign(self.key, hashes.SHA256())
        )
        return Authority(certificate, key, self.file, (certificate, *self.chain))


def _builder(subject: str, issuer: x509.Name, key: Key, days: tuple[int, int]) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(_name(subject))
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(next(_serials))
        .not_valid_before(now + days[0] * _DAY)
        .not_valid_after(now + days[1] * _DAY)
    )


@lru_cache
def authority(name: str = "an authority", days: tuple[int, int] = (-2, 2)) -> Authority:
    """One that signs itself; the same for the same name."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder(name, _name(name), key, days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Authority(certificate, key, _write(_pem(certificate)))


def self_signed(*names: str) -> Path:
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        _builder("itself", _name("itself"), key, (-1, 1))
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _write(_pem(key, certificate))


def bundle(*authorities: Authority) -> Path:
    return _write(_pem(*(each.certificate for each in authorities)))


def server_context(certificate: Path, options: Sequence[str] = ()) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if options:
        context.set_ciphers(":".join(options))
    context.load_cert_chain(certificate)
    return context
