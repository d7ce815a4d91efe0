#!/usr/bin/env bash
# Installs Chromium from the packages of Debian, for the tests that open a report's page.
set -euo pipefail
packages=(chromium fonts-dejavu-core) # some 100 MB to fetch

if ! command -v chromium >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Install Chromium by hand (in Debian ${packages[*]}): this needs root and apt-get." >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi
echo "Chromium is installed: $(chromium --version)"
