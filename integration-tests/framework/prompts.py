"""What is asked: short and long, prose, code, numbers, other scripts."""

from typing import Final

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
