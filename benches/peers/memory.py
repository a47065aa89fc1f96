"""Connections that are held, and what memory a server has for them."""

import contextlib
import socket
import struct

from harness import BenchError, Server

CLIENT_TIMEOUT_S = 10


def weigh(command, count):
    """Yields what `count` connections have done, and the resident bytes that each has added."""
    with Server(command) as server:
        # One connection's whole life first, so that code touched for the first time is not
        # charged to the connections.
        with connected(server, 1) as first:
            echo_on_each(first, 64)
            echo_on_each(first, 16 * 1024)
        server.settle()
        before = server.resident_bytes()

        def each():
            server.settle()
            return (server.resident_bytes() - before) / count

        with connected(server, count) as connections:
            yield "silent", each()
            echo_on_each(connections, 64)
            yield "after a 64 B echo", each()
            echo_on_each(connections, 16 * 1024)
            yield "after a 16 KiB echo", each()
        yield "after all closed", each()


@contextlib.contextmanager
def connected(server, count):
    """Opens connections, and resets them at the end, which leaves no port in TIME_WAIT."""
    host, port = server.address.rsplit(":", 1)
    with contextlib.ExitStack() as closing:
        connections = []
        for _ in range(count):
            connection = socket.create_connection((host, int(port)), CLIENT_TIMEOUT_S)
            linger = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            connections.append(closing.enter_context(connection))
        yield connections


def echo_on_each(connections, size):
    message = bytes(i % 251 for i in range(size))
    for connection in connections:
        connection.sendall(message)
        reply = bytearray()
        while len(reply) < size:
            chunk = connection.recv(size - len(reply))
            if not chunk:
                raise BenchError("the server closed a connection instead of echoing")
            reply += chunk
        if reply != message:
            raise BenchError("other bytes came back than were sent")
