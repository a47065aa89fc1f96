# What the recipes share: an echo server under a load, both ended when the recipe is. To be sourced.
#
# PROFILE is how they are built (default: profiling; BUILD=no for not at all), SECONDS_OF_LOAD for how long
# they run (5), and CONNECTIONS on how many connections (64). The server has the tracepoints of the feature
# `usdt`.

set -Eeuo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

profile=${PROFILE:-profiling}
seconds=${SECONDS_OF_LOAD:-5}
connections=${CONNECTIONS:-64}
target=${CARGO_TARGET_DIR:-target}
server=$target/$profile/examples/echo
load=$target/$profile/examples/load
work=$(mktemp -d)
started=()

finish() {
    local id
    for id in "${started[@]}"; do
        kill "$id" 2>/dev/null || true
        wait "$id" 2>/dev/null || true
    done
    rm -rf "$work"
}
trap finish EXIT

# Ends the recipe if one of these programs is missing.
need() {
    local program
    for program; do
        if ! command -v "$program" >/dev/null; then
            echo "skipped: there is no $program"
            exit 0
        fi
    done
}

build() {
    if [[ ${BUILD:-yes} == no ]]; then
        return
    fi
    # Frame pointers let perf walk the stack.
    RUSTFLAGS="${RUSTFLAGS:-} -C force-frame-pointers=yes" \
        cargo build --quiet --locked --profile "$profile" --features usdt --example echo --example load
}

# Starts the server, behind a wrapper if one is given. Sets `pid` and `address`.
start_server() {
    "$@" "$server" --listen 127.0.0.1:0 >"$work/server" 2>"$work/server.err" &
    pid=$!
    started+=("$pid")
    address=
    for _ in $(seq 600); do
        address=$(sed -n 's/^listening on //p' "$work/server")
        if [[ -n $address ]]; then
            return
        fi
        sleep 0.1
    done
    echo "the server does not listen: $(cat "$work/server.err")" >&2
    exit 1
}

# Sends echoes for some seconds. What it printed is in $work/load, and `replies` is how many came back.
run_load() {
    "$load" echo "$address" --connections "$connections" --warm-up 0s "$@" >"$work/load"
    replies=$(sed -n 's/^ *replies *\([0-9]*\).*/\1/p' "$work/load")
    echo "$replies messages on $connections connections"
}

stop_server() {
    kill "$pid"
    wait "$pid" || true
    started=()
}

# Starts the server, and lets a tool watch it under the load: perf with these arguments.
watch_with_perf() {
    need perf
    build
    start_server
    perf "$@" -p "$pid" 2>"$work/perf.err" &
    local watching=$!
    sleep 0.5
    run_load --duration "${seconds}s"
    kill -INT "$watching" 2>/dev/null || true
    wait "$watching" || true
    permitted "$work/perf.err"
}

# Ends the recipe if the kernel does not permit what it needs; what the tool said is in this file.
permitted() {
    if grep -qiE 'permission|not permitted|paranoid|not supported|invalid argument|can.t open' "$1"; then
        echo "skipped: $(grep -m1 . "$1")"
        exit 0
    fi
}
