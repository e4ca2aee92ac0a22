"""Certificate of one connection between two hosts, which both make of the secret that they share.

TLS of Python's standard library proves its ends by certificates (by a shared secret from Python
3.13 on). The key follows from the secret and Ed25519 signs without chance, so that both ends have
one and the same, and whoever proves to have it is who was to be at the other end.
"""

import datetime
import hmac
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.x509.oid import NameOID

_NAME = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "a host of the run")])
_FROM, _UNTIL = datetime.datetime(2000, 1, 1), datetime.datetime(9999, 12, 31)
"""Hosts need not have the same date, and the secret is as old as the connection."""


class Certificate(NamedTuple):
    """A certificate that has signed itself, and its key."""

    der: bytes
    pem: bytes
    """Both."""


def made(secret: bytes) -> Certificate:
    """The one that follows from a secret, which makes no other."""
    key = ed25519.Ed25519PrivateKey.from_private_bytes(hmac.digest(secret, b"key", "sha256"))
    builder = x509.CertificateBuilder(_NAME, _NAME, key.public_key(), 1, _FROM, _UNTIL)
    own = builder.sign(key, None)
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    encoded = own.public_bytes(serialization.Encoding.DER)
    return Certificate(encoded, private + own.public_bytes(serialization.Encoding.PEM))
