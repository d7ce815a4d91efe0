#!/usr/bin/env bash
# Installs LaTeX from the packages of Debian or Ubuntu, for the tests that compile a report's tables.
set -euo pipefail
packages=(texlive-latex-base texlive-latex-recommended)  # 48 MB to fetch; booktabs is in the second

if command -v pdflatex >/dev/null && kpsewhich booktabs.sty >/dev/null; then
    echo "LaTeX is installed: $(pdflatex --version | head -n 1)"
    exit
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "Install LaTeX with booktabs by hand (in Debian ${packages[*]}): this needs root and apt-get." >&2
    exit 1
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}"
echo "LaTeX is installed: $(pdflatex --version | head -n 1)"
