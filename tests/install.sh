#!/usr/bin/env bash
# Installs LaTeX and Chromium from the packages of Debian: tests compile a report's tables with the
# one, and open its page in the other.
set -euo pipefail
packages=(texlive-latex-base texlive-latex-recommended chromium fonts-dejavu-core) # 150 MB to fetch

if ! { command -v pdflatex && kpsewhich booktabs.sty && command -v chromium; } >/dev/null; then
    if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
        echo "Install LaTeX with booktabs, and Chromium, by hand (in Debian ${packages[*]}):" \
            "this needs root and apt-get." >&2
        exit 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    apt-get update -qq
    apt-get install -y -qq --no-install-recommends "${packages[@]}"
fi
echo "Installed: $(pdflatex --version | head -n 1); $(chromium --version)"
