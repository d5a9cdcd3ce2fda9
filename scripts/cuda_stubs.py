"""Stands in for the CUDA libraries that PyTorch's Linux wheel links with.

The wheel does not load without them, and they take 3 GB. Nothing calls them here: the frontend
only schedules, and metald owns the GPU. So one small library exports every symbol that PyTorch
wants, under every library name that it wants; PyTorch then finds no CUDA device.

`libcuda.so.1`, the driver, is never stubbed: programs take its presence for a driver.
"""

import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

STUB_NAME = "libmetal_rpc_cuda_stub.so"
CUDA_LIBRARY = re.compile(r"lib(cu|nccl|nv)")
CUDA_SYMBOL = re.compile(r"(__)?(cu|p?nccl|nv)")
DRIVER_LIBRARY = "libcuda.so.1"

# A call that is not listed answers 100, which is cudaErrorNoDevice and a failure elsewhere too.
DEFINITIONS = {
    "cudaGetDeviceCount": "int cudaGetDeviceCount(int *n) { *n = 0; return 100; }",
    "cudaGetLastError": "int cudaGetLastError(void) { return 0; }",
    "cudaPeekAtLastError": "int cudaPeekAtLastError(void) { return 0; }",
    "__cudaRegisterFatBinary": "void *__cudaRegisterFatBinary(void) { static void *h; return &h; }",
}
TEXT_FUNCTION = re.compile(r"(ErrorString|ErrorName|StatusString|LastError)$")


def readelf(option: str, library: Path) -> list[str]:
    """Returns the lines that `readelf -W OPTION LIBRARY` prints."""
    command = ["readelf", "-W", option, str(library)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()


def needed_libraries(library: Path) -> set[str]:
    """Returns the names of the CUDA libraries that `library` is linked with."""
    names = {m[1] for line in readelf("-d", library) if (m := re.search(r"NEEDED.*\[(.+)\]", line))}
    return {name for name in names if CUDA_LIBRARY.match(name) and name != DRIVER_LIBRARY}


def version_owners(library: Path) -> dict[str, str]:
    """Returns the library that is to provide each symbol version, such as `libnvrtc.so.13`."""
    owners: dict[str, str] = {}
    owner = ""
    for line in readelf("-V", library):
        if match := re.search(r"File: (\S+)  Cnt:", line):
            owner = match[1]
        elif match := re.search(r"Name: (\S+)  Flags: .*Version: \d+", line):
            owners[match[1]] = owner
    return owners


def wanted_symbols(library: Path, stubbed: set[str]) -> set[tuple[str, str, str]]:
    """Returns (name, version, ELF type) of what `library` expects from the `stubbed` libraries.

    Only its name tells where a symbol without a version is expected from.
    """
    owners = version_owners(library)
    wanted = set()
    for line in readelf("--dyn-syms", library):
        fields = line.split()
        if len(fields) < 8 or fields[6] != "UND" or fields[4] == "WEAK":
            continue
        name, _, version = fields[7].partition("@")
        if owners.get(version) in stubbed if version else CUDA_SYMBOL.match(name):
            wanted.add((name, version, fields[3]))
    return wanted


def exported_symbols(library: Path) -> set[str]:
    """Returns the names that `library` defines."""
    lines = (line.split() for line in readelf("--dyn-syms", library))
    return {f[7].partition("@")[0] for f in lines if len(f) >= 8 and f[6] not in ("UND", "Ndx")}


def definition(name: str, elf_type: str) -> str:
    """Returns the C text that defines one symbol."""
    if name in DEFINITIONS:
        return DEFINITIONS[name]
    if elf_type == "OBJECT":
        return f"char {name}[4096];"
    if TEXT_FUNCTION.search(name):
        return f'const char *{name}(void) {{ return "CUDA stub: no device"; }}'
    return f"long {name}(void) {{ return 100; }}"


def write_stubs(folder: Path) -> list[str]:
    """Builds the stub in `folder`, where the shared libraries of PyTorch lie, and links its names.

    Returns:
        The library names that now lead to the stub. A name that is present already is kept.

    Raises:
        subprocess.CalledProcessError: gcc or readelf failed.
    """
    libraries = [p for p in sorted(folder.glob("*.so*")) if not p.is_symlink()]
    libraries = [p for p in libraries if p.name != STUB_NAME]
    present = {path.name for path in libraries}
    names = set().union(*(needed_libraries(path) for path in libraries)) - present
    users = [path for path in libraries if needed_libraries(path) & names]
    exported = set().union(*(exported_symbols(path) for path in libraries))

    symbols: dict[str, str] = {}
    versions: dict[str, set[str]] = defaultdict(set)
    for name, version, elf_type in set().union(*(wanted_symbols(p, names) for p in users)):
        if name not in exported:
            symbols[name] = elf_type
            if version:
                versions[version].add(name)

    source = "\n".join(definition(name, kind) for name, kind in sorted(symbols.items()))
    version_script = "".join(
        f"{version} {{ global: {' '.join(f'{name};' for name in sorted(members))} }};\n"
        for version, members in sorted(versions.items())
    )
    with tempfile.TemporaryDirectory() as work:
        Path(work, "stub.c").write_text(source)
        Path(work, "stub.map").write_text(version_script)
        flags = ["-shared", "-fPIC", "-w", "-fno-builtin", "-nostdlib", f"-Wl,-soname,{STUB_NAME}"]
        flags += ["-Wl,--version-script=stub.map"] if versions else []
        command = ["gcc", *flags, "-o", str(folder.resolve() / STUB_NAME), "stub.c"]
        subprocess.run(command, cwd=work, check=True)
    for name in names:
        path = folder / name
        path.unlink(missing_ok=True)
        path.symlink_to(STUB_NAME)
    return sorted(names)


if __name__ == "__main__":
    print("stubs:", *write_stubs(Path(sys.argv[1])))
