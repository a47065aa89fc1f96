"""What the comparisons share: building the C programs, running a server or a load, and the table of
ratios."""

import json
import os
import re
import resource
import shlex
import signal
import socket
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

PEERS = Path(__file__).resolve().parent
ROOT = PEERS.parents[1]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")).resolve()
BUILD = TARGET / "peers"
BASELINE = "target/peers/epoll {addr}"
MIO = "target/release/examples/peer-mio --listen {addr}"

SERVER_CORE = "0"
LOAD_CORE = "1"

START_TIMEOUT_S = 60  # valgrind takes seconds to load a program
STOP_TIMEOUT_S = 30
SETTLE_STEP_S = 0.05
SETTLE_TIMEOUT_S = 5


class BenchError(Exception):
    """A program under test, or one of ours, did not do what was expected of it."""


def prepare():
    """Builds the baseline and the load; lifts the limits."""
    for name in ("epoll", "load"):
        build_c(name)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def build_c(name, *libraries):
    """Builds a C program that is missing or older than its sources."""
    BUILD.mkdir(parents=True, exist_ok=True)
    source, binary = PEERS / f"{name}.c", BUILD / name
    newest = max(file.stat().st_mtime for file in (source, *PEERS.glob("*.h")))
    if not binary.exists() or binary.stat().st_mtime < newest:
        build = ["cc", "-O2", "-Wall", "-Wextra", "-o", binary, source, *libraries]
        done = subprocess.run(build, capture_output=True, text=True)
        if done.returncode != 0:
            raise BenchError(f"{' '.join(map(str, build))}: {done.stderr.strip()}")


def split_command(command):
    """The words of a command. What begins with `target/` is in cargo's target directory."""
    words = shlex.split(command)
    return [
        str(TARGET / word.removeprefix("target/")) if word.startswith("target/") else word
        for word in words
    ]


class Server:
    """A server pinned to its core: listening inside the `with` block, ended by SIGTERM after it.

    `wrapper` is put before the command. It must keep the process id, as `valgrind` does and as
    `strace -D` does, because the id is what is measured and signalled.
    """

    def __init__(self, command, wrapper=()):
        if "{addr}" not in command:
            raise BenchError(f"no {{addr}} in the server command: {command}")
        self.command = command
        self.arguments = ["taskset", "-c", SERVER_CORE, *wrapper]
        self.arguments += [word.replace("{addr}", "127.0.0.1:0") for word in split_command(command)]

    def __enter__(self):
        # A file rather than a pipe: a server that goes on printing must not block on us.
        self.output = tempfile.TemporaryFile()
        self.process = subprocess.Popen(self.arguments, cwd=ROOT, stdout=self.output)
        self.pid = self.process.pid
        try:
            self.address = self._listening_address()
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(self, failure, *_):
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_TIMEOUT_S)
        except BaseException:
            self._kill()
            raise
        self.output.close()
        if status != 0 and failure is None:
            raise BenchError(f"status {status} after SIGTERM: {self.command}")

    def settle(self):
        """Waits until the server has nothing left to do, and returns its CPU time in ns.

        A server that never rests is given up on after SETTLE_TIMEOUT_S.
        """
        give_up = time.monotonic() + SETTLE_TIMEOUT_S
        used_ns = self.cpu_ns()
        while time.monotonic() < give_up:
            time.sleep(SETTLE_STEP_S)
            used_before_ns, used_ns = used_ns, self.cpu_ns()
            if used_ns == used_before_ns:
                break
        return used_ns

    def cpu_ns(self):
        """Time on a core, user and kernel, of all threads that are alive."""
        return sum(int(text.split()[0]) for text in self._each_task("schedstat"))

    def times(self):
        """Time in user space and in the kernel, in ticks."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]), int(fields[12])

    def wakeups(self):
        """How often a thread slept of its own accord, and so had to be woken."""
        pattern = re.compile(r"^voluntary_ctxt_switches:\s*(\d+)", re.MULTILINE)
        return sum(int(pattern.search(text)[1]) for text in self._each_task("status"))

    def resident_bytes(self):
        # Not VmRSS of `status`: many kernels batch that counter per core, and what is still in
        # the batches is tens of bytes for each of 10,000 connections.
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return 1024 * int(re.search(r"^Rss:\s*(\d+) kB", rollup, re.MULTILINE)[1])

    def _each_task(self, name):
        for task in os.listdir(f"/proc/{self.pid}/task"):
            try:
                yield Path(f"/proc/{self.pid}/task/{task}/{name}").read_text()
            except (FileNotFoundError, ProcessLookupError):
                pass  # the thread ended since it was listed

    def _listening_address(self):
        give_up = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up:
            status = self.process.poll()
            text = os.pread(self.output.fileno(), 1 << 16, 0).decode(errors="replace")
            found = re.search(r"^listening on (\S+)$", text, re.MULTILINE)
            if found and text.endswith("\n"):
                return found[1]
            if status is not None:
                raise BenchError(f"status {status} before it listened: {self.command}")
            time.sleep(0.01)
        raise BenchError(f"not listening after {START_TIMEOUT_S} s: {self.command}")

    def _kill(self):
        self.process.kill()
        self.process.wait()
        self.output.close()


class PortServer(Server):
    """A server that is told its port, and does not say when it listens."""

    def __init__(self, words, port):
        self.command = " ".join(map(str, words))
        self.arguments = ["taskset", "-c", SERVER_CORE, *words]
        self.port = port

    def _listening_address(self):
        give_up = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < give_up:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return f"127.0.0.1:{self.port}"
            if self.process.poll() is not None:
                break
            time.sleep(0.01)
        raise BenchError(f"it does not listen: {self.command}")


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_load(server, *options):
    """Runs one load. Returns its result, and the CPU time in ns the server spent on it.

    Opening the connections is not counted (unless they are the load, as in churn), nor is
    closing them.
    """
    command = ["taskset", "-c", LOAD_CORE, str(BUILD / "load"), "--addr", server.address, "--hold"]
    command += [str(option) for option in options]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as load:
        if load.stdout.readline() != "connected\n":
            raise BenchError("the load could not connect")
        before_ns = server.settle()
        load.stdin.write("\n")
        load.stdin.flush()
        line = load.stdout.readline()
        if not line:
            raise BenchError("the load failed")
        after_ns = server.settle()
    server.settle()
    return json.loads(line), after_ns - before_ns


def report(rounds, servers, baseline):
    """Prints for each server the medians of its rounds, and the ratios to the baseline in each."""
    print(f"  {'server':<16}{'per CPU-s':>16}{'per s':>16}{'busy':>7}   ratio [quartiles]")
    for name in servers:
        per_cpu_s, rate, busy = (statistics.median(column) for column in zip(
            *(results[name] for results in rounds)
        ))
        line = f"  {name:<16}{per_cpu_s:>16,.0f}{rate:>16,.0f}{busy:>7.0%}"
        if name != baseline:
            low, median, high = quartiles(
                [results[name][0] / results[baseline][0] for results in rounds]
            )
            line += f"   {median:.3f} [{low:.3f}, {high:.3f}]"
        print(line)
    print(flush=True)


def quartiles(values):
    if len(values) < 2:
        return values * 3
    return statistics.quantiles(values, n=4, method="inclusive")
