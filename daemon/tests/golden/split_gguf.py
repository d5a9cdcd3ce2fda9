"""Splits a GGUF file into two parts, as llama.cpp's `gguf-split` does.

`python split_gguf.py FILE FOLDER` writes `FOLDER/model-0000N-of-00002.gguf`.
"""

import sys
from pathlib import Path

import gguf


def main() -> None:
    """Writes both parts."""
    path, folder = map(Path, sys.argv[1:])
    reader = gguf.GGUFReader(path)
    half = len(reader.tensors) // 2
    for number, tensors in enumerate((reader.tensors[:half], reader.tensors[half:]), 1):
        writer = gguf.GGUFWriter(folder / f"model-{number:05}-of-00002.gguf", "llama")
        if number == 1:
            for key in ("attention.head_count", "attention.head_count_kv"):
                writer.add_uint32(
                    f"llama.{key}", reader.fields[f"llama.{key}"].contents()
                )
        writer.add_uint16("split.no", number - 1)
        writer.add_uint16("split.count", 2)
        for tensor in tensors:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


if __name__ == "__main__":
    main()
