#!/usr/bin/env python3
"""What an echo server costs in exact numbers: instructions, system calls, bytes, wake-ups.

Instructions and system calls are counted in two runs that differ only in the number of messages;
the difference of the counts over the difference of the messages leaves out starting, connecting,
closing and ending.
"""

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import memory
from harness import BASELINE, MIO, ROOT, BenchError, Server, prepare, run_load, split_command
from memory import connected, echo_on_each

DEFAULT_SERVER = "target/release/examples/echo --listen {addr} --max-connections 15000"

MESSAGES_FEW = 2_000
MESSAGES_MANY = 12_000
LOADS = {
    "echo, 64 connections": ["--conns", 64, "--size", 64],
    "echo, 1 connection": ["--conns", 1, "--size", 64],
    "churned connection, 64 at a time": ["--conns", 64, "--size", 64, "--churn"],
    "churned connection, 1 at a time": ["--conns", 1, "--size", 64, "--churn"],
}

FRAMES = "target/release/examples/peer-frames"
TIMES_FEW = 10_000
TIMES_MANY = 50_000
FRAMES_OF = {
    "behind a length": "length",
    "of one length": "fixed",
    "line of 64 bytes": "lines",
    "delimited, 64 bytes": "delimited",
    "behind a varint": "varint",
}

HTTP_CONNECTIONS = 64
HTTP_FEW = 30
HTTP_MANY = 180
HTTP_REQUEST = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n"

POOLED = "target/release/examples/peer-pooled --listen {addr} --upstream"
POOLED_LOAD = ["--conns", 1, "--size", 64]

CALLGRIND = ["valgrind", "-q", "--tool=callgrind"]

# The first-level data cache that is simulated: 48 KiB, 12 ways, as recent cores of Intel's have.
CACHE = ["--cache-sim=yes", "--D1=49152,12,64"]
MISSES_AT = (64, 1_000, 10_000)
MISSES_MESSAGES = 30_000

# The kernel samples which of the two it is at each tick, so the run has many.
SPLIT_SECONDS = 5

IDLE_CONNECTIONS = 10_000
IDLE_SECONDS = 10
IDLE_SETTLE_S = 1
TRACER_TIMEOUT_S = 10


def main():
    options = parse_options()
    prepare()
    parts = {
        "instructions": count_instructions,
        "frames": count_frames,
        "pool": count_pooled,
        "syscalls": count_syscalls,
        "misses": count_misses,
        "kernel": split_time,
        "memory": weigh_connections,
        "idle": watch_idle,
    }
    chosen = [name for name in parts if getattr(options, name)]
    for name in chosen or parts:
        parts[name](options.server)


def parse_options():
    parser = argparse.ArgumentParser(
        description="Counts what an echo server costs. Without a selection, all parts are run."
    )
    parser.add_argument(
        "--server",
        default=DEFAULT_SERVER,
        metavar="COMMAND",
        help=f"{{addr}} stands for the address to listen on (default: {DEFAULT_SERVER})",
    )
    parser.add_argument(
        "--instructions", action="store_true", help="user instructions, under callgrind"
    )
    parser.add_argument(
        "--frames",
        action="store_true",
        help="user instructions per message that is cut off a stream, in batches of 16",
    )
    parser.add_argument(
        "--pool",
        action="store_true",
        help="user instructions of a front with a pool, to which the server is the upstream",
    )
    parser.add_argument("--syscalls", action="store_true", help="system calls, under strace")
    parser.add_argument(
        "--misses",
        action="store_true",
        help="first-level misses of data in user space, beside those of bare mio and of the C "
        "baseline",
    )
    parser.add_argument(
        "--kernel", action="store_true", help="which share of its time the server is in the kernel"
    )
    parser.add_argument(
        "--memory", action="store_true", help=f"bytes for each of {IDLE_CONNECTIONS:,} connections"
    )
    parser.add_argument(
        "--idle",
        action="store_true",
        help=f"CPU time and wake-ups with {IDLE_CONNECTIONS:,} silent connections",
    )
    return parser.parse_args()


def count_instructions(command):
    print("user instructions per")
    for title, load in LOADS.items():
        print_count(title, instructions_per_message(command, load))


def count_frames(_):
    print("user instructions per message")
    for title, framing in FRAMES_OF.items():
        print_count(title, instructions_each(f"{FRAMES} {framing}") / 16)


def count_pooled(command):
    print("user instructions per exchange through a front with a pool")
    with Server(command) as upstream:
        front = f"{POOLED} {upstream.address}"
        acquired, kept = (
            instructions_per_message(f"{front} {keep}", POOLED_LOAD) for keep in ("", "--keep")
        )
    print_count("acquired and given back", acquired)
    print_count("over a lease that is kept", kept)
    print_count("difference", acquired - kept)


def instructions_per_message(command, load):
    few, many = (
        instructions_of_run(command, [*load, "--messages", messages])
        for messages in (MESSAGES_FEW, MESSAGES_MANY)
    )
    return (many - few) / (MESSAGES_MANY - MESSAGES_FEW)


def instructions_of_run(command, load):
    return events_of_run(command, load)["Ir"]


def count_misses(command):
    print("first-level misses in user space per message")
    servers = {"this server": command, "bare mio": MIO, "C epoll": BASELINE}
    for name, server in servers.items():
        for conns in MISSES_AT:
            print_count(f"{name}, {conns:,} connections", misses_per_message(server, conns))


def instructions_of_http(command):
    """User instructions of a server for one `GET /` on one of many connections."""
    few, many = (
        events_under(command, lambda server: request_on_each(server, rounds))["Ir"]
        for rounds in (HTTP_FEW, HTTP_MANY)
    )
    return (many - few) / (HTTP_MANY - HTTP_FEW) / HTTP_CONNECTIONS


