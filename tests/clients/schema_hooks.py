"""What the property-based run over the document needs to reach behind the first check."""

import os
import random

import schemathesis

MODEL = os.environ["TREFOIL_MODEL"]


MESSAGES = [{"role": "user", "content": "Who are you?"}]


@schemathesis.hook
def map_case(context, case):
    # Made-up names of models are all answered alike, and so are conversations of made-up messages: most
    # bodies get some that are served. Bodies that are meant to be wrong stay as they are.
    body = case.body
    if case.meta is None or case.meta.generation.mode.is_negative or not isinstance(body, dict):
        return case
    if isinstance(body.get("model"), str) and random.random() < 0.9:
        body["model"] = MODEL
    if isinstance(body.get("messages"), list) and random.random() < 0.5:
        body["messages"] = MESSAGES
    return case
