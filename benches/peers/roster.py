"""The echo servers that are compared, how each is built, and which versions they are."""

import platform
import re
import subprocess
from pathlib import Path
from typing import NamedTuple

from harness import PEERS, ROOT, TARGET, BenchError, build_c, split_command

BASELINE = "c-epoll"
CONTROL = "c-epoll again"
OURS = "wheelhouse"

RUST_PEERS = PEERS / "rust"
EXAMPLES = ("echo", "ping", "load", "peer-mio", "peer-timers", "http", "proxy", "bench-plots")


class Peer(NamedTuple):
    """How a server is started: `{addr}` stands for the address to listen on."""

    echo: str
    framed: str = None  # answers lines instead


def plain(program, *options):
    words = [program, *options]
    return Peer(" ".join([*words, "{addr}"]), " ".join([*words, "--framed", "{addr}"]))


# Which peers there are, and the part of the build that makes each of them.
PROGRAMS = {
    BASELINE: (plain("target/peers/epoll"), "epoll"),
    OURS: (
        Peer(
            "target/release/examples/echo --max-connections 15000 --listen {addr}",
            "target/release/examples/ping --max-connections 15000 --listen {addr}",
        ),
        "examples",
    ),
    "mio": (
        Peer(
            "target/release/examples/peer-mio --listen {addr}",
            "target/release/examples/peer-mio --framed --listen {addr}",
        ),
        "examples",
    ),
    "libevent": (plain("target/peers/libevent"), "libevent"),
    "libevent timeout": (plain("target/peers/libevent", "--timeout"), "libevent"),
    "libuv": (plain("target/peers/libuv"), "libuv"),
    "libuv timer": (plain("target/peers/libuv", "--timeout"), "libuv"),
    "tokio": (plain("target/release/peer-tokio"), "rust"),
    "tokio timeout": (plain("target/release/peer-tokio", "--timeout"), "rust"),
    "monoio": (plain("target/release/peer-monoio"), "rust"),
    "monoio timeout": (plain("target/release/peer-monoio", "--timeout"), "rust"),
    # The same as the first, so that each round begins and ends with it.
    CONTROL: (plain("target/peers/epoll"), "epoll"),
}


def build():
    """Builds all peers. Returns those that are there, and of the others why they are not."""
    failures = {}
    for part, make in PARTS.items():
        try:
            make()
        except (BenchError, OSError, subprocess.CalledProcessError) as error:
            failures[part] = str(error)
    for part in ("epoll", "load", "examples"):
        if part in failures:
            raise BenchError(failures[part])
    peers = {name: peer for name, (peer, part) in PROGRAMS.items() if part not in failures}
    missing = {name: failures[part] for name, (_, part) in PROGRAMS.items() if part in failures}
    return peers, missing


def built():
    """The peers whose programs are there, and the others."""
    peers, missing = {}, {}
    for name, (peer, _) in PROGRAMS.items():
        programs = [Path(split_command(command)[0]) for command in peer]
        absent = [str(program) for program in programs if not program.exists()]
        if absent:
            missing[name] = f"not built: {absent[0]}"
        else:
            peers[name] = peer
    return peers, missing


def build_examples():
    cargo(ROOT, *(word for example in EXAMPLES for word in ("--example", example)))


def cargo(directory, *options):
    command = ["cargo", "build", "--release", "--locked", "--target-dir", TARGET, *options]
    done = subprocess.run(command, cwd=directory, stderr=subprocess.PIPE, text=True)
    if done.returncode != 0:
        raise BenchError(done.stderr.strip())


PARTS = {
    "epoll": lambda: build_c("epoll"),
    "load": lambda: build_c("load"),
    "flow": lambda: build_c("flow"),
    "libevent": lambda: build_c("libevent", "-levent_core"),
    "libuv": lambda: build_c("libuv", "-luv"),
    "examples": build_examples,
    "rust": lambda: cargo(RUST_PEERS),
}


def machine():
    """What the figures were measured on, and with."""
    cpu = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    cores = len(re.findall(r"^processor", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    ours, rust = ROOT / "Cargo.lock", RUST_PEERS / "Cargo.lock"
    driver = first_line("target/release/peer-monoio", "--driver")
    versions = {
        "wheelhouse": first_line("git", "describe", "--always", "--dirty"),
        "mio": locked(ours, "mio"),
        "tokio": locked(rust, "tokio"),
        "monoio": f"{locked(rust, 'monoio')} on {driver}",
        "libevent": first_line("target/peers/libevent", "--version"),
        "libuv": first_line("target/peers/libuv", "--version"),
        "gcc": first_line("cc", "-dumpfullversion"),
        "glibc": platform.libc_ver()[1],
        "rustc": first_line("rustc", "--version").removeprefix("rustc "),
    }
    return {
        "cpu": f"{cpu[1] if cpu else platform.machine()}, {cores} cores",
        "kernel": f"{platform.system()} {platform.release()}",
        "versions": versions,
    }


def first_line(*command):
    """The first line that a command prints, or that there is none."""
    command = split_command(" ".join(command))
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except OSError:
        return "missing"
    return (done.stdout.splitlines() or ["missing"])[0]


def locked(lock, crate):
    """The newest version of a crate in a Cargo.lock."""
    text = lock.read_text()
    found = re.findall(rf'^name = "{crate}"\nversion = "(.*)"$', text, re.MULTILINE)
    return max(found, key=lambda version: [int(part) for part in version.split(".")])
