"""Certificate of one connection between two hosts, which both make of the secret that they share.

TLS of Python's standard library proves its ends by certificates (by a shared secret from Python
3.13 on), and the library makes none. This is the least that it takes, on the curve P-256: the key
follows from the secret, so that both ends have one and the same, and whoever proves to have it is
who was to be at the other end.
"""

import base64
import hashlib
import hmac
from typing import NamedTuple

_FIELD = 2**256 - 2**224 + 2**192 + 2**96 - 1
_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
_BASE = (
    0x6B17D1F2E12C4247F8BCE6E563A440F277037D812DEB33A0F4A13945D898C296,
    0x4FE342E2FE1A7F9B8EE7EB4A7C0F9E162BCE33576B315ECECBB6406837BF51F5,
)
_NUMBER_BYTES = 32
_INTEGER, _BIT_STRING, _OCTET_STRING, _TEXT = 2, 3, 4, 12
_UTC_TIME, _TIME, _SEQUENCE, _SET, _CURVE_OF_KEY, _POINT_OF_KEY = 23, 24, 48, 49, 160, 161
_PUBLIC_KEY = bytes.fromhex("06072a8648ce3d0201")
_P256 = bytes.fromhex("06082a8648ce3d030107")
_ECDSA_SHA256 = bytes.fromhex("06082a8648ce3d040302")
_COMMON_NAME = bytes.fromhex("0603550403")

Point = tuple[int, int]


class Certificate(NamedTuple):
    """A certificate that has signed itself, and its key."""

    der: bytes
    pem: bytes
    """Both."""


def made(secret: bytes) -> Certificate:
    """The one that follows from a secret, which makes no other."""
    key = _number(secret, b"key")
    point = _bits(b"\4" + b"".join(_fixed(each) for each in _times(key)))
    signs = _der(_SEQUENCE, _ECDSA_SHA256)
    name = _der(_SEQUENCE, _COMMON_NAME, _der(_TEXT, b"a host of the run"))
    name = _der(_SEQUENCE, _der(_SET, name))
    # Hosts need not have the same date, and the secret is as old as the connection.
    valid = _der(_SEQUENCE, _der(_UTC_TIME, b"000101000000Z"), _der(_TIME, b"99991231235959Z"))
    public = _der(_SEQUENCE, _der(_SEQUENCE, _PUBLIC_KEY, _P256), point)
    told = _der(_SEQUENCE, _integer(1), signs, name, valid, name, public)
    der = _der(_SEQUENCE, told, signs, _bits(_signature(secret, key, told)))
    private = _der(
        _SEQUENCE,
        _integer(1),
        _der(_OCTET_STRING, _fixed(key)),
        _der(_CURVE_OF_KEY, _P256),
        _der(_POINT_OF_KEY, point),
    )
    return Certificate(der, _pem("EC PRIVATE KEY", private) + _pem("CERTIFICATE", der))


def _signature(secret: bytes, key: int, told: bytes) -> bytes:
    # Chosen once: a secret signs nothing else.
    chance = _number(secret, b"signature")
    digest = int.from_bytes(hashlib.sha256(told).digest(), "big")
    x = _times(chance)[0] % _ORDER
    return _der(
        _SEQUENCE,
        _integer(x),
        _integer(pow(chance, -1, _ORDER) * (digest + x * key) % _ORDER),
    )


def _number(secret: bytes, what: bytes) -> int:
    """One from 1 to below the curve's order, none likelier than another by more than 2^-256."""
    return int.from_bytes(hmac.digest(secret, what, "sha512"), "big") % (_ORDER - 1) + 1


def _times(count: int) -> Point:
    """So many times the curve's base point; ``count`` is below its order, and above 0."""
    found: Point | None = None
    each = _BASE
    while count:
        if count & 1:
            found = each if found is None else _sum(found, each)
        each = _sum(each, each)
        count >>= 1
    assert found is not None
    return found


def _sum(one: Point, other: Point) -> Point:
    """The sum of two points that are not each other's opposites."""
    if one == other:
        slope = (3 * one[0] ** 2 - 3) * pow(2 * one[1], -1, _FIELD)
    else:
        slope = (other[1] - one[1]) * pow(other[0] - one[0], -1, _FIELD)
    x = (slope**2 - one[0] - other[0]) % _FIELD
    return x, (slope * (one[0] - x) - one[1]) % _FIELD


def _fixed(number: int) -> bytes:
    return number.to_bytes(_NUMBER_BYTES, "big")


def _der(tag: int, *parts: bytes) -> bytes:
    body = b"".join(parts)
    length = len(body)
    if length < 128:
        return bytes([tag, length]) + body
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 128 + size]) + length.to_bytes(size, "big") + body


def _integer(number: int) -> bytes:
    return _der(_INTEGER, number.to_bytes(number.bit_length() // 8 + 1, "big"))


def _bits(data: bytes) -> bytes:
    return _der(_BIT_STRING, b"\0", data)


def _pem(what: str, der: bytes) -> bytes:
    text = base64.encodebytes(der).decode()
    return f"-----BEGIN {what}-----\n{text}-----END {what}-----\n".encode()
