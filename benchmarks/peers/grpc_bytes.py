"""Bytes over gRPC, timed by the sender: one process is both ends' parent. Run by transport.py.

python grpc_bytes.py SIZE COUNT ...   prints {size: {"unary": [s, ...], "stream": [s, ...]}}
"""

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent import futures

CHUNK_BYTES = 1 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SERVICE = "wiretune.Benchmark"


def serve(port_out: int) -> None:
    import grpc

    def unary(request: bytes, context: grpc.ServicerContext) -> bytes:
        return len(request).to_bytes(8, "big")

    def stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        # One buffer, as a tensor needs.
        return len(b"".join(requests)).to_bytes(8, "big")

    server = grpc.server(futures.ThreadPoolExecutor(2), options=OPTIONS)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(unary),
        "Stream": grpc.stream_unary_rpc_method_handler(stream),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    os.write(port_out, f"{server.add_insecure_port('127.0.0.1:0')}\n".encode())
    server.start()
    server.wait_for_termination()


def chunks(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield data[start : start + CHUNK_BYTES]


def call(port: int, sizes: list[tuple[int, int]]) -> dict[int, dict[str, list[float]]]:
    import grpc

    found: dict[int, dict[str, list[float]]] = {}
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel:
        unary = channel.unary_unary(f"/{SERVICE}/Unary")
        stream = channel.stream_unary(f"/{SERVICE}/Stream")
        for size, count in sizes:
            data = os.urandom(size)
            rows: dict[str, list[float]] = {"unary": [], "stream": []}
            for _ in range(count + 1):
                for name, times in rows.items():
                    began = time.perf_counter()
                    answer = unary(data) if name == "unary" else stream(chunks(data))
                    times.append(time.perf_counter() - began)
                    assert int.from_bytes(answer, "big") == size
            # The first one finds memory and windows as small as they begin.
            found[size] = {name: times[1:] for name, times in rows.items()}
    return found


def main() -> None:
    numbers = [int(word) for word in sys.argv[1:]]
    sizes = list(zip(numbers[::2], numbers[1::2], strict=True))
    read, write = os.pipe()
    # Both ends import gRPC after the fork, which its threads would not survive.
    server = os.fork()
    if server == 0:
        serve(write)
        os._exit(0)
    try:
        with os.fdopen(read) as told:
            found = call(int(told.readline()), sizes)
        print(json.dumps(found))
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)


if __name__ == "__main__":
    main()
