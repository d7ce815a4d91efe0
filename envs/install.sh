#!/usr/bin/env bash
# Fills .venv with every package at the version that constraints.txt names. `make setup` calls it.
set -euo pipefail
cd "$(dirname "$0")/.."
log=.venv/install.log
PATH=${PATH#"$PWD/.venv/bin:"} # the Python that makes .venv is not the one in it

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12 python3.13}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "Palimpsest needs Python 3.11 or later, and none was found here." \
        "  Debian, Ubuntu:  apt install python3 python3-venv" \
        "  elsewhere:       conda create -n python311 python=3.11" \
        "  then:            make setup PYTHON=/path/to/python3.11"
}

say() {
    if [ -t 1 ]; then printf '\r\033[K      %s' "$1"; else echo "      $1"; fi
}

# pip's words go to the log; a person sees how far it is (not in a terminal: a line every 20 packages).
count_packages() {
    local line num_packages=0
    while read -r line; do
        echo "$line" >>"$log"
        case $line in
        Collecting* | Processing*)
            num_packages=$((num_packages + 1))
            if [ -t 1 ] || [ $((num_packages % 20)) = 0 ]; then say "$num_packages packages found"; fi
            ;;
        Installing\ collected*) say "unpacking" ;;
        esac
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
}

# Compiled afterwards on all cores, which is faster than pip's way on one.
install() {
    if ! DS_BUILD_OPS=0 .venv/bin/pip install --no-compile -c envs/constraints.txt "$@" 2>&1 | count_packages; then
        tail -n 15 "$log" >&2
        fail "" "The installation failed; all that pip said is in $log."
    fi
}

python=$(find_python)
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
    fail "$python has no venv module. Debian, Ubuntu: apt install python3-venv"
echo "[1/4] .venv with $("$python" --version)"
"$python" -m venv .venv
: >"$log"
echo "[2/4] torch"
install torch
echo "[3/4] the other packages"
install -e '.[dev]'
echo "[4/4] compile to bytecode"
# A few packages carry files in the syntax of later Pythons, so this may end in an error that means nothing.
.venv/bin/python -m compileall -q -j 0 .venv/lib >>"$log" 2>&1 || true
