#!/usr/bin/env bash
# Fetches what tests of the NPU device need, by pip from PyPI: ONNX Runtime into .venv, and into folders of
# their own under .cache/npu (a process loads one library) the build with OpenVINO, a version that is too
# old, and a plugin provider. What is there is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ ! -x .venv/bin/python ]; then
    "${PYTHON:-python3}" -m venv .venv
fi
pip() { .venv/bin/python -m pip --quiet --disable-pip-version-check "$@"; }
# Only the libraries are used: what their Python sides depend on is left out.
pip install --no-deps onnxruntime==1.31.1

# into FOLDER PACKAGE
into() {
    local folder=.cache/npu/$1
    if [ -d "$folder" ]; then
        return
    fi
    echo "fetching $2"
    rm -rf "$folder.part"
    pip install --no-deps --target "$folder.part" "$2"
    mv "$folder.part" "$folder"
}

into openvino onnxruntime-openvino==1.24.1
into old onnxruntime==1.20.1
into plugin onnxruntime-ggml==0.2.0
