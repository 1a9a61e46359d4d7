#!/usr/bin/env bash
# Installs Chromium for `pytest -m browser` from Debian's packages, where there is none yet:
#   bash tests/browser_environment.sh && pytest -m browser -n 0
set -euo pipefail
for name in chromium chromium-browser google-chrome chrome headless_shell; do
    if command -v "$name" >/dev/null; then
        "$name" --version
        exit
    fi
done
as_root=()
[ "$(id -u)" = 0 ] || as_root=(sudo)
"${as_root[@]}" apt-get update --quiet
"${as_root[@]}" apt-get install --quiet --yes --no-install-recommends chromium fonts-dejavu-core
chromium --version
