"""What is measured, as JSON lines, and what is said meanwhile."""

import json
import sys
import time
from pathlib import Path
from typing import Any


def say(text: str) -> None:
    """Prints progress; files are for the results."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Records:
    """The measurements of one run. Each is in the file as soon as it is made."""

    def __init__(self, path: Path, *, append: bool = False) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        if not (append and path.is_file()):
            path.write_text("")
        self.lines: list[dict[str, Any]] = [
            json.loads(line) for line in path.read_text().splitlines()
        ]

    def add(self, part: str, **fields: Any) -> dict[str, Any]:
        """Adds a line."""
        line = {"part": part, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **fields}
        self.lines.append(line)
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        return line

    def of(self, part: str, **fields: Any) -> list[dict[str, Any]]:
        """The lines of a part that have these fields."""
        return [
            line
            for line in self.lines
            if line["part"] == part and all(line.get(k) == v for k, v in fields.items())
        ]
