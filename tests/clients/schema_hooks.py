"""What the property-based run over the document needs to reach behind the first check."""

import os
import random

import schemathesis

MODEL = os.environ["TREFOIL_MODEL"]


MESSAGES = [{"role": "user", "content": "Who are you?"}]


@schemathesis.hook
def map_body(context, body):
    # Made-up names of models are all answered alike, and so are conversations of made-up messages: most
    # bodies get some that are served. What is of another type stays, since it is meant to be wrong.
    if not isinstance(body, dict):
        return body
    if isinstance(body.get("model"), str) and random.random() < 0.9:
        body["model"] = MODEL
    if isinstance(body.get("messages"), list) and body["messages"] and random.random() < 0.5:
        body["messages"] = MESSAGES
    return body
