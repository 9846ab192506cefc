from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsvc.domain.errors import InvalidKey, KeyUnavailable
from fedsvc.domain.keys import (
    KeyCipher,
    PrivateKeyCache,
    belongs,
    from_storable,
    load_private_key,
    to_storable,
)

Private = rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey | ec.EllipticCurvePrivateKey | dsa.DSAPrivateKey
PKCS1 = PrivateFormat.TraditionalOpenSSL
PKCS8 = PrivateFormat.PKCS8
LARGEST_PRIME_OF_256_BITS = 2**256 - 189
THE_ONE_BEFORE = 2**256 - 357


def pem(key: Private, form: PrivateFormat = PKCS8) -> str:
    return key.private_bytes(Encoding.PEM, form, NoEncryption()).decode()


def pem_of(p: int, q: int) -> str:
    """PEM of an RSA key made of any two numbers, prime or not: at once, of any size."""
    d = pow(65537, -1, (p - 1) * (q - 1))
    public = rsa.RSAPublicNumbers(65537, p * q)
    numbers = rsa.RSAPrivateNumbers(p, q, d, d % (p - 1), d % (q - 1), pow(q, -1, p), public)
    return pem(numbers.private_key(unsafe_skip_rsa_key_validation=True))


def encrypted(key: Private, form: PrivateFormat) -> str:
    return key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"x")).decode()


def public_pem(key: rsa.RSAPrivateKey, form: PublicFormat) -> str:
    return key.public_key().public_bytes(Encoding.PEM, form).decode()


def test_a_key_that_openssl_itself_stumbles_over_is_no_valid_key() -> None:
    x448_of_32_bytes = base64.b64encode(
        bytes.fromhex("302e020100300506032b656f04220420") + b"x" * 32
    ).decode()
    with pytest.raises(InvalidKey, match="is not a valid private key"):
        load_private_key(f"-----BEGIN PRIVATE KEY-----\n{x448_of_32_bytes}\n-----END PRIVATE KEY-----\n")


@pytest.fixture(scope="module")
def rsa_key(rsa_pem: str) -> rsa.RSAPrivateKey:
    key = load_pem_private_key(rsa_pem.encode(), None)
    assert isinstance(key, rsa.RSAPrivateKey)
    return key


@pytest.fixture(scope="module")
def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


def armour(label: str, inside: str = "AAAA") -> str:
    return f"-----BEGIN {label}-----\n{inside}\n-----END {label}-----\n"


