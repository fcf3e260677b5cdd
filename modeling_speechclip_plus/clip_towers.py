"""CLIP's text encoder over keyword embeddings instead of token ids."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import CLIPModel
from transformers.masking_utils import create_causal_mask


def read_keywords(
    clip: CLIPModel, keyword_embeds: Tensor, lengths: Tensor, start_token_id: int, end_token_id: int
) -> Tensor:
    """Read keyword embeddings with CLIP's text encoder (arXiv 2210.00705, section 3.3).

    The keywords stand between CLIP's start and end subwords; the result is the projected output at the end subword.
    Only N + 2 places are computed, since the end sees nothing behind itself.

    Args:
        clip: A CLIP model.
        keyword_embeds: `(B, N, E)`, in CLIP's subword-embedding space.
        lengths: `(B,)` int64, keywords of each utterance, 1 to N.
        start_token_id: CLIP's start subword.
        end_token_id: CLIP's end subword.

    Returns:
        `(B, P)`, not scaled to unit length. Gradients flow to `keyword_embeds`, also when CLIP is frozen.
    """
    text_model = clip.text_model
    table = text_model.embeddings.token_embedding.weight
    batch, num_keywords, _ = keyword_embeds.shape
    ends = lengths[:, None] + 1  # (B, 1), the place of the end subword
    places = torch.arange(num_keywords + 2, device=keyword_embeds.device)
    start = table[start_token_id].expand(batch, 1, -1)
    end = table[end_token_id].expand(batch, 1, -1)
    embeds = torch.cat([start, keyword_embeds.to(table.dtype), end], dim=1)  # (B, N + 2, E)
    embeds = torch.where((places == ends)[:, :, None], end, embeds)
    hidden = text_model.embeddings(inputs_embeds=embeds)
    # Under SDPA the mask is None and causality rests on is_causal.
    mask = create_causal_mask(text_model.config, hidden, None, None)
    hidden = text_model.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
    at_end = hidden.gather(1, ends[:, :, None].expand(-1, -1, hidden.shape[-1])).squeeze(1)  # (B, E)
    return clip.text_projection(text_model.final_layer_norm(at_end))
