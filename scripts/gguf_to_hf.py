"""Converts a GGUF file of the `llama` architecture into a Hugging Face folder in bfloat16.

transformers can read GGUF files, but it takes every byte-level BPE for GPT-2's and so loses how
SmolLM2 splits numbers. Here the tokenizer follows the file's own `tokenizer.ggml.pre`.
"""

from pathlib import Path
from typing import Any

import gguf
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

# GGUF's name for a control token: it stands for itself and is never split.
TOKEN_TYPE_CONTROL = 3


def convert(gguf_path: Path, folder: Path) -> None:
    """Writes config, weights, tokenizer and chat template into `folder`.

    Raises:
        ValueError: the file's architecture or pre-tokenizer is not known here; a guess would
            give a model that runs and answers wrongly.
    """
    reader = gguf.GGUFReader(gguf_path)
    fields = {key: field.contents() for key, field in reader.fields.items()}
    if fields["general.architecture"] != "llama":
        raise ValueError(f"architecture is not llama: {fields['general.architecture']}")
    model = LlamaForCausalLM(llama_config(fields))
    load_weights(model, reader)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(**special_token_ids(fields))
    model.save_pretrained(folder)
    save_tokenizer(fields, folder)


def special_token_ids(fields: dict[str, Any]) -> dict[str, int]:
    """Returns the ids of the begin, end and padding tokens under their names in `config.json`."""
    names = {"bos": "bos", "eos": "eos", "pad": "padding"}
    return {
        f"{hf}_token_id": fields[f"tokenizer.ggml.{name}_token_id"] for hf, name in names.items()
    }


def llama_config(fields: dict[str, Any]) -> LlamaConfig:
    """Returns the model's configuration from the file's `llama.*` fields."""

    def field(name: str) -> Any:
        return fields[f"llama.{name}"]

    # The file has a float32 of the decimal number that the checkpoint was trained with.
    norm_eps = float(f"{field('attention.layer_norm_rms_epsilon'):.3g}")
    return LlamaConfig(
        vocab_size=len(fields["tokenizer.ggml.tokens"]),
        hidden_size=field("embedding_length"),
        intermediate_size=field("feed_forward_length"),
        num_hidden_layers=field("block_count"),
        num_attention_heads=field("attention.head_count"),
        num_key_value_heads=field("attention.head_count_kv"),
        head_dim=field("rope.dimension_count"),
        max_position_embeddings=field("context_length"),
        rms_norm_eps=norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": field("rope.freq_base")},
        tie_word_embeddings=True,
        dtype=torch.bfloat16,
        **special_token_ids(fields),
    )


def load_weights(model: LlamaForCausalLM, reader: gguf.GGUFReader) -> None:
    """Fills `model` with the dequantised tensors of the file.

    Raises:
        KeyError: the file lacks a tensor of the model.
        ValueError: the file has an output layer of its own, apart from the embedding.
    """
    config = model.config
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if "output.weight" in tensors:
        raise ValueError("output layer is not tied to the embedding")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            tensor = tensors[names.get_name(name, try_suffixes=(".weight",))]
            weight = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy())
            projection = name.split(".")[-2]
            if projection in heads:
                weight = rotate_halves(weight, heads[projection])
            parameter.copy_(weight)


def rotate_halves(weight: torch.Tensor, num_heads: int) -> torch.Tensor:
    """Reorders a projection from GGUF's interleaved rotary pairs to transformers' two halves.

    Shapes:
        weight: `[num_heads * head_dim, hidden_size]`, as is the result.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(num_heads, rows // num_heads // 2, 2, columns)
    return pairs.transpose(1, 2).reshape(rows, columns)


def pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    """Returns the pre-tokenizer that GGUF calls `name`.

    Raises:
        ValueError: the name is not known here.
    """
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        return pre_tokenizers.Sequence([digits, byte_level])
    raise ValueError(f"pre-tokenizer is not known: {name}")


def save_tokenizer(fields: dict[str, Any], folder: Path) -> None:
    """Writes the byte-level BPE tokenizer that the fields describe, its chat template included."""
    tokens: list[str] = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizer(fields["tokenizer.ggml.pre"])
    tokenizer.decoder = decoders.ByteLevel()
    token_types = zip(tokens, fields["tokenizer.ggml.token_type"], strict=True)
    control = [token for token, token_type in token_types if token_type == TOKEN_TYPE_CONTROL]
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in control])

    special = {name[: -len("_id")]: tokens[i] for name, i in special_token_ids(fields).items()}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token=tokens[fields["tokenizer.ggml.unknown_token_id"]],
        clean_up_tokenization_spaces=False,
        model_max_length=fields["llama.context_length"],
        chat_template=fields["tokenizer.chat_template"],
        **special,
    ).save_pretrained(folder)
