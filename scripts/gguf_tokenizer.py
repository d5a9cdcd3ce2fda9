"""`tokenizer.json` from the metadata of a GGUF file.

transformers can read GGUF files, but it takes every byte-level BPE for GPT-2's and so loses how
SmolLM2 splits numbers, and it loses that Gemma's prompts begin with `<bos>`. Here the tokenizer
follows the file's own fields.
"""

from pathlib import Path
from typing import Any

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
from transformers import PreTrainedTokenizerFast

from gguf_config import special_token_ids

# GGUF's names for what a token is.
_CONTROL = 3
_USER_DEFINED = 4
# How Qwen splits text, from its `tokenizer.json`.
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Writes the tokenizer that the fields describe, its chat template included.

    Raises:
        ValueError: its kind or its pre-tokenizer is not known here.
    """
    kind = fields["tokenizer.ggml.model"]
    if kind == "gpt2":
        tokenizer = _byte_level(fields)
    elif kind == "llama":
        tokenizer = _sentencepiece(fields)
    else:
        raise ValueError(f"tokenizer is not known: {kind}; known: gpt2, llama")
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    types = fields["tokenizer.ggml.token_type"]
    for wanted, special in ((_CONTROL, True), (_USER_DEFINED, False)):
        chosen = [token for token, kind in zip(tokens, types, strict=True) if kind == wanted]
        # Runs of spaces are merged: the normaliser has replaced them.
        chosen = [token for token in chosen if token.strip(" ")]
        added = [AddedToken(token, special=special, normalized=False) for token in chosen]
        tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    ids = special_token_ids(fields)
    if fields.get("tokenizer.ggml.add_bos_token", False):
        bos = tokens[ids["bos_token_id"]]
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A",
            pair=f"{bos} $A {bos} $B:1",
            special_tokens=[(bos, ids["bos_token_id"])],
        )
    special_tokens = {name.removesuffix("_id"): tokens[i] for name, i in ids.items()}
    unknown = fields.get("tokenizer.ggml.unknown_token_id")
    if unknown is not None:
        special_tokens["unk_token"] = tokens[unknown]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=fields[f"{fields['general.architecture']}.context_length"],
        chat_template=fields.get("tokenizer.chat_template"),
        **special_tokens,
    ).save_pretrained(folder)


def _byte_level(fields: dict[str, Any]) -> Tokenizer:
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=_vocab(fields["tokenizer.ggml.tokens"]), merges=merges))
    tokenizer.pre_tokenizer = _pre_tokenizer(fields["tokenizer.ggml.pre"])
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    if name in ("qwen2", "deepseek-r1-qwen"):
        split = pre_tokenizers.Split(Regex(_QWEN2), behavior="isolated")
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([split, byte_level])
    raise ValueError(f"pre-tokenizer is not known: {name}; known: smollm, qwen2, deepseek-r1-qwen")


def _sentencepiece(fields: dict[str, Any]) -> Tokenizer:
    """A BPE whose merges are what the pieces' scores imply, as Gemma has it."""
    if fields.get("tokenizer.ggml.add_space_prefix", True):
        raise ValueError("a sentencepiece tokenizer that puts a space before the text is not known")
    # GGUF writes a run of spaces as spaces, and says nothing of its rank: the first.
    pieces = [_piece(token) for token in fields["tokenizer.ggml.tokens"]]
    scores = [
        0.0 if set(piece) == {"▁"} and len(piece) > 1 else score
        for piece, score in zip(pieces, fields["tokenizer.ggml.scores"], strict=True)
    ]
    types = fields["tokenizer.ggml.token_type"]
    vocab = _vocab(pieces)
    never_merged = {
        piece
        for piece, kind in zip(pieces, types, strict=True)
        if kind == _CONTROL or (kind == _USER_DEFINED and piece.strip("▁"))
    }
    merges = _merges(vocab, dict(zip(pieces, scores, strict=True)), never_merged)
    unknown = pieces[fields["tokenizer.ggml.unknown_token_id"]]
    bpe = models.BPE(
        vocab=vocab, merges=merges, unk_token=unknown, fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
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
