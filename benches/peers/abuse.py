#!/usr/bin/env python3
"""What ten well-behaved clients notice of ten thousand others, a third of them hostile.

Of 10,000 connections to the `http` example 1,000 send a request a byte at a time (slowloris), 1,000
ask for a large reply and never read it, 1,000 reset theirs at random and come again, and 7,000 are
kept alive. Ten bystanders ask for `/` all the while; the 99th percentile of their waits is compared
with that of the same ten alone. The server's memory is compared with what its settings allow.
"""

import argparse
import multiprocessing
import os
import random
import socket
import struct
import sys
import time
from pathlib import Path

from harness import LOAD_CORE, BenchError, Server, prepare

EXAMPLE = "target/release/examples/http --listen {addr} --max-requests off --max-connections 20000"
REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
LARGE = b"GET /bytes/10000000 HTTP/1.1\r\nHost: a\r\n\r\n"
SLOW = b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 4000
NOW = struct.pack("ii", 1, 0)

BYSTANDERS = 10
PAUSE_S = 0.01


def main():
    options = parse_options()
    prepare()
    with Server(options.server) as server:
        before = server.resident_bytes()
        alone = bystanders(server.address, options.seconds)
        ready, stop = multiprocessing.Event(), multiprocessing.Event()
        crowd = multiprocessing.Process(target=attack, args=(server.address, ready, stop))
        crowd.start()
        if not ready.wait(120):
            crowd.kill()
            raise BenchError("the crowd does not get in")
        beset = bystanders(server.address, options.seconds)
        grown = server.resident_bytes() - before
        stop.set()
        crowd.join(30)
        late = bystanders(server.address, options.seconds)
    for title, waits in [("alone", alone), ("in the crowd", beset), ("after it", late)]:
        print(f"{title}: {len(waits):,} requests, p50 {at(waits, 0.5):.2f} ms, "
              f"p99 {at(waits, 0.99):.2f} ms, longest {waits[-1]:.2f} ms")
    print(f"memory: {grown / 2**20:.0f} MiB for the crowd")
    bound = max(3 * at(alone, 0.99), 20)
    verdict = "within" if at(beset, 0.99) <= bound else "beyond"
    print(f"the p99 in the crowd is {verdict} {bound:.1f} ms")


def parse_options():
    parser = argparse.ArgumentParser(description="Measures bystanders of an attack.")
    parser.add_argument("--server", default=EXAMPLE, metavar="COMMAND")
    parser.add_argument("--seconds", type=float, default=10)
    return parser.parse_args()


def at(waits, share):
    return waits[min(len(waits) - 1, int(share * len(waits)))]


def bystanders(address, seconds):
    """The waits of ten clients that ask one after the other, in ms, in order of length."""
    host, port = address.split(":")
    peers = [socket.create_connection((host, int(port)), 20) for _ in range(BYSTANDERS)]
    waits = []
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for peer in peers:
            began = time.perf_counter()
            peer.sendall(REQUEST)
            reply = b""
            while not reply.endswith(b"Hello, World!"):
                piece = peer.recv(4096)
                if not piece:
                    raise BenchError(f"the server hung up on a bystander: {reply}")
                reply += piece
            waits.append((time.perf_counter() - began) * 1000)
        time.sleep(PAUSE_S)
    for peer in peers:
        peer.close()
    return sorted(waits)


def attack(address, ready, stop):
    # Those who attack share a core with those who are measured, and must not keep them from it.
    os.sched_setaffinity(0, {int(LOAD_CORE)})
    os.nice(19)
    host, port = address.split(":")
    target = (host, int(port))
    chance = random.Random(1)

    def dial(window=None):
        peer = socket.socket()
        if window:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        peer.connect(target)
        peer.setblocking(False)
        return peer

    idle = [dial() for _ in range(7_000)]
    for peer in idle:
        peer.send(REQUEST)
    deaf = [dial(4096) for _ in range(1_000)]
    for peer in deaf:
        peer.send(LARGE)
    slow = [[dial(), 0] for _ in range(1_000)]
    rude = [dial() for _ in range(1_000)]
    ready.set()
    while not stop.is_set():
        for entry in chance.sample(slow, 100):
            try:
                entry[0].send(SLOW[entry[1]:entry[1] + 1])
                entry[1] += 1
            except OSError:
                entry[0].close()
                entry[:] = [dial(), 0]
        for index in chance.sample(range(len(rude)), 50):
            try:
                rude[index].send(chance.choice([REQUEST, SLOW[:9], LARGE]))
            except OSError:
                pass
            rude[index].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NOW)
            rude[index].close()
            rude[index] = dial()
        time.sleep(0.05)


if __name__ == "__main__":
    try:
        main()
    except BenchError as error:
        sys.exit(f"{Path(__file__).name}: {error}")
