"""What the official Python client makes of the server's answers.

Run by the end-to-end tests, with JSON on standard input: url and keyed_url of two servers of the
demo model (the second asks for key), embeddings_url of a server of the encoder bert, prompt and reply
(text of the greedy answer), ids (tokens of the prompt as the chat template writes it). The first server
makes one reply at a time and has two places in its queue.
"""

import json
import sys
import threading
import time

import openai

facts = json.load(sys.stdin)
client = openai.OpenAI(base_url=facts["url"], api_key="none", max_retries=0)
messages = [{"role": "user", "content": facts["prompt"]}]


def create(**more):
    return client.chat.completions.create(
        model="demo", temperature=0, **{"messages": messages, **more}
    )


def expect(kind, code, param, call):
    """The error object of a call that must raise exactly this class."""
    try:
        call()
    except openai.APIError as error:
        assert type(error) is kind, repr(error)
        assert error.code == code, repr(error)
        assert error.param == param, repr(error)
        return error
    raise AssertionError(f"expected {kind.__name__}")


def chat():
    answer = create()
    assert answer.object == "chat.completion"
    choice = answer.choices[0]
    assert choice.message.content == facts["reply"], choice
    assert (choice.message.role, choice.finish_reason) == ("assistant", "stop")
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens == 0
    assert answer._request_id
    # Fields of later versions, sent because a user may: taken, or refused by name.
    create(max_completion_tokens=1, user="u", store=False, seed=1, service_tier="auto")
    two = create(n=2, max_tokens=2, seed=3)
    assert [choice.index for choice in two.choices] == [0, 1]


def streaming():
    chunks = list(create(stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == facts["reply"], text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "stop"
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens > 0
    assert all(c.usage is None for c in chunks[:-1])
    # The helper that joins events by itself.
    with client.chat.completions.stream(
        model="demo", temperature=0, messages=messages
    ) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == facts["reply"]
    with client.chat.completions.with_streaming_response.create(
        model="demo", temperature=0, messages=messages, max_tokens=1, extra_body={"foo": 1}
    ) as raw:
        assert raw.headers["x-trefoil-ignored"] == "foo"


def logprobs():
    answer = create(logprobs=True, top_logprobs=4, max_tokens=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 3
    for token in content:
        assert len(token.top_logprobs) == 4
        assert token.logprob == token.top_logprobs[0].logprob <= 0
        assert bytes(token.bytes).decode(errors="replace") == token.token
    joined = b"".join(bytes(token.bytes) for token in content).decode()
    assert joined == answer.choices[0].message.content


def completions():
    ask = dict(model="demo", temperature=0, prompt=facts["ids"], max_tokens=100)
    answer = client.completions.create(**ask, logprobs=2)
    choice = answer.choices[0]
    assert answer.object == "text_completion" and choice.text == facts["reply"], choice
    assert "".join(choice.logprobs.tokens) == facts["reply"]
    assert choice.logprobs.text_offset[0] == 0
    chunks = list(client.completions.create(**ask, stream=True))
    assert "".join(c.choices[0].text for c in chunks if c.choices) == facts["reply"]
    two = client.completions.create(model="demo", prompt=["a", "b"], echo=True, max_tokens=1)
    assert [c.text[0] for c in two.choices] == ["a", "b"]
    bad = openai.BadRequestError
    suffix = lambda: client.completions.create(**ask, suffix="x")
    expect(bad, "unsupported_value", "suffix", suffix)


def embeddings():
    encoder = client.with_options(base_url=facts["embeddings_url"])
    texts = ["a lemon tree", "a fast car"]
    # By default the client asks for base64 and makes numbers of it.
    made = encoder.embeddings.create(model="bert", input=texts)
    plain = encoder.embeddings.create(model="bert", input=texts, encoding_format="float")
    for one, other in zip(made.data, plain.data, strict=True):
        pairs = zip(one.embedding, other.embedding, strict=True)
        assert all(abs(a - b) < 1e-6 for a, b in pairs)


def models():
    listed = [model.id for model in client.models.list()]
    assert listed == ["demo"], listed
    model = client.models.retrieve("demo")
    assert (model.id, model.object, model.owned_by) == ("demo", "model", "trefoil")
    expect(openai.NotFoundError, "model_not_found", "model", lambda: client.models.retrieve("dmo"))


def errors():
    bad = openai.BadRequestError
    expect(bad, "invalid_value", "top_p", lambda: create(top_p=9))
    expect(bad, "invalid_value", "messages", lambda: create(messages=[]))
    expect(bad, "context_length_exceeded", "messages", lambda: create(max_tokens=100_000))
    expect(bad, "unsupported_parameter", "functions", lambda: create(functions=[{"name": "f"}]))
    missing = openai.NotFoundError
    other = client.chat.completions.create
    expect(missing, "model_not_found", "model", lambda: other(model="none", messages=messages))
    expect(missing, "not_found", None, lambda: client.images.generate(model="demo", prompt="x"))

    keyed = client.with_options(base_url=facts["keyed_url"], api_key=facts["key"])
    assert [model.id for model in keyed.models.list()] == ["demo"]
    wrong = keyed.with_options(api_key="wrong")
    expect(openai.AuthenticationError, "invalid_api_key", None, lambda: wrong.models.list())


def busy():
    endless = dict(stream=True, max_tokens=1800, extra_body={"ignore_eos": True})
    running = create(**endless)
    next(iter(running))
    waiting = [threading.Thread(target=lambda: create(max_tokens=1)) for _ in range(2)]
    for thread in waiting:
        thread.start()
    # They need a moment to reach the queue.
    deadline = time.monotonic() + 30
    while True:
        probe = client.with_options(timeout=0.3)
        try:
            probe.chat.completions.create(model="demo", messages=messages, max_tokens=1)
        except openai.RateLimitError as error:
            assert error.code == "queue_full" and error.type == "rate_limit_error", repr(error)
            assert 1 <= int(error.response.headers["retry-after"]) <= 60
            break
        except openai.APITimeoutError:
            pass
        assert time.monotonic() < deadline, "the queue never fills"
    running.close()
    for thread in waiting:
        thread.join(60)
        assert not thread.is_alive(), "a closed stream makes room"
    create(max_tokens=1)


for test in (chat, streaming, logprobs, completions, embeddings, models, errors, busy):
    test()
    print(f"{test.__name__}: ok")
