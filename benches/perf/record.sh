#!/usr/bin/env bash
# Where the server's time goes: the functions that take most of it, and with FLAMEGRAPH=FILE a flame graph
# (it needs inferno: cargo install inferno).
source "$(dirname "$0")/common.sh"
watch_with_perf record -q -e cpu-clock -F 997 -g -o "$work/data"
echo 'in the kernel and in the program:'
perf report -i "$work/data" --no-children --sort dso --stdio -g none 2>/dev/null | grep '%' | sed -n '1,4p'
echo 'by function:'
perf report -i "$work/data" --no-children --sort symbol --stdio -g none 2>/dev/null |
    grep '%' | cut -c 1-110 | sed -n '1,12p'
if [[ -n ${FLAMEGRAPH:-} ]]; then
    need inferno-collapse-perf inferno-flamegraph
    perf script -i "$work/data" 2>/dev/null | inferno-collapse-perf 2>/dev/null |
        inferno-flamegraph >"$FLAMEGRAPH"
    echo "flame graph in $FLAMEGRAPH"
fi