NOT_ACCEPTED = "bits; 2048 to 4096 are accepted"
#: what is given, made from a good key; and what is said of it
REFUSED: dict[str, tuple[Callable[[rsa.RSAPrivateKey], str], str]] = {
    "nothing": (lambda _: "", "is required"),
    "white space": (lambda _: " \n", "is required"),
    "garbage": (lambda _: "nonsense", "is not a private key in PEM"),
    "garbage in armour": (lambda _: armour("PRIVATE KEY"), "is not a valid private key"),
    "garbage in PKCS#1 armour": (lambda _: armour("RSA PRIVATE KEY"), "is not a valid private key"),
    "a key cut short": (lambda key: pem(key)[:800], "is not a valid private key"),
    "a key with another modulus": (
        lambda key: pem_of(key.private_numbers().p, key.private_numbers().q + 2**600),
        "is not a valid private key",
    ),
    "a key of numbers that are not prime": (
        lambda _: pem_of(2**1024 - 1, 2**1024 - 3),
        "is not a valid private key",
    ),
    "a public key": (
        lambda key: public_pem(key, PublicFormat.SubjectPublicKeyInfo),
        "is a public key",
    ),
    "a PKCS#1 public key": (lambda key: public_pem(key, PublicFormat.PKCS1), "is a public key"),
    "a certificate": (lambda _: armour("CERTIFICATE"), "is a certificate"),
    "a key that is encrypted, PKCS#8": (lambda key: encrypted(key, PKCS8), "is encrypted"),
    "a key that is encrypted, PKCS#1": (lambda key: encrypted(key, PKCS1), "is encrypted"),
    "RSA of 512 bits": (
        lambda _: pem_of(LARGEST_PRIME_OF_256_BITS, THE_ONE_BEFORE),
        f"has 512 {NOT_ACCEPTED}",
    ),
    "RSA of 1024 bits": (lambda _: pem(rsa.generate_private_key(65537, 1024)), f"has 1024 {NOT_ACCEPTED}"),
    # Not even prime: were it checked before its size is looked at, that would take seconds.
    "RSA of 8192 bits": (lambda _: pem_of(2**4096 - 1, 2**4096 - 3), f"has 8192 {NOT_ACCEPTED}"),
    "EC": (lambda _: pem(ec.generate_private_key(ec.SECP256R1())), "is neither an RSA nor an Ed25519 key"),
    "EC in SEC1": (
        lambda _: pem(ec.generate_private_key(ec.SECP256R1()), PKCS1),
        "is neither an RSA nor an Ed25519 key",
    ),
    "Ed448": (
        lambda _: (
            ed448.Ed448PrivateKey.generate().private_bytes(Encoding.PEM, PKCS8, NoEncryption()).decode()
        ),
        "is neither an RSA nor an Ed25519 key",
    ),
    "a key in OpenSSH's form": (
        lambda key: pem(key, PrivateFormat.OpenSSH),
        "is not a private key in PEM (PKCS#1 or PKCS#8)",
    ),
    "too much": (lambda _: armour("PRIVATE KEY", "A" * 20_000), "bytes; 16384 are allowed"),
}


@pytest.mark.parametrize("form", [PKCS8, PKCS1])
def test_rsa_keys_are_taken_in_both_forms_and_sign(rsa_key: rsa.RSAPrivateKey, form: PrivateFormat) -> None:
    key = load_private_key(pem(rsa_key, form))
    assert (key.algorithm, key.bits) == ("rsa", 2048)
    rsa_key.public_key().verify(key.sign(b"data"), b"data", padding.PKCS1v15(), hashes.SHA256())


def test_ed25519_keys_are_taken_and_sign(ed25519_key: ed25519.Ed25519PrivateKey) -> None:
    key = load_private_key(pem(ed25519_key).encode())
    assert (key.algorithm, key.bits) == ("ed25519", 256)
    ed25519_key.public_key().verify(key.sign(b"data"), b"data")


def test_line_ends_and_text_around_a_key_do_not_matter(rsa_pem: str) -> None:
    fingerprint = load_private_key(rsa_pem).fingerprint
    assert load_private_key(rsa_pem.replace("\n", "\r\n")).fingerprint == fingerprint
    assert load_private_key(f"\nkey of ada\n{rsa_pem}\n\n").fingerprint == fingerprint


def test_a_key_is_named_by_the_hash_of_its_public_half_however_it_is_written(
    rsa_key: rsa.RSAPrivateKey,
) -> None:
    public = rsa_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fingerprint = hashlib.sha256(public).hexdigest()[:32]
    assert load_private_key(pem(rsa_key, PKCS8)).fingerprint == fingerprint
    assert load_private_key(pem(rsa_key, PKCS1)).fingerprint == fingerprint


def test_the_public_key_is_the_one_that_belongs_to_it(rsa_key: rsa.RSAPrivateKey) -> None:
    public = load_pem_public_key(load_private_key(pem(rsa_key)).public_pem.encode())
    assert public == rsa_key.public_key()


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_sign_is_refused_and_never_quoted(name: str, rsa_key: rsa.RSAPrivateKey) -> None:
    make, problem = REFUSED[name]
    text = make(rsa_key)
    with pytest.raises(InvalidKey) as refused:
        load_private_key(text)
    assert refused.value.field == "signing_key.private_key_pem"
    assert problem in refused.value.problem
    # No cause either: a logger that prints chains of errors finds nothing.
    assert refused.value.__cause__ is None
    assert refused.value.__context__ is None
    assert not any(line in str(refused.value) for line in text.splitlines() if len(line) > 20)


