"""Embeddings over HTTP, by the official client, against ONNX Runtime on the same model.

Facts on standard input: `url`, and `cases` with `model` (its id), `file` (its .onnx), `texts`, `ids`
(their token ids). Means of the last hidden states are compared by the cosine of their angle.
"""

import json
import sys

import numpy
import onnxruntime
import openai

facts = json.load(sys.stdin)
client = openai.OpenAI(base_url=facts["url"], api_key="none")
for case in facts["cases"]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(case["file"], options)
    names = [value.name for value in session.get_inputs()]
    served = client.embeddings.create(model=case["model"], input=case["texts"]).data
    lowest = 1.0
    for item, ids in zip(served, case["ids"], strict=True):
        ids = numpy.array([ids], dtype=numpy.int64)
        every = {
            "input_ids": ids,
            "attention_mask": numpy.ones_like(ids),
            "token_type_ids": numpy.zeros_like(ids),
        }
        outputs = session.run(None, {name: every[name] for name in names})
        hidden = [value for value in outputs if value.ndim == 3 and value.shape[1] == ids.shape[1]]
        assert len(hidden) == 1, [value.shape for value in outputs]
        want = hidden[0][0].astype(numpy.float64).mean(axis=0)
        got = numpy.array(item.embedding, dtype=numpy.float64)
        assert abs(numpy.linalg.norm(got) - 1) < 1e-5
        cosine = got @ want / numpy.linalg.norm(want)
        lowest = min(lowest, cosine)
    print(case["model"], "lowest cosine", lowest)
    assert lowest >= case["least"], lowest
print("ok")
