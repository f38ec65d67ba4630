"""Logits by ONNX Runtime of decoders that the tests wrote, against those of other programs.

Facts on standard input: `cases` with `file`, `ids`, `logits` (of all rows), `layers`, `kv_heads`,
`head_dim`, `most` (largest squared error relative to the squared logits).
"""

import json
import sys

import numpy
import onnxruntime

for case in json.load(sys.stdin)["cases"]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(case["file"], options)
    ids = numpy.array([case["ids"]], dtype=numpy.int64)
    empty = numpy.zeros((1, case["kv_heads"], 0, case["head_dim"]), dtype=numpy.float32)
    feed = {
        "input_ids": ids,
        "attention_mask": numpy.ones_like(ids),
        "position_ids": numpy.arange(ids.shape[1], dtype=numpy.int64)[None],
    }
    for layer in range(case["layers"]):
        for part in ("key", "value"):
            feed[f"past_key_values.{layer}.{part}"] = empty
    names = {value.name for value in session.get_inputs()}
    got = session.run(["logits"], {key: value for key, value in feed.items() if key in names})[0]
    got = got.astype(numpy.float64).reshape(-1)
    want = numpy.array(case["logits"], dtype=numpy.float64)
    error = ((got - want) ** 2).sum() / (want**2).sum()
    print(case["file"], "NMSE", error)
    assert error < case["most"], error
print("ok")
