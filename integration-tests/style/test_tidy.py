"""The boundaries of the architecture, checked in the text of every committed file."""

import re
import subprocess
from pathlib import Path

import pytest

from framework import paths

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 70
# What may name what, as a pattern, the files that may, and whose business it is.
BOUNDARIES = [
    (
        r"\bzeromq::|\btokio::net\b",
        "rs",
        r"daemon/src/socket/.*|daemon/tests/zeromq\.rs",
        "sockets belong to daemon/src/socket/",
    ),
    (r"\bmlx_sys\b", "rs", r"(kernels|scripts/xtask)/.*", "MLX's C interface belongs to kernels"),
    (r"\brmp_serde\b", "rs", r"protocol/src/codec\.rs", "msgpack belongs to protocol/src/codec.rs"),
    (
        r"\bunsafe\b (\{|fn|impl)|\bunsafe_code\b.*allow",
        "rs",
        r"kernels/.*|protocol/tests/counting_allocator/mod\.rs",
        "unsafe code belongs to kernels",
    ),
    (
        r"\buse (metald|metal_rpc_kernels|mlx_rs|zeromq|tokio)\b",
        "rs",
        r"(daemon|kernels|scripts/xtask)/.*",
        "protocol knows no other part",
    ),
    (
        r"^\s*(import zmq|from zmq)",
        "py",
        r"python-shim/(src/vllm_metal_rpc/client\.py|tests/.*)|integration-tests/framework/frontend\.py",
        "ZeroMQ belongs to one file of the shim",
    ),
    (
        r"^\s*(import vllm_metal_rpc|from vllm_metal_rpc)",
        "py",
        r"python-shim/.*|scripts/gguf_to_hf\.py",
        "these tests know the product by its interfaces alone",
    ),
]
# Paths of one machine, and notes to oneself.
FORBIDDEN = [r"/(root|home|Users|work)/\w", r"\bTODO\b", r"\bFIXME\b", r"\bXXX\b", r"\bHACK\b"]
TEXT = {".rs", ".py", ".md", ".toml", ".sh", ".yml", ".yaml", ".h", ".cpp", ".metal", ".kh", ""}


def committed(*suffixes: str) -> list[Path]:
    """Committed files with one of the suffixes, as paths inside the repository."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=paths.REPOSITORY, capture_output=True, text=True, check=True
    )
    files = [Path(name) for name in listed.stdout.split("\0") if name]
    return [
        path for path in files if path.suffix in suffixes and (paths.REPOSITORY / path).is_file()
    ]


def lines_of(path: Path) -> list[str]:
    """The lines of a committed file."""
    return (paths.REPOSITORY / path).read_text().splitlines()


@pytest.mark.parametrize(("pattern", "language", "home", "rule"), BOUNDARIES)
def test_boundary(pattern: str, language: str, home: str, rule: str) -> None:
    trespassers = [
        f"`{line.strip()}` in {path}:{number}"
        for path in committed(f".{language}")
        if not re.fullmatch(home, str(path))
        for number, line in enumerate(lines_of(path), start=1)
        if re.search(pattern, line) and not line.lstrip().startswith(("//", "#", '"', "r"))
    ]
    assert not trespassers, f"{rule}: {trespassers}"


def test_no_file_is_longer_than_a_sitting() -> None:
    long = {
        str(path): count
        for path in committed(".rs", ".py", ".kh", ".cpp", ".h")
        if (count := len(lines_of(path))) > MAX_FILE_LINES
    }
    assert not long, f"split by concept: {long}"


def test_no_function_is_longer_than_a_screen() -> None:
    # A test's table of cases may be longer: it is data.
    sources = [p for p in committed(".rs") if "tests" not in p.with_suffix("").parts]
    long = []
    for path in sources:
        start, indent = 0, ""
        for number, line in enumerate(lines_of(path), start=1):
            if match := re.match(r"(\s*)(pub(\(\w+\))? )?(const |unsafe )*fn \w+", line):
                start, indent = number, match.group(1)
            elif start and line == f"{indent}}}":
                if number - start >= MAX_FUNCTION_LINES:
                    long.append(f"{path}:{start} has {number - start + 1} lines")
                start = 0
    assert not long, long


def test_no_forbidden_words() -> None:
    pattern = re.compile("|".join(FORBIDDEN))
    this = Path(__file__).relative_to(paths.REPOSITORY)
    found = [
        f"{path}:{number}: {line.strip()}"
        for path in committed(*TEXT)
        if path != this
        for number, line in enumerate(lines_of(path), start=1)
        if pattern.search(line)
    ]
    assert not found, found


def test_the_table_of_faults_names_tests_that_exist() -> None:
    readme = (paths.REPOSITORY / "daemon" / "README.md").read_text()
    section = readme.partition("## Faults")[2].partition("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][1:]
    named = [re.findall(r"`([\w/.-]+\.(?:py|rs))::(\w+)`", row) for row in rows]
    assert rows, "the table is gone"
    assert all(named), "a row names no test"
    missing = [
        f"{path}::{name}"
        for path, name in {test for tests in named for test in tests}
        if not (paths.REPOSITORY / path).is_file()
        or not re.search(rf"\b(def|fn) {name}\b", (paths.REPOSITORY / path).read_text())
    ]
    assert not missing, f"the table of faults in daemon/README.md names {missing}"


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path)
        for path in committed(".rs", ".py")
        if lines_of(path)
        and not any(line.startswith(("//!", '"""', 'r"""')) for line in lines_of(path)[:5])
    ]
    assert not silent, silent


def test_the_harness_sees_the_repository() -> None:
    """The canary: an empty list of files would pass every test above."""
    assert Path("protocol/src/codec.rs") in committed(".rs")
    assert Path("integration-tests/style/test_tidy.py") in committed(".py")
