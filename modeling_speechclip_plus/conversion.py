"""Names and layouts of the original research code's weights, turned into this package's.

The original stores fairseq's HuBERT, OpenAI's CLIP and its own branch in one state dictionary. Each function below
takes such a dictionary and returns one in this package's names; nothing is dropped silently.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

# In the file, of no use: loss masks, pre-training heads of HuBERT, copies and state of the quantiser.
IGNORED = re.compile(
    r"criterion\.(eye_mat|neg_eye_mat|eye_mat_fl)$"
    r"|audio_encoder\.encoder\.(mask_emb|label_embs_concat|final_proj\..*)$"
    r"|cascaded_branch\.(clip\..*|vector_quantizer\.curr_temp)$"
    r"|clip\.original_text_emb_weight$"
    r"|clip\.model\.(logit_scale|visual\.input_resolution|input_resolution|context_length|vocab_size)$"
)

_SPEECH = [
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
    (r"^encoder\.pos_conv\.0\.parametrizations\.", "encoder.pos_conv_embed.conv.parametrizations."),
    (r"^encoder\.pos_conv\.0\.", "encoder.pos_conv_embed.conv."),
    (r"\.self_attn_layer_norm\.", ".layer_norm."),
    (r"\.self_attn\.", ".attention."),
    (r"\.fc1\.", ".feed_forward.intermediate_dense."),
    (r"\.fc2\.", ".feed_forward.output_dense."),
]
_CLIP = [
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"\.ln_1\.", ".layer_norm1."),
    (r"\.ln_2\.", ".layer_norm2."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
    (r"\.attn\.", ".self_attn."),
]
_BRANCH = [
    (r"^audio_encoder\.weightedsum_layer\.weights$", "layer_sum.weight"),
    (r"^criterion\.temperature$", "logit_scale"),
    (r"^parallel_branch\.linear_proj\.", "parallel_projection."),
    (r"^cascaded_branch\.parallel_proj\.", "parallel_projection."),
    (r"^cascaded_branch\.linear_proj\.", "keyword_projection."),
    (r"^cascaded_branch\.bn_layer\.bn_layer\.", "keyword_norm."),
    (r"^cascaded_branch\.downsampling\.weight_proj\.1\.", "cif.weight_projection."),
    (r"^(parallel|cascaded)_branch\.self_att\.multihead_attn_layer\.", "branch.layers.0.attention."),
    (r"^(parallel|cascaded)_branch\.self_att\.attentionBlock_Norm\.", "branch.layers.0.attention_norm."),
    (r"^(parallel|cascaded)_branch\.self_att\.model\.layers\.(\d+)\.self_attn\.", r"branch.layers.\2.attention."),
    (r"^(parallel|cascaded)_branch\.self_att\.model\.layers\.(\d+)\.linear1\.", r"branch.layers.\2.feed_forward.0."),
    (r"^(parallel|cascaded)_branch\.self_att\.model\.layers\.(\d+)\.linear2\.", r"branch.layers.\2.feed_forward.3."),
    (r"^(parallel|cascaded)_branch\.self_att\.model\.layers\.(\d+)\.norm1\.", r"branch.layers.\2.attention_norm."),
    (r"^(parallel|cascaded)_branch\.self_att\.model\.layers\.(\d+)\.norm2\.", r"branch.layers.\2.feed_forward_norm."),
    (r"^(parallel|cascaded)_branch\.self_att\.model\.norm\.", "branch.norm."),
]


def convert_original_state_dict(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename and reshape an original model's weights.

    Args:
        state: The `state_dict` of an original checkpoint, any variant.

    Returns:
        Weights by the names of [`SpeechClipPlusModel`].

    Raises:
        ValueError: If it holds a tensor that is neither used nor known to be of no use.
    """
    converted: dict[str, Tensor] = {}
    unknown = []
    for name, value in state.items():
        if IGNORED.match(name):
            continue
        if name.startswith("audio_encoder.encoder."):
            new = "speech_encoder." + _rename(name.removeprefix("audio_encoder.encoder."), _SPEECH)
        elif name.startswith("clip.model."):
            new = "clip." + _rename(name.removeprefix("clip.model."), _CLIP)
        elif name.endswith(("_branch.cls", "_branch.parallel_cls", "_branch.cascaded_cls")):
            continue  # below, in their order
        elif match := re.match(r"cascaded_branch\.downsampling\.conv\.(\d+)\.(.*)", name):
            # Convolution, dropout and ReLU stand in turn.
            new = f"cif.convolutions.{int(match[1]) // 3}.{match[2]}"
        else:
            new = _rename(name, _BRANCH)
            if new == name:
                unknown.append(name)
        converted.update(_reshape(new, value))
    if unknown:
        raise ValueError(f"These tensors are not of a SpeechCLIP model: {', '.join(sorted(unknown))}.")
    cls = [
        state[name].flatten(0, 1)
        for branch in ("parallel_branch", "cascaded_branch")
        for name in (f"{branch}.cls", f"{branch}.parallel_cls", f"{branch}.cascaded_cls")
        if name in state
    ]
    if cls:
        converted["branch.cls_tokens"] = torch.cat(cls)
    return converted


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _reshape(name: str, value: Tensor) -> dict[str, Tensor]:
    if name.endswith((".in_proj_weight", ".in_proj_bias")):
        prefix, _, kind = name.rpartition(".in_proj_")
        return {f"{prefix}.{part}_proj.{kind}": chunk for part, chunk in zip("qkv", value.chunk(3), strict=True)}
    # OpenAI multiplies by these from the right.
    if name == "clip.text_projection":
        return {"clip.text_projection.weight": value.T.contiguous()}
    if name == "clip.visual.proj":
        return {"clip.visual_projection.weight": value.T.contiguous()}
    return {name: value}