@settings(max_examples=40, deadline=None)  # each may cost the checks of a key
@given(st.data())
def test_a_key_with_a_changed_byte_is_refused_or_another_way_to_write_it(
    rsa_pem: str, data: st.DataObject
) -> None:
    der = bytearray(base64.b64decode("".join(rsa_pem.splitlines()[1:-1])))
    der[data.draw(st.integers(0, len(der) - 1))] ^= data.draw(st.integers(1, 255))
    text = armour("PRIVATE KEY", base64.encodebytes(bytes(der)).decode().strip())
    try:
        key = load_private_key(text)
    except InvalidKey:
        return
    assert key.fingerprint == load_private_key(rsa_pem).fingerprint


@given(st.binary(max_size=300) | st.text(max_size=300))
def test_nothing_but_a_refusal_ever_comes_of_nonsense(content: bytes | str) -> None:
    with pytest.raises(InvalidKey):
        load_private_key(content)


def test_a_stored_key_signs_as_before(
    rsa_key: rsa.RSAPrivateKey, ed25519_key: ed25519.Ed25519PrivateKey
) -> None:
    for original in (rsa_key, ed25519_key):
        key = load_private_key(pem(original))
        again = from_storable(to_storable(key))
        assert (again.algorithm, again.bits) == (key.algorithm, key.bits)
        assert again.fingerprint == key.fingerprint
        assert again.sign(b"data") == key.sign(b"data")  # neither scheme is randomised


def test_what_was_not_stored_by_us_is_no_key() -> None:
    curve = ec.generate_private_key(ec.SECP256R1()).private_bytes(Encoding.DER, PKCS8, NoEncryption())
    for der in (b"", b"nonsense", curve):
        with pytest.raises(KeyUnavailable) as refused:
            from_storable(der)
        assert refused.value.__context__ is None


def test_no_repr_shows_what_is_secret(rsa_pem: str) -> None:
    secret = KeyCipher.generate()
    shown = repr(KeyCipher.from_setting(secret))
    assert secret not in shown
    assert base64.b64decode(secret).hex() not in shown
    key = load_private_key(rsa_pem)
    assert repr(key) == f"PrivateKey(algorithm='rsa', bits=2048, fingerprint='{key.fingerprint}')"


def test_a_cipher_opens_what_it_has_sealed() -> None:
    cipher = KeyCipher.from_setting(KeyCipher.generate())
    sealed = cipher.encrypt(b"secret", context=b"a")
    assert b"secret" not in sealed
    assert cipher.decrypt(sealed, context=b"a") == b"secret"
    assert sealed != cipher.encrypt(b"secret", context=b"a")


def test_a_cipher_refuses_what_was_changed_moved_or_sealed_by_others() -> None:
    cipher = KeyCipher.from_setting(KeyCipher.generate())
    sealed = cipher.encrypt(b"secret", context=b"a")
    changed = sealed[:-1] + bytes([sealed[-1] ^ 1])
    for bad, context in (
        (sealed, b"b"),
        (changed, b"a"),
        (sealed[:10], b"a"),
        (b"", b"a"),
        (b"\x02" + sealed[1:], b"a"),
    ):
        with pytest.raises(KeyUnavailable):
            cipher.decrypt(bad, context=context)
    with pytest.raises(KeyUnavailable, match="is not configured"):
        KeyCipher.from_setting(KeyCipher.generate()).decrypt(sealed, context=b"a")


