"""Private keys: read once with all checks, kept encrypted, used to sign.

A key is checked when it is first seen (some 30 ms for RSA); after that it is stored by us and read without
checks (12 µs). No message, repr or exception of this module holds any of a key's material.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final, Self

from cryptography.exceptions import InternalError, InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_private_key,
    load_pem_private_key,
)

from fedsvc.domain.errors import InvalidKey, KeyUnavailable

_FIELD: Final = "signing_key.private_key_pem"
MAX_PEM_BYTES: Final = 16_384
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 4096
_LABEL: Final = re.compile(rb"-----BEGIN ([A-Z0-9 ]{1,40})-----")
_OTHER_ALGORITHM: Final = "is neither an RSA nor an Ed25519 key"
_PADDING: Final = padding.PKCS1v15()
_SHA256: Final = hashes.SHA256()
_DIGEST: Final = Prehashed(_SHA256)

#: what the library raises for what it cannot read; an X448 key of a wrong length is an InternalError
_UNREADABLE: Final = (ValueError, TypeError, UnsupportedAlgorithm, InternalError)


@dataclass(frozen=True, slots=True, eq=False)
class PrivateKey:
    """`fingerprint`: the first 32 hex digits of the SHA-256 of the public key (SubjectPublicKeyInfo, DER)."""

    algorithm: str  # "rsa" or "ed25519"
    bits: int
    fingerprint: str
    _key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey = field(repr=False)

    def sign(self, data: bytes) -> bytes:
        """RSASSA-PKCS1-v1_5 with SHA-256, or Ed25519."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(data, _PADDING, _SHA256)
        return self._key.sign(data)

    def sign_digest(self, digest: bytes) -> bytes:
        """`sign` of what has this SHA-256. Raises TypeError for a key that is not RSA's."""
        if not isinstance(self._key, rsa.RSAPrivateKey):
            raise TypeError(f"an {self.algorithm} key signs no digest")
        return self._key.sign(digest, _PADDING, _DIGEST)

    @property
    def public_pem(self) -> str:
        return self._key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def load_private_key(pem: str | bytes) -> PrivateKey:
    """Of PKCS#1 or PKCS#8: RSA of 2048 to 4096 bits, or Ed25519. Raises InvalidKey."""
    raw = pem.encode(errors="replace") if isinstance(pem, str) else pem
    if not raw.strip():
        raise InvalidKey(_FIELD, "is required")
    if len(raw) > MAX_PEM_BYTES:
        raise InvalidKey(_FIELD, f"has {len(raw)} bytes; {MAX_PEM_BYTES} are allowed")
    label = _LABEL.search(raw)
    kind = label[1].decode() if label else ""
    if kind.endswith("PUBLIC KEY"):
        raise InvalidKey(_FIELD, "is a public key; the private key is needed")
    if kind == "CERTIFICATE":
        raise InvalidKey(_FIELD, "is a certificate; the private key is needed")
    if kind == "ENCRYPTED PRIVATE KEY" or b"Proc-Type: 4,ENCRYPTED" in raw:
        raise InvalidKey(_FIELD, "is encrypted; the key in clear is needed")
    if kind in ("EC PRIVATE KEY", "EC PARAMETERS", "DSA PRIVATE KEY"):
        raise InvalidKey(_FIELD, _OTHER_ALGORITHM)
    if kind not in ("PRIVATE KEY", "RSA PRIVATE KEY"):
        raise InvalidKey(_FIELD, "is not a private key in PEM (PKCS#1 or PKCS#8)")
    # The checks of a key of 8192 bits take seconds, so its size is looked at before they run.
    key = _read(raw, unchecked=True)
    if isinstance(key, rsa.RSAPrivateKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise InvalidKey(
                _FIELD, f"has {key.key_size} bits; {MIN_RSA_BITS} to {MAX_RSA_BITS} are accepted"
            )
        key = _read(raw, unchecked=False)
    if isinstance(key, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        return _wrapped(key)
    raise InvalidKey(_FIELD, "is not a valid private key" if key is None else _OTHER_ALGORITHM)


def registered_name(key_id: str) -> str:
    """Under which a registered key is stored; deliveries refer to it. It stays when the key is replaced."""
    return "r" + hashlib.blake2b(key_id.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def belongs(key_id: str, actor: str) -> bool:
    """Whether a key is the actor's, as far as its id tells: it is below the actor's, as `#main-key` or
    `/main-key`. How letters are written does not matter."""
    owner, of = actor.casefold().rstrip("/"), key_id.casefold()
    return of == owner or of.startswith((f"{owner}#", f"{owner}/", f"{owner}?"))


def is_registered(name: str) -> bool:
    """Whether this is the name of a registered key, not a fingerprint."""
    return name.startswith("r")


def to_storable(key: PrivateKey) -> bytes:
    """PKCS#8 DER in clear: only ever to be encrypted."""
    return key._key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


def from_storable(der: bytes) -> PrivateKey:
    """Of what `to_storable` gave; the key was checked when it was registered. Raises KeyUnavailable."""
    key = None
    with suppress(*_UNREADABLE):
        key = load_der_private_key(der, password=None, unsafe_skip_rsa_key_validation=True)
    if isinstance(key, (rsa.RSAPrivateKey, ed25519.Ed25519PrivateKey)):
        return _wrapped(key)
    raise KeyUnavailable("a stored key cannot be read")


def _read(pem: bytes, *, unchecked: bool) -> PrivateKeyTypes | None:
    """None if it cannot be read. What the library says of it is dropped: it could quote it."""
    with suppress(*_UNREADABLE):
        return load_pem_private_key(pem, password=None, unsafe_skip_rsa_key_validation=unchecked)
    return None


def _wrapped(key: rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey) -> PrivateKey:
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(public).hexdigest()[:32]
    if isinstance(key, rsa.RSAPrivateKey):
        return PrivateKey("rsa", key.key_size, fingerprint, key)
    return PrivateKey("ed25519", 256, fingerprint, key)


class PrivateKeyCache:
    """Keys by the SHA-256 of their PEM, so that none is parsed twice; the least recently used go first."""

    def __init__(self, limit: int) -> None:
        if limit < 1:
            raise ValueError("the limit of a cache of keys must be at least 1")
        self._limit = limit
        self._keys: OrderedDict[bytes, PrivateKey] = OrderedDict()

    def peek(self, pem: str) -> PrivateKey | None:
        """The key if it was loaded before."""
        name = hashlib.sha256(pem.encode(errors="replace")).digest()
        key = self._keys.get(name)
        if key is not None:
            self._keys.move_to_end(name)
        return key

    def add(self, pem: str, key: PrivateKey) -> None:
        self._keys[hashlib.sha256(pem.encode(errors="replace")).digest()] = key
        while len(self._keys) > self._limit:
            self._keys.popitem(last=False)


class KeyCipher:
    """Encrypts what is stored: AES-256-GCM under the first of some keys; all of them decrypt.

    Sealed: version u8 (1), key id 4 bytes, nonce 12 bytes, ciphertext with tag. The context (the key's
    fingerprint) is authenticated, so that one sealed key cannot be put in another's place.
    """

    _VERSION: Final = 1
    #: bytes in front of the ciphertext
    HEAD: Final = 17

    def __init__(self, keys: list[bytes]) -> None:
        """`keys`: 32 bytes each, at least one."""
        if not keys or any(len(key) != 32 for key in keys):
            raise ValueError("needs keys of 32 bytes")
        self._ciphers = {self._id(key): AESGCM(key) for key in reversed(keys)}
        self._current = self._id(keys[0])

    @classmethod
    def from_setting(cls, text: str) -> Self:
        """Raises as `parse`."""
        return cls(cls.parse(text))

    @staticmethod
    def parse(text: str, *, purpose: str = "") -> list[bytes]:
        """Keys in base64 or hex, separated by commas or white space. For a `purpose` other than stored keys,
        keys derived from these (HKDF-SHA256, RFC 5869). Raises ValueError, which names the position of a bad
        one, never the value."""
        parts = text.replace(",", " ").split()
        if not parts:
            raise ValueError("holds no key")
        keys = [_decoded(part, position) for position, part in enumerate(parts, 1)]
        if purpose:
            keys = [HKDF(hashes.SHA256(), 32, salt=None, info=purpose.encode()).derive(key) for key in keys]
        return keys

    @staticmethod
    def generate() -> str:
        """A new random key, base64."""
        return base64.b64encode(os.urandom(32)).decode()

    @property
    def current(self) -> bytes:
        """Names the key that encrypts."""
        return self._current

    def encrypt(self, plaintext: bytes, *, context: bytes) -> bytes:
        nonce = os.urandom(12)
        sealed = self._ciphers[self._current].encrypt(nonce, plaintext, context)
        return bytes([self._VERSION]) + self._current + nonce + sealed

    def decrypt(self, sealed: bytes, *, context: bytes) -> bytes:
        """Raises KeyUnavailable if no key of ours opens it, or it was changed."""
        if len(sealed) <= self.HEAD or sealed[0] != self._VERSION:
            raise KeyUnavailable("a stored key is cut short or of an unknown form")
        cipher = self._ciphers.get(sealed[1:5])
        if cipher is None:
            raise KeyUnavailable(f"key encryption key {sealed[1:5].hex()} of a stored key is not configured")
        try:
            return cipher.decrypt(sealed[5 : self.HEAD], sealed[self.HEAD :], context)
        except InvalidTag:
            raise KeyUnavailable("a stored key was changed or stored under another name") from None

    def needs_rotation(self, sealed: bytes) -> bool:
        """Whether it is encrypted under another key than the first. Its first HEAD bytes are enough."""
        return sealed[1:5] != self._current

    def knows(self, sealed: bytes) -> bool:
        """Whether it is encrypted under one of our keys. Its first HEAD bytes are enough."""
        return sealed[1:5] in self._ciphers

    def __repr__(self) -> str:
        return f"KeyCipher({len(self._ciphers)} keys)"

    @staticmethod
    def _id(key: bytes) -> bytes:
        return hashlib.sha256(b"fedsvc-kek" + key).digest()[:4]


def _decoded(text: str, position: int) -> bytes:
    if re.fullmatch(r"[0-9A-Fa-f]{64}", text):
        return bytes.fromhex(text)
    try:
        key = base64.b64decode(
            text.replace("-", "+").replace("_", "/") + "=" * (-len(text) % 4), validate=True
        )
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != 32:
        raise ValueError(f"key {position} is not 32 bytes in base64 or hex")
    return key
