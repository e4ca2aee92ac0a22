#!/usr/bin/env python3
"""A remote shell for nodes that trust one another, as mpiexec has one to start ranks elsewhere.

examples/rsh.py --serve            runs what it is told, for whoever calls
examples/rsh.py HOST COMMAND...    has the command run there, and prints what it prints
"""

import contextlib
import socket
import socketserver
import subprocess
import sys
import time

PORT = 5140
LIMIT_S = 60.0
POLL_S = 0.1


class Shell(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        line = self.rfile.readline().decode()
        nothing, there = subprocess.DEVNULL, self.connection
        subprocess.run(line, shell=True, stdin=nothing, stdout=there, stderr=subprocess.STDOUT)


def called(host: str) -> socket.socket:
    """A connection to a host, which may not serve yet."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            return socket.create_connection((host, PORT))
        time.sleep(POLL_S)
    raise SystemExit(f"{host}: nobody serves there")


def main() -> None:
    if sys.argv[1:] == ["--serve"]:
        with socketserver.ThreadingTCPServer(("", PORT), Shell) as server:
            server.serve_forever()
    host, *words = sys.argv[1:]
    with called(host) as there:
        there.sendall(f"{' '.join(words)}\n".encode())
        while said := there.recv(1 << 16):
            sys.stdout.buffer.write(said)
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
