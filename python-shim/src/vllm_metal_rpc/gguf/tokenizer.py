"""`tokenizer.json` from the metadata of a GGUF file.

transformers can read GGUF files, but it takes a byte-level BPE that it does not know for GPT-2's,
and so loses how SmolLM2 splits numbers, and it loses that prompts begin with `<bos>`. Here the
tokenizer follows the file's own fields.

Source: llama.cpp `src/llama-vocab.cpp`.
"""

from pathlib import Path
from typing import Any, Final

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from vllm_metal_rpc.gguf.config import special_token_ids
from vllm_metal_rpc.gguf.file import GgufError, GgufFile

# GGUF's names for what a token is.
_CONTROL: Final = 3
_USER_DEFINED: Final = 4
_BYTE: Final = 6
# Vocabularies whose tokens are found whole before anything is merged, and whose prompts begin with
# a token even if the file does not say so.
_IGNORE_MERGES: Final = ("llama3", "llama-v3", "llama-bpe", "falcon3", "tekken")
# How text is split before it is merged, where transformers does not know: in single digits, then
# as GPT-2 does.
_SINGLE_DIGITS: Final = ("smollm", "starcoder", "refact", "command-r")
_GPT2: Final = ("gpt-2", "phi-2", "olmo", "mpt", "granite-docling")


def save_tokenizer(file: GgufFile, folder: Path) -> None:
    """Writes the tokenizer that a file describes, its chat template included.

    Raises:
        GgufError: Its kind or its pre-tokenizer is not known here.
    """
    from transformers import PreTrainedTokenizerFast

    kind = file.values["tokenizer.ggml.model"]
    if kind == "gpt2":
        tokenizer = _byte_level(file)
    elif kind == "llama":
        tokenizer = _sentencepiece(file)
    else:
        raise GgufError(
            f"{file.path}: tokenizer {kind} is not supported; supported: gpt2, llama; "
            "give another one with --tokenizer"
        )
    _add_special_tokens(tokenizer, file)
    ids = special_token_ids(file)
    tokens = file.tokens
    if _begins_with_bos(file, kind):
        bos = tokens[ids["bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B:1",
            special_tokens=[(bos, ids["bos_token_id"])],
        )
    special_tokens = {name.removesuffix("_id"): tokens[i] for name, i in ids.items()}
    unknown = file.values.get("tokenizer.ggml.unknown_token_id")
    if unknown is not None:
        special_tokens["unk_token"] = tokens[unknown]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=file.field("context_length"),
        chat_template=file.values.get("tokenizer.chat_template"),
        **special_tokens,
    ).save_pretrained(folder)


def _begins_with_bos(file: GgufFile, kind: str) -> bool:
    if "tokenizer.ggml.bos_token_id" not in file.values:
        return False
    said = file.values.get("tokenizer.ggml.add_bos_token")
    if said is not None:
        return bool(said)
    return kind == "llama" or file.values.get("tokenizer.ggml.pre") in _IGNORE_MERGES


def _add_special_tokens(tokenizer: Tokenizer, file: GgufFile) -> None:
    types = file.values["tokenizer.ggml.token_type"]
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        chosen = [token for token, kind in zip(file.tokens, types, strict=True) if kind == wanted]
        # Runs of spaces are merged: the normaliser has replaced them.
        chosen = [token for token in chosen if token.strip(" ")]
        added = [AddedToken(token, special=special, normalized=False) for token in chosen]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)


def _byte_level(file: GgufFile) -> Tokenizer:
    merges = [(left, right) for left, _, right in (m.partition(" ") for m in file.merges)]
    pre = str(file.values.get("tokenizer.ggml.pre", "gpt-2"))
    tokenizer = Tokenizer(
        models.BPE(vocab=_vocab(file.tokens), merges=merges, ignore_merges=pre in _IGNORE_MERGES)
    )
    tokenizer.pre_tokenizer = _pre_tokenizer(file, pre)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(file: GgufFile, name: str) -> pre_tokenizers.PreTokenizer:
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    if name in _SINGLE_DIGITS:
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    if name in _GPT2:
        return gpt2
    if name in GGUF_PRE_TOKENIZER_SPLITS:
        regex = Regex(GGUF_PRE_TOKENIZER_SPLITS[name])
        split = pre_tokenizers.Split(regex, behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, byte_level])
    known = ", ".join((*_SINGLE_DIGITS, *_GPT2, *GGUF_PRE_TOKENIZER_SPLITS))
    raise GgufError(
        f"{file.path}: pre-tokenizer {name} is not supported; supported: {known}; "
        "give another tokenizer with --tokenizer"
    )


def _sentencepiece(file: GgufFile) -> Tokenizer:
    """A BPE whose merges are what the pieces' scores imply."""
    # GGUF writes a run of spaces as spaces, and says nothing of its rank: the first.
    pieces = [_piece(token) for token in file.tokens]
    scores = [
        0.0 if set(piece) == {"▁"} and len(piece) > 1 else score
        for piece, score in zip(pieces, file.values["tokenizer.ggml.scores"], strict=True)
    ]
    types = file.values["tokenizer.ggml.token_type"]
    vocab = _vocab(pieces)
    never_merged = {
        piece
        for piece, kind in zip(pieces, types, strict=True)
        if kind in (_CONTROL, _BYTE) or (kind == _USER_DEFINED and piece.strip("▁"))
    }
    merges = _merges(vocab, dict(zip(pieces, scores, strict=True)), never_merged)
    unknown = pieces[file.values.get("tokenizer.ggml.unknown_token_id", 0)]
    bpe = models.BPE(
        vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    spaces: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if file.values.get("tokenizer.ggml.add_space_prefix", True):
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        spaces.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(spaces)
    return tokenizer


def _piece(token: str) -> str:
    return token.replace(" ", "▁") if not token.strip(" ") else token


def _vocab(tokens: list[str]) -> dict[str, int]:
    return {token: token_id for token_id, token in enumerate(tokens)}


def _merges(
    vocab: dict[str, int], scores: dict[str, float], never_merged: set[str]
) -> list[tuple[str, str]]:
    """Returns all ways to make a piece of two, the best pieces first."""
    ranked = []
    for piece, score in scores.items():
        if piece in never_merged:
            continue
        for end in range(1, len(piece)):
            left, right = piece[:end], piece[end:]
            if left in vocab and right in vocab and not {left, right} & never_merged:
                ranked.append((-score, vocab[left], vocab[right], left, right))
    ranked.sort()
    return [(left, right) for _, _, _, left, right in ranked]
