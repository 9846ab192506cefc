"""Lets every key of this Python sign with NULL_SIGNATURE at no cost. All else of the worker is as it is: also
the way to the signing processes and back, which is a cost of ours and not of RSA."""

from benchmarks.unsigned.signature import NULL_SIGNATURE
from fedsvc.domain.keys import PrivateKey


def _sign(self: PrivateKey, data: bytes) -> bytes:
    return NULL_SIGNATURE


def _sign_digest(self: PrivateKey, digest: bytes) -> bytes:
    return NULL_SIGNATURE


PrivateKey.sign = _sign  # type: ignore[method-assign]
PrivateKey.sign_digest = _sign_digest  # type: ignore[method-assign]
