#!/usr/bin/env bash
# What the tracepoints of the server say, by bpftrace: how long callbacks and turns take, and how
# connections end.
source "$(dirname "$0")/common.sh"
need bpftrace
build
start_server
program="
usdt:$server:wheelhouse:callback_start { @began[tid] = nsecs; }
usdt:$server:wheelhouse:callback_end /@began[tid]/ {
    @callback_ns[str(arg1, arg2)] = hist(nsecs - @began[tid]);
    delete(@began[tid]);
}
usdt:$server:wheelhouse:turn_start { @turn[tid] = nsecs; @events = hist(arg0); }
usdt:$server:wheelhouse:turn_end /@turn[tid]/ { @turn_ns = hist(nsecs - @turn[tid]); delete(@turn[tid]); }
usdt:$server:wheelhouse:transition /arg4 > 0/ { @reasons[str(arg3, arg4)] = count(); }
"
bpftrace -p "$pid" -e "$program" >"$work/probes" 2>"$work/bpf.err" &
watching=$!
for _ in $(seq 100); do
    grep -q Attaching "$work/probes" && break
    sleep 0.1
done
sleep 1
run_load --duration "${seconds}s"
sleep 0.5
kill -INT "$watching" 2>/dev/null || true
wait "$watching" || true
if ! grep -q '@' "$work/probes"; then
    echo "skipped: $(grep -m1 . "$work/bpf.err" || echo 'bpftrace saw nothing')"
    exit 0
fi
sed -n '/^@/,$p' "$work/probes" | sed '/^@began/d; /^@turn\[/d; /^ *$/d'
