"""The small model that the project trains: a Qwen3-MoE over bytes, its loss, and its tokenizer."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

from dali.policies.types import InputError


def tiny_model(sizes: dict[str, Any], length: int) -> Qwen3MoeForCausalLM:
    """A Qwen3-MoE with random weights, every layer an MoE layer; InputError for sizes that do not fit together."""
    for part, whole in (
        ("num_experts_per_tok", "num_experts"),
        ("num_key_value_heads", "num_attention_heads"),
    ):
        if sizes.get(part, 1) > sizes.get(whole, 1):
            raise InputError(f"model.{part}: found {sizes.get(part)}, expected at most {whole}, {sizes.get(whole)}")
    if sizes.get("num_attention_heads", 1) % sizes.get("num_key_value_heads", 1):
        found = sizes["num_attention_heads"]
        raise InputError(f"model.num_attention_heads: found {found}, expected a multiple of num_key_value_heads")
    try:
        config = Qwen3MoeConfig(
            vocab_size=256,
            intermediate_size=2 * sizes["hidden_size"],
            max_position_embeddings=4 * length,
            tie_word_embeddings=True,
            norm_topk_prob=True,
            decoder_sparse_step=1,
            mlp_only_layers=[],
            bos_token_id=0,
            eos_token_id=0,
            pad_token_id=None,
            **sizes,
        )
        return Qwen3MoeForCausalLM(config)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"model: {str(error).splitlines()[0]}") from error


def losses(model: Any, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Next-byte cross entropy (nats), load-balancing loss and router z-loss of sequences [B, N + 1].

    The balancing loss is E * sum_e f_e P_e in each layer, f_e = share of choices, P_e = mean router probability
    over the whole batch, averaged over layers: 1 when even (Switch Transformers, arXiv 2101.03961, eq. 4-6).
    transformers' own pools all layers before it multiplies, so that layers may be uneven in turn.
    The z-loss is the mean squared log-partition of the router logits (ST-MoE, arXiv 2202.08906, eq. 5).
    """
    out = model.model(input_ids=ids[:, :-1], output_router_logits=True, use_cache=False)
    logits = model.lm_head(out.last_hidden_state).float()
    entropy = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    routers = torch.stack([logits.float() for logits in out.router_logits])
    count = routers.shape[-1]
    probability = routers.softmax(dim=-1)
    chosen = probability.topk(model.config.num_experts_per_tok, dim=-1).indices.flatten(1)
    share = torch.stack([layer.bincount(minlength=count) for layer in chosen]) / chosen.shape[1]
    balance = count * (share * probability.mean(dim=1)).sum(dim=-1).mean()
    return entropy, balance, routers.logsumexp(dim=-1).square().mean()


@torch.no_grad()
def bits_per_byte(model: Any, data: Tensor, length: int, batch: int = 32) -> float:
    """Mean bits of the bytes of `data` [n], each with at least length / 2 bytes before it (the first have fewer)."""
    model.eval()
    half = length // 2
    starts = range(0, len(data) - 1, half)
    bits, count = 0.0, 0
    for first in range(0, len(starts), batch):
        windows = [data[start : start + length + 1] for start in starts[first : first + batch]]
        for size in {len(window) for window in windows}:
            ids = torch.stack([window for window in windows if len(window) == size]).long()
            fresh = torch.zeros(len(ids), size - 1, dtype=torch.bool)
            fresh[:, half:] = True
            if first == 0 and len(windows[0]) == size:
                fresh[0] = True
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()
            entropy = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="none")
            bits += float(entropy[fresh.flatten()].double().sum()) / 0.6931471805599453
            count += int(fresh.sum())
    return bits / count


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the bytes of UTF-8."""
    alphabet = _alphabet()
    tokenizer = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in alphabet.items()}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False)


def _alphabet() -> dict[int, str]:
    """The letter that GPT-2's byte-level tokenizers write for each byte: itself if it prints, else one from 256 on."""
    printing = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = {byte: chr(byte) for byte in printing}
    hidden = [byte for byte in range(256) if byte not in letters]
    return letters | {byte: chr(256 + number) for number, byte in enumerate(hidden)}