def test_an_old_key_encryption_key_still_opens_and_the_new_one_seals() -> None:
    old, new = KeyCipher.generate(), KeyCipher.generate()
    sealed = KeyCipher.from_setting(old).encrypt(b"secret", context=b"a")
    both = KeyCipher.from_setting(f"{new}, {old}\n")
    assert both.decrypt(sealed, context=b"a") == b"secret"
    assert both.needs_rotation(sealed)
    assert not both.needs_rotation(both.encrypt(b"secret", context=b"a"))


def test_key_encryption_keys_are_read_in_every_spelling() -> None:
    raw = bytes(range(200, 232))
    spellings = [
        raw.hex(),
        base64.b64encode(raw).decode(),
        base64.urlsafe_b64encode(raw).decode().rstrip("="),
    ]
    sealed = KeyCipher([raw]).encrypt(b"secret", context=b"a")
    for spelling in spellings:
        assert KeyCipher.from_setting(spelling).decrypt(sealed, context=b"a") == b"secret"


GOOD = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "holds no key"),
        (" ,\n", "holds no key"),
        ("tooshort", "key 1 is not 32 bytes"),
        ("AAAA" * 20, "key 1 is not 32 bytes"),
        ("§" * 44, "key 1 is not 32 bytes"),
        (f"{GOOD},{GOOD} nonsense+", "key 3 is not 32 bytes"),
        ("0" * 63, "key 1 is not 32 bytes"),
    ],
)
def test_a_bad_key_encryption_key_is_told_by_its_position_and_never_by_its_value(
    text: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem) as refused:
        KeyCipher.from_setting(text)
    assert refused.value.__context__ is None
    assert not any(part in str(refused.value) for part in text.replace(",", " ").split())


@given(st.binary(max_size=100), st.binary(max_size=40))
def test_whatever_is_sealed_is_opened_in_its_own_context_only(plaintext: bytes, context: bytes) -> None:
    cipher = KeyCipher([bytes(32)])
    sealed = cipher.encrypt(plaintext, context=context)
    assert cipher.decrypt(sealed, context=context) == plaintext
    with pytest.raises(KeyUnavailable):
        cipher.decrypt(sealed, context=context + b"x")


@given(st.binary(max_size=80))
def test_what_we_never_sealed_is_unavailable(blob: bytes) -> None:
    with pytest.raises(KeyUnavailable):
        KeyCipher([bytes(32)]).decrypt(blob, context=b"")


def test_the_cache_forgets_the_least_used_and_keeps_no_pem(
    rsa_pem: str, ed25519_key: ed25519.Ed25519PrivateKey
) -> None:
    cache = PrivateKeyCache(2)
    first, second = load_private_key(rsa_pem), load_private_key(pem(ed25519_key))
    cache.add(rsa_pem, first)
    cache.add(pem(ed25519_key), second)
    assert cache.peek(rsa_pem) is first  # and so it is the one used last
    third = pem(ed25519.Ed25519PrivateKey.generate())
    cache.add(third, load_private_key(third))
    assert cache.peek(rsa_pem) is first
    assert cache.peek(pem(ed25519_key)) is None
    assert rsa_pem.splitlines()[1] not in repr(vars(cache))
    with pytest.raises(ValueError, match="at least 1"):
        PrivateKeyCache(0)


ACTOR = "https://me.example/u/Ada"


@pytest.mark.parametrize(
    ("key_id", "own"),
    [
        (f"{ACTOR}#main-key", True),
        (f"{ACTOR}/main-key", True),
        (f"{ACTOR}/#main-key", True),
        (f"{ACTOR}?get=key", True),
        (ACTOR, True),
        (f"{ACTOR.lower()}#main-key", True),
        (f"{ACTOR}line#main-key", False),
        ("https://me.example/u/bob#main-key", False),
        ("https://me.example/actor#main-key", False),
        ("https://other.example/u/Ada#main-key", False),
    ],
)
def test_a_key_is_an_actors_if_its_id_is_below_the_actors(key_id: str, own: bool) -> None:
    assert belongs(key_id, ACTOR) is own
    assert belongs(key_id, ACTOR + "/") is own
