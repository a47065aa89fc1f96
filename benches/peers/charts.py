"""Writes plots, by plots.rs."""

import json
import subprocess

from harness import ROOT, TARGET, BenchError


def draw(directory, charts):
    """Writes each chart to its file in a directory."""
    directory.mkdir(parents=True, exist_ok=True)
    command = ["cargo", "run", "--quiet", "--release", "--locked", "--target-dir", TARGET]
    command += ["--example", "bench-plots", directory.resolve()]
    done = subprocess.run(command, cwd=ROOT, input=json.dumps(list(charts)), text=True)
    if done.returncode != 0:
        raise BenchError("the plots could not be drawn")
