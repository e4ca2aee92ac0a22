"""pcap files byte by byte, and bursts that become the packets that a wire has."""

import struct
from pathlib import Path

import captured
import pytest

from testbed.metering.pcap import Writer, packets

CLIENT, SERVER = bytes((10, 1, 0, 1)), bytes((10, 0, 0, 1))
PSH, FIN, ACK = 0x08, 0x01, 0x10
TCP4 = 1


def vnet(kind: int = 0, segment_bytes: int = 0, partial: bool = True) -> bytes:
    """A virtio-net header of a TCP packet."""
    return struct.pack("=BBHHHH", int(partial), kind, 40, segment_bytes, 20 if partial else 0, 16)


def tcp(payload: bytes, flags: int = ACK, sequence: int = 1000) -> bytes:
    """An IP packet whose TCP checksum is the pseudo-header's, as the kernel leaves it."""
    length = 20 + len(payload)
    pseudo = captured._sum(CLIENT + SERVER + struct.pack("!HH", 6, length))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + length, 7, 0x4000, 64, 6, 0) + CLIENT + SERVER
    ip = ip[:10] + struct.pack("!H", 0xFFFF - captured._sum(ip)) + ip[12:]
    return ip + struct.pack("!HHIIBBHHH", 4, 5, sequence, 9, 0x50, flags, 64, pseudo, 0) + payload


def test_a_file_is_as_the_format_says(tmp_path: Path) -> None:
    writer = Writer((tmp_path / "x.pcap").open("wb"))
    writer.write(1_700_000_000_123_456_789, b"E" + bytes(27))
    writer.write(1_700_000_001_000_000_001, b"F" + bytes(39))
    assert writer.packets == 2
    writer.close()
    assert (tmp_path / "x.pcap").read_bytes() == (
        struct.pack("=IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 65535, 101)
        + struct.pack("=IIII", 1_700_000_000, 123_456_789, 28, 28)
        + (b"E" + bytes(27))
        + struct.pack("=IIII", 1_700_000_001, 1, 40, 40)
        + (b"F" + bytes(39))
    )


def test_what_is_flushed_can_be_read_while_the_capture_goes_on(tmp_path: Path) -> None:
    writer = Writer((tmp_path / "x.pcap").open("wb"))
    for number in range(3):
        writer.write(number, next(packets(vnet() + tcp(b"data"))))
        writer.flush()
        assert len(captured.read(tmp_path / "x.pcap")) == number + 1
    writer.close()


@pytest.mark.parametrize("payload", [b"", b"even", b"odd", bytes(1460), b"\xff" * 1459])
def test_a_checksum_that_was_left_to_a_device_is_made(payload: bytes) -> None:
    (found,) = packets(vnet() + tcp(payload))
    assert captured.checksums_hold(captured.Packet(0, found))
    assert found[:36] == tcp(payload)[:36] and found[38:] == tcp(payload)[38:]


def test_a_checksum_that_is_there_is_left_alone() -> None:
    wrong = tcp(b"what a link has corrupted")
    assert list(packets(vnet(partial=False) + wrong)) == [wrong]


@pytest.mark.parametrize("last", [1, 999, 1000])
def test_a_burst_is_cut_into_its_segments(last: int) -> None:
    payload = bytes(range(256)) * 8
    payload = (payload * 2)[: 2000 + last]
    found = list(packets(vnet(TCP4, 1000) + tcp(payload, ACK | PSH | FIN)))
    cut = [captured.Packet(0, packet) for packet in found]
    assert [len(packet.payload) for packet in cut] == [1000, 1000, last]
    assert b"".join(packet.payload for packet in cut) == payload
    assert [packet.sequence for packet in cut] == [1000, 2000, 3000]
    assert [packet.flags for packet in cut] == [ACK, ACK, ACK | PSH | FIN]
    assert all(captured.checksums_hold(packet) for packet in cut)
    # Identifications of IP go on by one.
    assert [int.from_bytes(packet.data[4:6], "big") for packet in cut] == [7, 8, 9]


def test_the_reader_itself_tells_what_was_sent_again() -> None:
    def packet(sequence: int, payload: bytes) -> captured.Packet:
        return captured.Packet(0, tcp(payload, sequence=sequence))

    wrap = (1 << 32) - 50
    sent = [packet(wrap, bytes(100)), packet(50, bytes(100)), packet(150, bytes(10))]
    assert captured.sent_again(sent, "10.1.0.1") == (0, 0)
    assert captured.sent_again([*sent, sent[0], sent[2]], "10.1.0.1") == (2, 110)
    assert captured.sent_again([*sent, packet(160, b"")], "10.1.0.1") == (0, 0)
