"""The first Qwen in torch, for want of one in transformers.

Written from the published `modeling_qwen.py` (Qwen/Qwen-7B) for contexts within `seq_length`, where
its dynamic NTK and its logn scaling do nothing. Modules have the names of its checkpoints.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional


class RMSNorm(nn.Module):
    """`x / sqrt(mean(x^2) + eps) * weight`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


class QWenAttention(nn.Module):
    """Attention of as many key heads as query heads."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.head_dim = config.kv_channels
        width = self.num_heads * self.head_dim
        self.c_attn = nn.Linear(config.hidden_size, 3 * width)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=False)
        pairs = torch.arange(0, self.head_dim, 2).float() / self.head_dim
        self.inv_freq = 1.0 / config.rotary_emb_base**pairs

    def turn(self, x: torch.Tensor) -> torch.Tensor:
        """Rotary embedding of `[batch, tokens, heads, head_dim]`."""
        angles = torch.outer(torch.arange(x.shape[1]).float(), self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)[None, :, None, :]
        first, second = x.chunk(2, dim=-1)
        return x * angles.cos() + torch.cat((-second, first), dim=-1) * angles.sin()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape
        query, key, value = (
            part.view(batch, tokens, self.num_heads, self.head_dim)
            for part in self.c_attn(x).chunk(3, dim=-1)
        )
        query, key = self.turn(query).transpose(1, 2), self.turn(key).transpose(1, 2)
        scores = query @ key.transpose(-1, -2) / self.head_dim**0.5
        future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
        weights = scores.masked_fill(future, float("-inf")).softmax(-1)
        attended = (weights @ value.transpose(1, 2)).transpose(1, 2)
        return self.c_proj(attended.reshape(batch, tokens, -1))


class QWenMLP(nn.Module):
    """`c_proj(w1(x) * silu(w2(x)))`."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        width = config.intermediate_size // 2
        self.w1 = nn.Linear(config.hidden_size, width, bias=False)
        self.w2 = nn.Linear(config.hidden_size, width, bias=False)
        self.c_proj = nn.Linear(width, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(self.w1(x) * functional.silu(self.w2(x)))


class QWenBlock(nn.Module):
    """A block that normalises on the way in."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.ln_1 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config)
        self.ln_2 = RMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class QWenLMHeadModel(nn.Module):
    """The model, with the part of transformers' interface that `make_families.py` uses."""

    def __init__(self, keys: dict[str, Any]) -> None:
        super().__init__()
        defaults = {"kv_channels": keys["hidden_size"] // keys["num_attention_heads"]}
        defaults |= {"layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "no_bias": True}
        keys = defaults | keys
        self.keys = keys | {"model_type": "qwen", "architectures": ["QWenLMHeadModel"]}
        self.config = SimpleNamespace(**keys)
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(keys["vocab_size"], keys["hidden_size"]),
                "h": nn.ModuleList(
                    QWenBlock(self.config) for _ in range(keys["num_hidden_layers"])
                ),
                "ln_f": RMSNorm(keys["hidden_size"], keys["layer_norm_epsilon"]),
            }
        )
        self.lm_head = nn.Linear(keys["hidden_size"], keys["vocab_size"], bias=False)

    def forward(self, token_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        """Logits of all tokens; nothing is cached."""
        x = self.transformer["wte"](token_ids)
        for block in self.transformer["h"]:
            x = block(x)
        return SimpleNamespace(logits=self.lm_head(self.transformer["ln_f"](x)))

    def save_pretrained(self, folder: Path) -> None:
        """Writes configuration and weights."""
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(self.keys))
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
