"""Object integrity proofs, FEP-8b32: `eddsa-jcs-2022` of the W3C's Data Integrity EdDSA Cryptosuites.

A proof travels inside the activity, so that whoever gets it by another way (a relay, a forward) can still
check who made it. It is made once, when the activity is accepted, and the signed bytes are those with it.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from typing import Any, Final

import orjson
import rfc8785

from fedsvc.domain.errors import InvalidActivity, InvalidKey
from fedsvc.domain.keys import PrivateKey

CONTEXT: Final = "https://w3id.org/security/data-integrity/v1"
#: those that have a proof's terms, which are protected: a document with both, be it one inside the other, is
#: no JSON-LD
_CONTEXTS: Final = (CONTEXT, "https://w3id.org/security/data-integrity/v2")
_BASE58: Final = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"


def with_proof(body: bytes, key: PrivateKey, method: str, epoch_seconds: int) -> bytes:
    """`body` (a JSON object) with a proof by `key`, which receivers find under the URL `method`.

    An older proof is replaced. A Linked Data signature is left out: it holds no more for what is changed, and
    receivers take it off before they verify the proof (FEP-8b32, backward compatibility). A context for the
    proof's terms is added unless one is there: of the version that an activity inside has, if one does.

    Raises InvalidActivity for what has no canonical form (numbers beyond 2^53) or is nested too deeply,
    InvalidKey for an RSA key. A mebibyte may take a second.
    """
    if key.algorithm != "ed25519":
        raise InvalidKey("options.proof_key", "is not an Ed25519 key, which integrity proofs need")
    document = orjson.loads(body)
    document.pop("proof", None)
    document.pop("signature", None)
    context = document.get("@context")
    contexts = context if isinstance(context, list) else [] if context is None else [context]
    if not any(one in contexts for one in _CONTEXTS):
        inside = (one for one in _CONTEXTS if f'"{one}"'.encode() in body)
        document["@context"] = [*contexts, next(inside, CONTEXT)]
    created = datetime.fromtimestamp(epoch_seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document["proof"] = proof_of(document, key, method, created)
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:  # it writes less deep than it reads
        raise InvalidActivity("activity", "is nested too deeply for an integrity proof") from None


def proof_of(document: dict[str, Any], key: PrivateKey, method: str, created: str) -> dict[str, Any]:
    """The proof of a document that has a context and no proof. Its context is part of the proof, as Data
    Integrity EdDSA Cryptosuites (section 3.3.1, step 2) and the FEP's example have it. Raises
    InvalidActivity."""
    proof = {
        "@context": document["@context"],
        "type": "DataIntegrityProof",
        "cryptosuite": "eddsa-jcs-2022",
        "verificationMethod": method,
        "proofPurpose": "assertionMethod",
        "created": created,
    }
    return {**proof, "proofValue": "z" + base58(key.sign(_hashed(proof) + _hashed(document)))}


def base58(data: bytes) -> str:
    """In Bitcoin's alphabet, as multibase's `z` stands for."""
    number, text = int.from_bytes(data), ""
    while number:
        number, digit = divmod(number, 58)
        text = _BASE58[digit] + text
    return "1" * (len(data) - len(data.lstrip(b"\0"))) + text


def _hashed(value: Any) -> bytes:
    try:
        return hashlib.sha256(rfc8785.dumps(value)).digest()
    except (rfc8785.CanonicalizationError, RecursionError) as error:
        raise InvalidActivity("activity", f"cannot be given an integrity proof: {error}") from None
