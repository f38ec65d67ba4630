#!/usr/bin/env bash
# Installs what the test of the web page needs, Chromium and its driver, with apt-get, if it may. Fails with
# a message where it cannot; what is there is kept.
set -euo pipefail

if command -v chromedriver >/dev/null && command -v chromium >/dev/null; then
    exit 0
fi
if ! command -v apt-get >/dev/null; then
    echo "the web page is not tested in a browser: no apt-get here; install chromium and chromedriver"
    exit 1
fi
as_root=()
if ((EUID != 0)); then
    as_root=(sudo -n)
fi
install() {
    "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
        apt-get install -y -qq --no-install-recommends chromium chromium-driver >/dev/null
}
if ! "${as_root[@]}" true 2>/dev/null ||
    ! { install 2>/dev/null || { "${as_root[@]}" apt-get update -qq && install; }; }; then
    echo "the web page is not tested in a browser: install chromium and chromium-driver"
    exit 1
fi
