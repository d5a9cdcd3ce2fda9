"""`complete.py URL MODEL PROMPT`: prints one greedy completion by an OpenAI-compatible server."""

import json
import sys
import urllib.request

MAX_TOKENS = 48
TIMEOUT_S = 120


def complete(url: str, model: str, prompt: str) -> str:
    """Returns the text that `model` at `url` continues `prompt` with.

    Raises:
        urllib.error.URLError: the server does not answer, or refuses the request.
    """
    body = {"model": model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"{url}/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:
        text: str = json.load(response)["choices"][0]["text"]
    return text


if __name__ == "__main__":
    print(complete(*sys.argv[1:]))
