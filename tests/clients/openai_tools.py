"""Forms, tools and responses through the official Python client.

Run by the end-to-end tests, with JSON on standard input: url of a server of the demo model, prompt
and reply (text of the greedy answer).
"""

import json
import sys

import openai

facts = json.load(sys.stdin)
client = openai.OpenAI(base_url=facts["url"], api_key="none", max_retries=0)
messages = [{"role": "user", "content": facts["prompt"]}]
person = {
    "type": "object",
    "required": ["name", "age"],
    "additionalProperties": False,
    "properties": {
        "name": {"type": "string", "maxLength": 12},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
    },
}


def valid(text):
    value = json.loads(text)
    assert set(value) == {"name", "age"}, value
    assert isinstance(value["name"], str) and len(value["name"]) <= 12, value
    assert isinstance(value["age"], int) and 0 <= value["age"] <= 150, value
    return value


def schema():
    form = {"type": "json_schema", "json_schema": {"name": "p", "strict": True, "schema": person}}
    answer = client.chat.completions.create(
        model="demo", messages=messages, response_format=form, n=3, seed=5
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        valid(choice.message.content)
    try:
        bad = {"name": "p", "strict": True, "schema": {"type": "object", "not": {}}}
        client.chat.completions.create(
            model="demo",
            messages=messages,
            response_format={"type": "json_schema", "json_schema": bad},
        )
    except openai.BadRequestError as error:
        assert (error.code, error.param) == ("unsupported_schema", "/not"), repr(error)
    else:
        raise AssertionError("expected BadRequestError")


def tools():
    function = {"name": "enrol", "description": "Enrols a person.", "parameters": person}
    tool = {"type": "function", "function": {**function, "strict": True}}
    request = dict(
        model="demo",
        messages=messages,
        tools=[tool],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=6,
    )
    answer = client.chat.completions.create(**request)
    choice = answer.choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", None), choice
    [call] = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "enrol")
    valid(call.function.arguments)
    with client.chat.completions.stream(**request) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion().choices[0]
    assert done[0].arguments == call.function.arguments
    assert final.message.tool_calls[0].function.arguments == call.function.arguments
    # The result goes back with the call as the client holds it.
    again = messages + [
        choice.message,
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    answer = client.chat.completions.create(
        model="demo", messages=again, tools=[tool], tool_choice="none", max_tokens=5
    )
    assert answer.choices[0].message.tool_calls is None


def responses():
    answer = client.responses.create(model="demo", input=facts["prompt"], temperature=0)
    assert answer.output_text == facts["reply"], answer
    assert (answer.status, answer.error) == ("completed", None)
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    events = list(
        client.responses.create(model="demo", input=facts["prompt"], temperature=0, stream=True)
    )
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[0].type == "response.created" and events[-1].type == "response.completed"
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == facts["reply"] == events[-1].response.output_text
    with client.responses.stream(
        model="demo", input=facts["prompt"], temperature=0
    ) as stream:
        for _ in stream:
            pass
        assert stream.get_final_response().output_text == facts["reply"]
    cut = client.responses.create(model="demo", input=facts["prompt"], max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def responses_forms():
    form = {"type": "json_schema", "name": "p", "strict": True, "schema": person}
    answer = client.responses.create(
        model="demo", input="Who?", text={"format": form}, extra_body={"seed": 7}
    )
    valid(answer.output_text)
    tool = {"type": "function", "name": "enrol", "strict": True, "parameters": person}
    answer = client.responses.create(
        model="demo",
        instructions="Enrol them.",
        input="Who?",
        tools=[tool],
        tool_choice={"type": "function", "name": "enrol"},
        parallel_tool_calls=False,
        extra_body={"seed": 8},
    )
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "enrol"), call
    valid(call.arguments)
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
    client.responses.create(
        model="demo",
        input=[{"role": "user", "content": "Who?"}, call, result],
        tools=[tool],
        max_output_tokens=3,
    )


for test in (schema, tools, responses, responses_forms):
    test()
    print(f"{test.__name__}: ok")
