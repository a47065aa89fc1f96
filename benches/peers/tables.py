"""What was measured, as tables and as charts."""

import statistics

from harness import quartiles
from roster import BASELINE, CONTROL
from workloads import WORKLOADS


def table(head, rows):
    """A Markdown table, its columns aligned."""
    cells = [head, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]

    def line(row):
        first, *rest = (cell.ljust(width) for cell, width in zip(row, widths))
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "| " + " | ".join(["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join([line(head), rule + " |", *map(line, rows)])


def ratio_table(rounds, servers, workloads):
    """The ratio of each server to the baseline: the median of the rounds with quartiles."""
    rows = []
    for name in servers:
        if name == BASELINE:
            continue
        cells = []
        for workload in workloads:
            low, median, high = ratio(rounds, workload, name)
            cells.append(f"{median:.2f} [{low:.2f}, {high:.2f}]" if median else "-")
        rows.append([name, *cells])
    return table(["server", *workloads], rows)


def cost_table(rounds, servers, workloads):
    """Microseconds of the server's CPU time for a message: the median of the rounds."""
    rows = []
    for name in servers:
        cells = []
        for workload in workloads:
            rates = [results[name][0] for results in measured(rounds, workload, name)]
            cells.append(f"{1e6 / statistics.median(rates):.2f}" if rates else "-")
        rows.append([name, *cells])
    return table(["us per message", *workloads], rows)


def ratio(rounds, workload, name):
    """The quartiles of the ratio to the baseline; all None if there was no run.

    The baseline is the mean of the two runs with which a round begins and ends, so that much of the
    drift between them cancels. The row of the second is its ratio to the first: the spread of no
    difference.
    """
    values = []
    for results in measured(rounds, workload, name):
        baseline = results[BASELINE][0]
        if name != CONTROL and CONTROL in results:
            baseline = (baseline + results[CONTROL][0]) / 2
        values.append(results[name][0] / baseline)
    return quartiles(values) if values else [None] * 3


def measured(rounds, workload, name):
    return [results[workload] for results in rounds if name in results.get(workload, {})]


def memory_table(weights):
    stages = list(next(iter(weights.values())))
    rows = [
        [name, *(f"{sizes[stage]:,.0f}" for stage in stages)] for name, sizes in weights.items()
    ]
    return table(["bytes per connection", *stages], rows)


def ratio_charts(rounds, servers, workloads):
    """A chart for each workload, for plots.rs."""
    for workload in workloads:
        rows = []
        for name in servers:
            low, median, high = ratio(rounds, workload, name)
            if name != BASELINE and median:
                rows.append({"name": name, "low": low, "middle": median, "high": high})
        yield {
            "file": f"{workload}.svg",
            "title": WORKLOADS[workload].title,
            "axis": "messages per CPU-second of the server, as a ratio to C epoll",
            "rows": rows,
        }


def line_chart(file, title, x, y, ticks, lines):
    """A chart of lines, for plots.rs; `lines` has for each name a value for each tick."""
    lines = [{"name": name, "points": points} for name, points in lines.items()]
    return {
        "file": file, "title": title, "x": x, "y": y,
        "ticks": [f"{tick:,}" for tick in ticks], "lines": lines,
    }
