"""Structured output and tool calls through the `openai` package, with asynchronous scheduling."""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

from framework import prompts
from framework.client import Client

pytestmark = pytest.mark.parametrize("server", ["async"], indirect=True)

# Hot enough that nothing below happens by chance. With a seed: a model of this size may fill any
# number of tokens with the white space that JSON allows, and an answer that was cut is not valid.
SAMPLED: dict[str, Any] = {"temperature": 1.0, "max_tokens": 200, "seed": 7}
PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "pets": {"type": "array", "items": {"enum": ["cat", "dog"]}, "maxItems": 2},
    },
    "required": ["name", "age", "pets"],
    "additionalProperties": False,
}
JSON_SCHEMA = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON}}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city",
        # vLLM binds the arguments of a strict tool alone.
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"enum": [1, 2, 3]}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
NUM_JSON = 50
CONCURRENCY = 8
# Requests of different kinds share the batches.
SHARING: tuple[dict[str, Any], ...] = (
    {},
    {"seed": 1},
    {"top_p": 0.9, "frequency_penalty": 0.5},
    {"temperature": 0.0},
)


def chat(client: Client, content: str, **parameters: Any) -> dict[str, Any]:
    (choice,) = client.chat(content, **(SAMPLED | parameters))
    return choice


def test_50_json_schemas_at_concurrency_8_are_50_times_valid(client: Client) -> None:
    validator = jsonschema.Draft202012Validator(PERSON)

    def ask(number: int) -> dict[str, Any]:
        choice = chat(
            client,
            f"Describe person {number} as JSON.",
            response_format=JSON_SCHEMA,
            **SHARING[number % len(SHARING)],
        )
        assert choice["finish_reason"] == "stop", choice
        person: dict[str, Any] = json.loads(choice["message"]["content"])
        return person

    with ThreadPoolExecutor(CONCURRENCY) as threads:
        people = list(threads.map(ask, range(NUM_JSON)))
    for person in people:
        validator.validate(person)
    assert len(people) == NUM_JSON
    assert len({person["name"] for person in people}) > 5, "they are drawn, not repeated"


GRAMMAR = 'root ::= "SELECT " column " FROM " table\ncolumn ::= "id" | "age"\ntable ::= "users"'
CONSTRAINTS: dict[str, tuple[dict[str, Any], str]] = {
    "regex": ({"regex": r"[0-9]{4}-[0-9]{2}-[0-9]{2}"}, r"[0-9]{4}-[0-9]{2}-[0-9]{2}"),
    "choice": ({"choice": ["red", "green", "blue"]}, "red|green|blue"),
    "grammar": ({"grammar": GRAMMAR}, "SELECT (id|age) FROM users"),
    "json": ({"json": {"enum": ["x", 7]}}, '"x"|7'),
}


@pytest.mark.parametrize("name", CONSTRAINTS)
def test_structured_outputs(client: Client, name: str) -> None:
    constraint, pattern = CONSTRAINTS[name]
    (choice,) = client.complete(prompts.VARIED[2], structured_outputs=constraint, **SAMPLED)
    assert re.fullmatch(pattern, choice["text"]), choice
    assert choice["finish_reason"] == "stop"


def test_json_object(client: Client) -> None:
    choice = chat(
        client,
        "Answer with a short JSON object.",
        response_format={"type": "json_object"},
        temperature=0.0,
    )
    text = choice["message"]["content"]
    # It may not come to its end; then what there is of it is the beginning of an object.
    if choice["finish_reason"] == "stop":
        assert isinstance(json.loads(text), dict)
    assert re.match(r'\{("|\})', text), choice


def test_structural_tag(client: Client) -> None:
    tag = {
        "type": "tag",
        "begin": "<person>",
        "content": {"type": "json_schema", "json_schema": PERSON},
        "end": "</person>",
    }
    choice = chat(client, "Who?", response_format={"type": "structural_tag", "format": tag})
    found = re.fullmatch("<person>(.*)</person>", choice["message"]["content"], re.DOTALL)
    assert found, choice
    jsonschema.validate(json.loads(found[1]), PERSON)


def test_structured_output_with_every_other_parameter(client: Client) -> None:
    parameters = SAMPLED | {
        "seed": 4,
        "top_p": 0.95,
        "top_k": 100,
        "min_p": 0.001,
        "frequency_penalty": 0.3,
        "presence_penalty": 0.2,
        "repetition_penalty": 1.1,
        "logit_bias": {30: -5},
        "bad_words": ["z"],
        "min_tokens": 4,
        "logprobs": 3,
    }
    pattern = "( [a-z]{2,9}){6}"
    choices = [
        client.complete(prompts.VARIED[1], structured_outputs={"regex": pattern}, **parameters)[0]
        for _ in range(2)
    ]
    assert re.fullmatch(pattern, choices[0]["text"]), choices[0]
    assert choices[0]["token_ids"] == choices[1]["token_ids"]
    assert len(choices[0]["logprobs"]["top_logprobs"]) == len(choices[0]["token_ids"])


# ---- Tools ----


def arguments_of(choice: dict[str, Any]) -> dict[str, Any]:
    """The arguments of the only call."""
    (call,) = choice["message"]["tool_calls"]
    assert call["function"]["name"] == "get_weather"
    arguments: dict[str, Any] = json.loads(call["function"]["arguments"])
    jsonschema.validate(arguments, WEATHER["function"]["parameters"])
    return arguments


@pytest.mark.parametrize(
    "tool_choice", ["required", {"type": "function", "function": {"name": "get_weather"}}], ids=str
)
def test_a_tool_that_has_to_be_called(client: Client, tool_choice: Any) -> None:
    choice = chat(client, "Weather?", tools=[WEATHER], tool_choice=tool_choice)
    arguments_of(choice)


def test_a_tool_that_may_be_called(client: Client) -> None:
    """A model of this size calls no tool by itself, so a regex writes the call for it."""
    arguments = r'\{"city": "(Paris|Rome)", "days": [1-3]\}'
    call = rf'<tool_call>\{{"name": "get_weather", "arguments": {arguments}\}}</tool_call>'
    choice = chat(
        client,
        "Weather?",
        tools=[WEATHER],
        tool_choice="auto",
        structured_outputs={"regex": call},
    )
    assert choice["finish_reason"] == "tool_calls"
    arguments_of(choice)
    without = chat(client, "Weather?", tools=[WEATHER], tool_choice="none", max_tokens=5)
    assert not without["message"]["tool_calls"]
