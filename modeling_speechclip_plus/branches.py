"""Branch encoder: the trained layer over the speech features (arXiv 2210.00705, section 3; arXiv 2402.06959)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS


def eager_attention_forward(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for its weights: `(B, S, heads, size)` outputs and `(B, heads, S, S)` weights."""
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = F.dropout(scores.softmax(dim=-1), p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


class BranchAttention(nn.Module):
    """Multi-head self-attention through transformers' attention interface, so that SDPA and others can be chosen."""

    is_causal = False

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.branch_config.num_attention_heads
        self.dropout = config.branch_config.dropout
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.out_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def init_weights(self) -> None:
        """Initialise as torch's MultiheadAttention: its three input projections are one Xavier matrix."""
        bound = math.sqrt(6 / (4 * self.q_proj.in_features))
        for projection in (self.q_proj, self.k_proj, self.v_proj):
            init.uniform_(projection.weight, -bound, bound)
            init.zeros_(projection.bias)
        init.zeros_(self.out_proj.bias)

    def forward(self, queries: Tensor, hidden: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Attend from `(B, Q, D)` to `(B, S, D)`; returns `(B, Q, D)` and, if eager, weights `(B, heads, Q, S)`."""
        query, key, value = (
            projection(given).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, Q or S, head_dim)
            for projection, given in ((self.q_proj, queries), (self.k_proj, hidden), (self.v_proj, hidden))
        )
        attend: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            scaling=self.head_dim**-0.5,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(output.reshape(queries.shape)), weights


class BranchLayer(GradientCheckpointingLayer):
    """`LayerNorm(attention(x) + x)`, and for `transformer_encoder` the feed-forward part behind it."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        branch = config.branch_config
        self.attention = BranchAttention(config)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=branch.layer_norm_eps)
        self.feed_forward = None
        if branch.layer_type == "transformer_encoder":
            self.attention_dropout = nn.Dropout(branch.dropout)
            self.feed_forward = nn.Sequential(
                nn.Linear(config.hidden_size, branch.intermediate_size),
                nn.GELU(),
                nn.Dropout(branch.dropout),
                nn.Linear(branch.intermediate_size, config.hidden_size),
                nn.Dropout(branch.dropout),
            )
            self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=branch.layer_norm_eps)

    def forward(
        self, hidden: Tensor, attention_mask: Tensor | None, num_outputs: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Transform `(B, S, D)`; returns its first `num_outputs` places, or all, and any attention weights."""
        queries = hidden[:, :num_outputs]
        attended, weights = self.attention(queries, hidden, attention_mask)
        if self.feed_forward is None:
            return self.attention_norm(attended + queries), weights
        queries = self.attention_norm(self.attention_dropout(attended) + queries)
        return self.feed_forward_norm(self.feed_forward(queries) + queries), weights


class BranchEncoder(nn.Module):
    """Learned CLS vectors in front of the frames, and the layer(s) over both.

    There is one CLS vector for the parallel branch and one per keyword of the fixed-number variants, in that order.
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        num_keywords = config.keyword_config.num_keywords if config.has_cascaded else None
        self.num_cls = int(config.has_parallel) + (num_keywords or 0)
        if self.num_cls:
            self.cls_tokens = nn.Parameter(torch.randn(self.num_cls, config.hidden_size))
        self.layers = nn.ModuleList(BranchLayer(config) for _ in range(config.branch_config.num_layers))
        self.norm = None
        if config.branch_config.layer_type == "transformer_encoder":
            self.norm = nn.LayerNorm(config.hidden_size, eps=config.branch_config.layer_norm_eps)

    def forward(
        self, frames: Tensor, frame_mask: Tensor, frame_outputs: bool = True
    ) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
        """Encode frames `(B, T, D)` under a mask `(B, T)` (True: a frame).

        Without `frame_outputs` the last layer computes the CLS outputs alone, a small part of its work.

        Returns:
            CLS outputs `(B, num_cls, D)`, frame outputs `(B, T, D)` or `(B, 0, D)`, and the attention weights of each
            layer.
        """
        hidden, mask = frames, frame_mask
        if self.num_cls:
            cls = self.cls_tokens.to(frames.dtype).expand(frames.shape[0], -1, -1)
            hidden = torch.cat([cls, frames], dim=1)
            mask = torch.cat([mask.new_ones(frames.shape[0], self.num_cls), mask], dim=1)
        # Flash attention takes fewer queries than keys for the last ones of a row, not the first.
        all_outputs = frame_outputs or "flash" in (self.config._attn_implementation or "")
        weights = []
        for number, layer in enumerate(self.layers, 1):
            num_outputs = None if all_outputs or number < len(self.layers) else self.num_cls
            attention_mask = create_bidirectional_mask(
                self.config, inputs_embeds=hidden[:, :num_outputs], attention_mask=mask, encoder_hidden_states=hidden
            )
            hidden, layer_weights = layer(hidden, attention_mask, num_outputs)
            weights.append(layer_weights)
        if self.norm is not None:
            # torch's fast path in evaluation zeroes padding here, its slow path in training does not; always zeroed.
            hidden = self.norm(hidden.masked_fill(~mask[:, : hidden.shape[1], None], 0))
        return hidden[:, : self.num_cls], hidden[:, self.num_cls :], tuple(weights)
