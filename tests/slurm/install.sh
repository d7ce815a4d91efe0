#!/usr/bin/env bash
# Installs Slurm, munge and MariaDB from the packages of Debian or Ubuntu, for tests/slurm/cluster.py.
set -euo pipefail
packages=(slurmctld slurmd slurmdbd slurm-client munge mariadb-server)
PATH=$PATH:/usr/sbin
policy=/usr/sbin/policy-rc.d

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

command -v apt-get >/dev/null || fail "tests/slurm/install.sh is for Debian and Ubuntu; this is neither." \
    "Elsewhere install Slurm 22.05 or later with slurmdbd, munge and MariaDB by hand."
installed=$(dpkg-query --show --showformat '${db:Status-Status}\n' "${packages[@]}" 2>/dev/null | grep -cx installed || true)
if [ "$installed" = "${#packages[@]}" ]; then
    echo "Slurm is installed: $(slurmctld -V)"
    exit
fi
[ "$(id -u)" = 0 ] || fail "The packages ${packages[*]} are missing, and only root can install them."

# A package may start its daemons as soon as it is unpacked, unless this script says no (exit code 101).
if [ ! -e $policy ]; then
    trap 'rm -f $policy' EXIT
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${packages[@]}"
echo "Slurm is installed: $(slurmctld -V)"
