"""A real model's greedy replies through the official Python client, streamed and whole.

Run by the end-to-end tests, with JSON on standard input: url, model, and cases of messages,
max_tokens and text.
"""

import json
import sys

import openai

facts = json.load(sys.stdin)
client = openai.OpenAI(base_url=facts["url"], api_key="none", max_retries=0, timeout=300)
for case in facts["cases"]:
    request = dict(
        model=facts["model"],
        messages=case["messages"],
        max_tokens=case["max_tokens"],
        temperature=0,
    )
    answer = client.chat.completions.create(**request)
    assert answer.choices[0].message.content == case["text"], (answer, case["text"])
    assert answer.usage.prompt_tokens == case["prompt_tokens"], answer.usage
    chunks = client.chat.completions.create(stream=True, **request)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == case["text"], (text, case["text"])
print(f"{len(facts['cases'])} cases: ok")