def request_on_each(server, rounds):
    with connected(server, HTTP_CONNECTIONS) as connections:
        for _ in range(rounds):
            for connection in connections:
                connection.sendall(HTTP_REQUEST)
            for connection in connections:
                reply = connection.recv(4096)
                if not (reply.startswith(b"HTTP/1.1 200 ") and reply.endswith(b"World!")):
                    raise BenchError(f"no reply to GET /: {reply}")


def misses_per_message(command, conns):
    # Some messages of each connection first, so that what it touches once is left out.
    few, many = (
        misses_of_run(command, ["--conns", conns, "--size", 64, "--messages", messages])
        for messages in (2 * conns, 2 * conns + MISSES_MESSAGES)
    )
    return (many - few) / MISSES_MESSAGES


def misses_of_run(command, load):
    events = events_of_run(command, load, CACHE)
    return events["D1mr"] + events["D1mw"]


def events_of_run(command, load, options=()):
    """Returns what callgrind counted of each kind of event in a server under a load."""
    return events_under(command, lambda server: run_load(server, *load), options)


def events_under(command, drive, options=()):
    """Returns what callgrind counted of each kind of event in a server that `drive` uses."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "callgrind.out"
        with Server(command, [*CALLGRIND, f"--callgrind-out-file={out}", *options]) as server:
            drive(server)
        return events_in(out)


def instructions_each(command):
    """User instructions of a program that does something as often as its last argument says."""
    few, many = (events_of_program(f"{command} {times}")["Ir"] for times in (TIMES_FEW, TIMES_MANY))
    return (many - few) / (TIMES_MANY - TIMES_FEW)


def events_of_program(command):
    """Returns what callgrind counted of each kind of event in a program that ends by itself."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "callgrind.out"
        counted = [*CALLGRIND, f"--callgrind-out-file={out}", *split_command(command)]
        subprocess.run(counted, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return events_in(out)


def events_in(out):
    text = out.read_text()
    kinds = re.search(r"^events: (.+)$", text, re.MULTILINE)
    totals = re.search(r"^totals: (.+)$", text, re.MULTILINE)
    if not (kinds and totals):
        raise BenchError("callgrind left no totals")
    return dict(zip(kinds[1].split(), map(int, totals[1].split())))


def count_syscalls(command):
    print("system calls per")
    for title, load in LOADS.items():
        per_message = syscalls_per_message(command, load)
        total = per_message.pop("total")
        calls = sorted(per_message.items(), key=lambda item: -item[1])
        detail = ", ".join(f"{name} {count:.2f}" for name, count in calls if count >= 0.005)
        print_count(title, total, f"  ({detail})")


def syscalls_per_message(command, load):
    """The calls of each kind and their total, for each message."""
    few, many = (
        syscalls_of_run(command, [*load, "--messages", messages])
        for messages in (MESSAGES_FEW, MESSAGES_MANY)
    )
    spread = MESSAGES_MANY - MESSAGES_FEW
    return {name: (many[name] - few.get(name, 0)) / spread for name in many}


def syscalls_of_run(command, load):
    """Returns the calls of each kind and their total, all threads together."""
    with tempfile.TemporaryDirectory() as directory:
        out = Path(directory) / "strace.out"
        # -D: the tracer is the grandchild, so that the process id stays that of the server.
        with Server(command, ["strace", "-D", "-f", "-c", "-o", str(out)]) as server:
            run_load(server, *load)
        give_up = time.monotonic() + TRACER_TIMEOUT_S
        while time.monotonic() < give_up:
            # Columns: share, seconds, microseconds a call, calls, errors (may be blank), name.
            lines = out.read_text().splitlines() if out.exists() else []
            rows = [fields for line in lines if len(fields := line.split()) in (5, 6)]
            calls = {row[-1]: int(row[3]) for row in rows if row[3].isdigit()}
            if "total" in calls:
                return calls
            time.sleep(0.01)
    raise BenchError("strace left no totals")


def split_time(command):
    print(f"share of the server's CPU time in the kernel, over {SPLIT_SECONDS} s")
    for title, load in LOADS.items():
        with Server(command) as server:
            before = server.times()
            run_load(server, *load, "--seconds", SPLIT_SECONDS)
            user, kernel = (after - was for after, was in zip(server.times(), before))
        print_count(title, kernel / (user + kernel))


def weigh_connections(command):
    print(f"bytes of resident memory per connection, {IDLE_CONNECTIONS:,} connections")
    for title, size in memory.weigh(command, IDLE_CONNECTIONS):
        print_count(title, size)


def watch_idle(command):
    print(f"{IDLE_CONNECTIONS:,} idle connections, watched for {IDLE_SECONDS} s")
    with Server(command) as server, connected(server, IDLE_CONNECTIONS) as connections:
        # An echo each, so that deadlines armed by traffic are running too.
        echo_on_each(connections, 64)
        time.sleep(IDLE_SETTLE_S)
        cpu_before_ns, wakeups_before = server.cpu_ns(), server.wakeups()
        time.sleep(IDLE_SECONDS)
        cpu_ns, wakeups = server.cpu_ns() - cpu_before_ns, server.wakeups() - wakeups_before
    print_count("CPU ms per second", cpu_ns / 1e6 / IDLE_SECONDS)
    print_count("wake-ups per second", wakeups / IDLE_SECONDS)


def print_count(title, count, detail=""):
    print(f"  {title:<34}{count:>12,.2f}{detail}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except (BenchError, OSError, subprocess.CalledProcessError) as error:
        sys.exit(f"count.py: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
