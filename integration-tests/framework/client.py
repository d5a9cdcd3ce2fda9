"""The `openai` package, as a user of the server has it."""

import inspect
from typing import Any

from openai import OpenAI

from framework.server import REQUEST_TIMEOUT_S, Server, messages


class Client:
    """Asks one server; parameters that OpenAI does not have go into the body as they are.

    Errors are those of the package: `openai.BadRequestError` is an HTTP 400.
    """

    def __init__(self, server: Server) -> None:
        self.openai = OpenAI(
            base_url=f"{server.url}/v1",
            api_key="none",
            max_retries=0,
            timeout=REQUEST_TIMEOUT_S,
        )

    def complete(self, prompt: Any, **parameters: Any) -> list[dict[str, Any]]:
        """The choices of `/v1/completions`, with their token ids."""
        create = self.openai.completions.create
        return _choices(create(model="model", prompt=prompt, **_arguments(create, parameters)))

    def chat(self, content: str, **parameters: Any) -> list[dict[str, Any]]:
        """The choices of `/v1/chat/completions`, with their token ids."""
        create = self.openai.chat.completions.create
        arguments = _arguments(create, parameters) | {"messages": messages(content)}
        return _choices(create(model="model", **arguments))


def _arguments(create: Any, parameters: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(create).parameters
    arguments = {name: value for name, value in parameters.items() if name in known}
    extra = {name: value for name, value in parameters.items() if name not in known}
    return arguments | {"extra_body": {"return_token_ids": True} | extra}


def _choices(answer: Any) -> list[dict[str, Any]]:
    dumped = answer.model_dump()
    # Of the prompt, and so beside the choices in one of the two endpoints.
    told = {name: dumped[name] for name in ("prompt_logprobs",) if dumped.get(name) is not None}
    return [told | choice for choice in dumped["choices"]]
