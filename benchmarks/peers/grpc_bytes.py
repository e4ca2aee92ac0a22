"""Bytes and tensors over gRPC, timed by the sender: one process is both ends' parent.

python grpc_bytes.py SIZE COUNT ...   prints {size: {"unary": [s, ...], "stream": ..., ...}}

`unary` and `stream` (of 1 MiB) move bytes that are there already. `arrays` moves a float32 array as
federated learning over gRPC does: numpy.save's bytes in a protobuf message, and an array out of it.
Run by transport.py in an environment that has grpcio, protobuf and numpy.
"""

import io
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from concurrent import futures

import numpy as np

CHUNK_BYTES = 1 << 20
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
SERVICE = "wiretune.Benchmark"


def packed(array: np.ndarray) -> bytes:
    from google.protobuf.wrappers_pb2 import BytesValue

    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return BytesValue(value=file.getvalue()).SerializeToString()


def unpacked(message: bytes) -> np.ndarray:
    from google.protobuf.wrappers_pb2 import BytesValue

    return np.load(io.BytesIO(BytesValue.FromString(message).value), allow_pickle=False)


def serve(port_out: int) -> None:
    import grpc

    def length(request: bytes | np.ndarray, context: grpc.ServicerContext) -> bytes:
        size = request.nbytes if isinstance(request, np.ndarray) else len(request)
        return size.to_bytes(8, "big")

    def stream(requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        # One buffer, as a tensor needs.
        return len(b"".join(requests)).to_bytes(8, "big")

    server = grpc.server(futures.ThreadPoolExecutor(2), options=OPTIONS)
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(length),
        "Stream": grpc.stream_unary_rpc_method_handler(stream),
        "Arrays": grpc.unary_unary_rpc_method_handler(length, request_deserializer=unpacked),
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
        arrays = channel.unary_unary(f"/{SERVICE}/Arrays", request_serializer=packed)
        for size, count in sizes:
            data, array = os.urandom(size), np.ones(size // 4, np.float32)
            exchanges = {
                "unary": lambda data=data: unary(data),
                "stream": lambda data=data: stream(chunks(data)),
                "arrays": lambda array=array: arrays(array),
            }
            rows: dict[str, list[float]] = {name: [] for name in exchanges}
            for _ in range(count + 1):
                for name, exchange in exchanges.items():
                    began = time.perf_counter()
                    answer = exchange()
                    rows[name].append(time.perf_counter() - began)
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
