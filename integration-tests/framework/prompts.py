"""What is asked: short and long, prose, code, numbers, other scripts."""

from typing import Any, Final

VARIED: Final = (
    "The capital of France is",
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return",
    "Once upon a time, in a village at the foot of the mountains, there lived a clockmaker who",
    "1, 2, 4, 8, 16, 32,",
    "Q: Why is the sky blue?\nA:",
    "Die Hauptstadt von Deutschland ist Berlin, und die größte Stadt in Österreich ist",
    '{"name": "Ada", "born": 1815, "languages": ["',
    "The three laws of thermodynamics can be summarised as follows. First,",
)
CHATS: Final = (
    "Name three primary colours.",
    "Write one sentence about the sea.",
    "What is 17 + 25?",
    "Say hello in Spanish.",
)
# Parameters whose answers are a function of the prompt alone, though they use all that a request
# remembers: its seed, its history, its grammar.
_LONG: Final[dict[str, Any]] = {"max_tokens": 48, "ignore_eos": True}
SAMPLED: Final[tuple[dict[str, Any], ...]] = (
    _LONG | {"temperature": 0.0, "logprobs": 3},
    _LONG | {"temperature": 0.8, "seed": 17},
    _LONG | {"temperature": 0.9, "seed": 18, "top_p": 0.9, "top_k": 40, "min_p": 0.02},
    _LONG | {"temperature": 0.0, "frequency_penalty": 0.7, "presence_penalty": 0.3},
    _LONG | {"temperature": 0.7, "seed": 19, "repetition_penalty": 1.3, "logprobs": 2},
    _LONG | {"temperature": 0.0, "bad_words": [" the", " of"], "logit_bias": {"30": -3.0}},
    {
        "temperature": 1.0,
        "seed": 20,
        "max_tokens": 48,
        "structured_outputs": {"regex": "( [a-z]{2,9}){12}"},
    },
)
_PARAGRAPH: Final = (
    "The lighthouse stood on a narrow spit of rock, {number} steps above the water. Every evening "
    "its keeper climbed to the lamp, wiped the salt from the glass and wrote the weather into the "
    "book: wind, cloud, the height of the waves and the ships that passed. "
)


def long(num_paragraphs: int) -> str:
    """A prompt of about 55 tokens a paragraph, none of which repeats exactly."""
    return "".join(_PARAGRAPH.format(number=100 + 7 * n) for n in range(num_paragraphs))


def many(count: int) -> list[str]:
    """Prompts of different lengths, no two alike."""
    return [f"Note {index}. {VARIED[index % len(VARIED)]}" for index in range(count)]
