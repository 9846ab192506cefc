"""Object integrity proofs: FEP-8b32's own example, and what apsig says of ours."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from apsig.proof import ProofVerifier
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from fedsvc.domain.integrity import CONTEXT, base58, proof_of, with_proof
from fedsvc.domain.keys import PrivateKey, load_private_key
from fedsvc.errors import InvalidActivity, InvalidKey

METHOD = "https://server.example/users/alice#ed25519-key"
ALPHABET = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"
#: has the terms of keys and of older signatures, none of a proof's
SECURITY = "https://w3id.org/security/v1"
CONTEXT_2 = "https://w3id.org/security/data-integrity/v2"
# FEP-8b32, fep-8b32.feature: with the context in the proof, which the FEP's first version left out
FEP_SECRET = "3u2en7t5LR2WtQH5PfFqMqwVHBeXouLzo6haApm8XHqvjxq"
FEP_CONTEXT = ["https://www.w3.org/ns/activitystreams", "https://w3id.org/security/data-integrity/v1"]
FEP_DOCUMENT = {
    "@context": FEP_CONTEXT,
    "id": "https://server.example/activities/1",
    "type": "Create",
    "actor": "https://server.example/users/alice",
    "object": {
        "id": "https://server.example/objects/1",
        "type": "Note",
        "attributedTo": "https://server.example/users/alice",
        "content": "Hello world",
        "location": {"type": "Place", "longitude": -71.184902, "latitude": 25.273962},
    },
}
FEP_PROOF = {
    "@context": FEP_CONTEXT,
    "type": "DataIntegrityProof",
    "cryptosuite": "eddsa-jcs-2022",
    "verificationMethod": METHOD,
    "proofPurpose": "assertionMethod",
    "created": "2023-02-24T23:36:38Z",
    "proofValue": "zLaewdp4H9kqtwyrLatK4cjY5oRHwVcw4gibPSUDYDMhi4M49v8pcYk3ZB6D69dNpAPbUmY8ocuJ3m9KhKJEEg7z",
}
FEP_TIME = 1_677_281_798


def from_base58(text: str) -> bytes:
    number = 0
    for character in text:
        number = number * 58 + ALPHABET.index(character)
    zeros = len(text) - len(text.lstrip("1"))
    return b"\0" * zeros + number.to_bytes((number.bit_length() + 7) // 8)


def fep_key() -> PrivateKey:
    raw = from_base58(FEP_SECRET)
    assert raw[:2] == b"\x80\x26"  # multicodec of an Ed25519 private key
    key = ed25519.Ed25519PrivateKey.from_private_bytes(raw[2:])
    return load_private_key(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))


def test_the_feps_example_is_made_byte_for_byte() -> None:
    assert proof_of(FEP_DOCUMENT, fep_key(), METHOD, "2023-02-24T23:36:38Z") == FEP_PROOF
    body = with_proof(orjson.dumps(FEP_DOCUMENT), fep_key(), METHOD, FEP_TIME)
    assert orjson.loads(body) == {**FEP_DOCUMENT, "proof": FEP_PROOF}


@pytest.mark.parametrize(
    ("context", "expected"),
    [
        (None, [CONTEXT]),
        ("https://www.w3.org/ns/activitystreams", ["https://www.w3.org/ns/activitystreams", CONTEXT]),
        (["a", {"toot": "b"}], ["a", {"toot": "b"}, CONTEXT]),
        (["a", CONTEXT], ["a", CONTEXT]),
        (CONTEXT, CONTEXT),
        (["a", SECURITY], ["a", SECURITY, CONTEXT]),
        (["a", CONTEXT_2], ["a", CONTEXT_2]),
    ],
)
def test_the_proofs_terms_have_a_context(context: Any, expected: Any) -> None:
    document = {"id": "https://a.example/1", "proof": {"old": True}}
    if context is not None:
        document["@context"] = context
    made = orjson.loads(with_proof(orjson.dumps(document), fep_key(), METHOD, FEP_TIME))
    assert made["@context"] == expected
    assert (
        made["proof"]["proofValue"]
        == proof_of(
            {k: v for k, v in made.items() if k != "proof"}, fep_key(), METHOD, "2023-02-24T23:36:38Z"
        )["proofValue"]
    )


@pytest.mark.parametrize("context", [CONTEXT, CONTEXT_2])
def test_around_an_activity_with_a_proof_its_version_is_taken(context: str) -> None:
    """JSON-LD does not let one redefine what the other has defined."""
    document = {"@context": "a", "type": "Announce", "object": {"@context": ["a", context], "proof": {}}}
    made = orjson.loads(with_proof(orjson.dumps(document), fep_key(), METHOD, FEP_TIME))
    assert made["@context"] == ["a", context]


def test_an_independent_implementation_verifies_it() -> None:
    body = with_proof(orjson.dumps({**FEP_DOCUMENT, "id": "https://é.example/"}), fep_key(), METHOD, FEP_TIME)
    public = serialization.load_pem_public_key(fep_key().public_pem.encode())
    assert isinstance(public, ed25519.Ed25519PublicKey)
    assert ProofVerifier(public).verify_proof(orjson.loads(body), raise_on_fail=True)
    changed = body.replace(b"Hello", b"Hallo")
    assert not ProofVerifier(public).verify_proof(orjson.loads(changed))


def test_a_linked_data_signature_of_before_is_left_out() -> None:
    signature = {"type": "RsaSignature2017", "signatureValue": "AQI="}
    body = with_proof(orjson.dumps({**FEP_DOCUMENT, "signature": signature}), fep_key(), METHOD, FEP_TIME)
    assert orjson.loads(body) == {**FEP_DOCUMENT, "proof": FEP_PROOF}


def test_only_ed25519_keys_make_proofs(rsa_pem: str) -> None:
    with pytest.raises(InvalidKey, match="not an Ed25519 key"):
        with_proof(b"{}", load_private_key(rsa_pem), METHOD, FEP_TIME)


@pytest.mark.parametrize("depth", [260, 900, 1020])
@pytest.mark.parametrize(("opening", "closing"), [("[", "]"), ('{"a":', "}")], ids=["lists", "objects"])
def test_what_is_nested_too_deeply_gets_no_proof(depth: int, opening: str, closing: str) -> None:
    body = f'{{"x":{opening * depth}1{closing * depth}}}'.encode()
    assert orjson.loads(body)
    with pytest.raises(InvalidActivity, match="integrity proof"):
        with_proof(body, fep_key(), METHOD, FEP_TIME)


def test_what_has_no_canonical_form_gets_no_proof() -> None:
    with pytest.raises(InvalidActivity, match="integrity proof"):
        with_proof(b'{"n": 18446744073709551615}', fep_key(), METHOD, FEP_TIME)


@given(st.binary(max_size=80))
def test_base58_is_reversible(data: bytes) -> None:
    assert from_base58(base58(data)) == data
