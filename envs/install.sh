#!/usr/bin/env bash
# Fills .venv with every package at the version that constraints.txt names. `make setup` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
log=.venv/install.log

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3.11 python3 python3.12 python3.13; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Palimpsest needs Python 3.11 or later, and none was found here." \
        "  Debian, Ubuntu:  apt install python3 python3-venv python3-dev" \
        "  elsewhere:       conda create -n python311 python=3.11" \
        "  then:            make setup PYTHON=/path/to/python3.11"
}

# pip's log goes to a file; a person sees one line that counts (in a log: a line every 20 packages).
install() {
    local total=$1 tty=0
    shift
    [ -t 1 ] && tty=1
    if ! DS_BUILD_OPS=0 .venv/bin/pip install --no-compile -c envs/constraints.txt "$@" 2>&1 |
        tee -a "$log" |
        awk -v total="$total" -v tty="$tty" '
            function say(text) { if (tty) printf "\r\033[K      %s", text; else print "      " text; fflush() }
            /^Collecting/ || /^Requirement already/ { if (++n % 20 == 0 || tty) say("found " n " of about " total) }
            /^Installing collected/ { say("unpacking") }
            END { if (tty) printf "\r\033[K" }'; then
        tail -n 15 "$log" >&2
        fail "" "The installation failed; all that pip said is in $log."
    fi
}

python=$(find_python)
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module. Debian, Ubuntu: apt install python3-venv"
command -v c++ >/dev/null ||
    fail "DeepSpeed compiles a small extension at its first use, and there is no C++ compiler." \
        "  Debian, Ubuntu:  apt install g++ python3-dev"

echo "[1/3] .venv with $("$python" --version)"
"$python" -m venv .venv
: >"$log"
echo "[2/3] torch"
install 10 torch
echo "[3/3] the other packages (two to five minutes)"
install "$(grep -c == envs/constraints.txt)" -e '.[dev]'
