"""Bursts cut into segments: every header against an independent reading of it."""

import struct
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testbed.links.userspace.bursts import GSO_TYPE, VNET_BYTES, Burst, with_flipped_bit

VNET = struct.Struct("=BBHHHH")
FIN, PSH, ACK, CWR = 0x01, 0x08, 0x10, 0x80
SOURCE, TARGET = bytes([10, 1, 0, 7]), bytes([10, 0, 0, 1])
TIMESTAMPS = bytes([1, 1, 8, 10]) + bytes(range(8))


def ones_sum(data: bytes) -> int:
    """RFC 1071, word by word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo_sum(tcp_bytes: int) -> int:
    return ones_sum(SOURCE + TARGET + struct.pack("!HH", 6, tcp_bytes))


def burst(
    payload: bytes,
    segment_bytes: int,
    flags: int = ACK,
    sequence: int = 1000,
    identification: int = 5,
    ip_options: bytes = b"",
) -> bytes:
    """What a kernel hands over: a checksum of TCP that covers the pseudo-header alone."""
    ihl, offset = 5 + len(ip_options) // 4, 5 + len(TIMESTAMPS) // 4
    tcp_bytes = 4 * offset + len(payload)
    tcp = struct.pack(
        "!HHIIBBHHH", 4000, 5555, sequence, 77, offset << 4, flags, 512, pseudo_sum(tcp_bytes), 0
    )
    ip = struct.pack(
        "!BBHHHBBH4s4s",
        *(0x40 | ihl, 3, 4 * ihl + tcp_bytes, identification, 0x4000, 64, 6, 0),
        *(SOURCE, TARGET),
    )
    ip = bytearray(ip + ip_options)
    ip[10:12] = struct.pack("!H", 0xFFFF ^ ones_sum(ip))
    vnet = VNET.pack(1, 1, 4 * (ihl + offset), segment_bytes, 4 * ihl, 16)
    return vnet + ip + tcp + TIMESTAMPS + payload


def read(packet: bytes) -> dict[str, object]:
    """A packet's fields; its checksums hold, once the kernel has completed that of TCP."""
    flags, kind, headers_bytes, segment_bytes, start, offset = VNET.unpack_from(packet)
    ip = packet[VNET_BYTES:]
    ip_bytes = 4 * (ip[0] & 15)
    total, identification = struct.unpack_from("!HH", ip, 2)
    assert total == len(ip)
    assert ones_sum(ip[:ip_bytes]) == 0xFFFF
    tcp = ip[ip_bytes:]
    tcp_bytes = 4 * (tcp[12] >> 4)
    assert (flags, headers_bytes, start, offset) == (1, ip_bytes + tcp_bytes, ip_bytes, 16)
    (checksum,) = struct.unpack_from("!H", tcp, 16)
    assert checksum % 0xFFFF == pseudo_sum(len(tcp)) % 0xFFFF
    same = ip[:2] + ip[6:10] + ip[12:ip_bytes] + tcp[:4] + tcp[8:13] + tcp[14:16]
    return {
        "kind": kind,
        "segment_bytes": segment_bytes,
        "identification": identification,
        "sequence": struct.unpack_from("!I", tcp, 4)[0],
        "flags": tcp[13],
        "same": same + tcp[18:tcp_bytes],
        "payload": tcp[tcp_bytes:],
    }


def test_frames_and_their_bytes_count_headers_of_their_own():
    found = Burst(burst(bytes(3000), 1448))
    assert (found.frames, found.frame_bytes, found.last_frame_bytes) == (3, 1514, 66 + 104)
    assert found.destination == TARGET
    found = Burst(burst(bytes(2 * 1448), 1448))
    assert (found.frames, found.frame_bytes, found.last_frame_bytes) == (2, 1514, 1514)
    found = Burst(burst(bytes(300), 100, ip_options=bytes(8)))
    assert (found.frames, found.frame_bytes) == (3, 14 + 28 + 32 + 100)


def test_a_whole_burst_goes_as_it_came():
    data = burst(bytes(3000), 1448)
    assert data[GSO_TYPE]
    assert Burst(data).buffers(0, 3) == [data]


@settings(derandomize=True, deadline=None, max_examples=200)
@given(
    st.integers(2, 6000),
    st.integers(1, 1448),
    st.sampled_from([b"", bytes(range(4)), bytes(range(40))]),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFF),
    st.data(),
)
def test_any_cut_gives_the_packets_of_the_burst(
    size, segment_bytes, options, sequence, identification, data
):
    payload = Random(size).randbytes(size)
    whole = burst(payload, segment_bytes, ACK | PSH | FIN | CWR, sequence, identification, options)
    cut = Burst(whole)
    if cut.frames < 2:
        return
    first = data.draw(st.integers(0, cut.frames - 1))
    count = data.draw(st.integers(1, min(20, cut.frames - first)))
    found = read(b"".join(cut.buffers(first, count)))
    start, end = first * segment_bytes, min(size, (first + count) * segment_bytes)
    assert found["payload"] == payload[start:end]
    assert found["sequence"] == (sequence + start) & 0xFFFFFFFF
    assert found["identification"] == (identification + first) & 0xFFFF
    assert found["same"] == read(whole)["same"]
    burst_of_burst = (1, segment_bytes) if count > 1 else (0, 0)
    assert (found["kind"], found["segment_bytes"]) == burst_of_burst
    ends = (FIN | PSH) if first + count == cut.frames else 0
    assert found["flags"] == ACK | ends | (0 if first else CWR)
    if count == 1:
        assert cut.single(first) == b"".join(cut.buffers(first, 1))


def flipped(before: bytes, after: bytes) -> list[int]:
    """Numbers of the bits that differ."""
    differ = int.from_bytes(before, "big") ^ int.from_bytes(after, "big")
    return [bit for bit in range(8 * len(before)) if differ >> bit & 1]


@pytest.mark.parametrize("size", [7, 8, 1448])
def test_a_corrupt_packet_differs_in_one_bit_from_one_that_is_whole(size):
    payload = Random(3).randbytes(2 * size)
    single = Burst(burst(payload, size)).single(1)
    random, places = Random(1), set()
    tcp_at = VNET_BYTES + 20
    summed = pseudo_sum(len(single) - tcp_at)
    for _ in range(500):
        packet = with_flipped_bit(single, random)
        assert len(packet) == len(single)
        assert packet[0] == 0, "nobody completes the checksum"
        complete = bytearray(single)
        complete[tcp_at + 16 : tcp_at + 18] = bytes(2)
        checksum = 0xFFFF ^ ones_sum(struct.pack("!H", summed) + complete[tcp_at:])
        complete[tcp_at + 16 : tcp_at + 18] = struct.pack("!H", checksum)
        (bit,) = flipped(complete[VNET_BYTES:], packet[VNET_BYTES:])
        places.add(bit)
    assert len(places) > min(200, 4 * (len(single) - VNET_BYTES))


def test_a_checksum_that_is_complete_is_left_alone():
    single = bytearray(Burst(burst(bytes(200), 100)).single(0))
    single[0] = 0
    packet = with_flipped_bit(bytes(single), Random(1))
    assert len(flipped(bytes(single), packet)) == 1
