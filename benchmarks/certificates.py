"""One authority, and certificates of it that many hosts share: thousands of hosts need few of them."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

_DAY = datetime.timedelta(days=1)


def make(directory: Path, addresses: list[str], each: int) -> tuple[Path, list[Path]]:
    """The certificate of the authority, and a file for every `each` addresses: a key (P-256) and
    its certificate."""
    authority = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "benchmarks")])
    builder = _builder(name, name, authority)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    ca = directory / "authority.pem"
    ca.write_bytes(builder.sign(authority, hashes.SHA256()).public_bytes(Encoding.PEM))
    files = []
    for at in range(0, len(addresses), each):
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.IPAddress(ipaddress.ip_address(one)) for one in addresses[at : at + each]]
        alternatives = x509.SubjectAlternativeName(names)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"hosts from {at} on")])
        builder = _builder(subject, name, key).add_extension(alternatives, critical=False)
        certificate = builder.sign(authority, hashes.SHA256())
        files.append(directory / f"hosts-{at:06}.pem")
        files[-1].write_bytes(
            key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate.public_bytes(Encoding.PEM)
        )
    return ca, files


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey
) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _DAY)
        .not_valid_after(now + _DAY)
    )
