"""Makes a GGUF file of another format: `llama_cpp_quantize.py SOURCE TARGET FORMAT`."""

import ctypes
import os
import sys

import llama_cpp as llama

FORMATS = {
    "f16": llama.LLAMA_FTYPE_MOSTLY_F16,
    "bf16": llama.LLAMA_FTYPE_MOSTLY_BF16,
    "q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
    "q4_1": llama.LLAMA_FTYPE_MOSTLY_Q4_1,
}


def main() -> None:
    """Writes the file beside its place and renames it."""
    source, target, name = sys.argv[1:]
    params = llama.llama_model_quantize_default_params()
    params.ftype = FORMATS[name]
    params.nthread = 2
    # The only weights at hand have 4 bits.
    params.allow_requantize = True
    partial = f"{target}.partial"
    status = llama.llama_model_quantize(source.encode(), partial.encode(), ctypes.byref(params))
    if status != 0:
        raise SystemExit(f"error: llama_model_quantize returned {status}")
    os.replace(partial, target)


if __name__ == "__main__":
    main()
