"""Names and layouts of the original research code's weights, and its token table, turned into this package's.

The original stores fairseq's HuBERT, OpenAI's CLIP and its own branch in one state dictionary, in the layout of 2022
(SpeechCLIP) or of 2024 (SpeechCLIP+).
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# In the file, of no use here, and why.
IGNORED = {
    r"criterion\.(eye_mat|neg_eye_mat|eye_mat_fl)$": "mask of the original's loss",
    r"audio_encoder\.encoder\.(label_embs_concat|final_proj\..*)$": "pre-training head of HuBERT",
    r"cascaded_branch\.vector_quantizer\.curr_temp$": "the quantiser's temperature, which the configuration holds",
    r"clip\.model\.(visual\.input_resolution|input_resolution|context_length|vocab_size)$": "a size of CLIP",
}
FULL_TABLE = "clip.original_text_emb_weight"  # CLIP's own token table, beside a reduced one
_COPY_OF_CLIP = "cascaded_branch.clip."

_SPEECH = [
    (r"feature_extractor\.conv_layers\.(\d+)\.0\.", r"feature_extractor.conv_layers.\1.conv."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.1\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"feature_extractor\.conv_layers\.(\d+)\.2\.", r"feature_extractor.conv_layers.\1.layer_norm."),
    (r"^mask_emb$", "masked_spec_embed"),
    (r"^post_extract_proj\.", "feature_projection.projection."),
    (r"^layer_norm\.", "feature_projection.layer_norm."),
    (r"^encoder\.pos_conv\.0\.weight_g$", "encoder.pos_conv_embed.conv.parametrizations.weight.original0"),
    (r"^encoder\.pos_conv\.0\.weight_v$", "encoder.pos_conv_embed.conv.parametrizations.weight.original1"),
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
    (r"^text_projection$", "text_projection.weight"),
    (r"^visual\.proj$", "visual_projection.weight"),
]
_BRANCH = [
    (r"^audio_encoder\.weightedsum_layer\.weights$", "layer_sum.weight"),
    (r"^criterion\.temperature$", "logit_scale"),
    # A hidden layer, ReLU and dropout stand between the two linear maps of a projection, which makes them 0 and 3.
    (r"^parallel_branch\.linear_proj\.(?:sequential\.(?=[03]\.))?", "parallel_projection."),
    (r"^cascaded_branch\.parallel_proj\.(?:sequential\.(?=[03]\.))?", "parallel_projection."),
    (r"^cascaded_branch\.linear_proj\.(?:sequential\.(?=[03]\.))?", "keyword_projection."),
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
_CLS_TOKENS = [  # in the order in which they stand before the frames
    "parallel_branch.cls", "cascaded_branch.parallel_cls", "cascaded_branch.cls", "cascaded_branch.cascaded_cls",
]  # fmt: skip
_KEYWORD_BIAS = r"cascaded_branch\.linear_proj\.(sequential\.3\.)?bias$"
_BATCH_NORM = re.compile(r"^cascaded_branch\.bn_layer\.bn_layers?\.(?:(\d+)\.)?([a-z_]+)$")


class RenamedWeights(NamedTuple):
    """Weights by the names of `SpeechClipPlusModel`, and original names of the others, each with the reason."""

    weights: dict[str, Tensor]
    ignored: dict[str, str]


def rename_original_weights(state: Mapping[str, Tensor]) -> RenamedWeights:
    """Rename and reshape an original model's weights, all of them, without copying the large ones."""
    weights: dict[str, Tensor] = {}
    origins: dict[str, str] = {}
    ignored: dict[str, str] = {}
    unknown = []
    for name, value in state.items():
        if name.startswith(_COPY_OF_CLIP):
            ignored[name] = _check_copy(name, value, state)
        elif reason := next((reason for pattern, reason in IGNORED.items() if re.match(pattern, name)), None):
            ignored[name] = reason
        elif name == FULL_TABLE or name in _CLS_TOKENS or _BATCH_NORM.match(name):
            continue  # below, and by the caller
        elif (new := _new_name(name)) is None:
            unknown.append(name)
        else:
            for part, tensor in _reshape(new, value).items():
                if part in weights:
                    raise ValueError(
                        f"The checkpoint's {origins[part]!r} and {name!r} both belong to {part!r}: two branches with "
                        "layers of their own are none of the published variants."
                    )
                weights[part], origins[part] = tensor, name
    if unknown:
        raise ValueError(f"These tensors are no part of a SpeechCLIP model: {', '.join(sorted(unknown)[:10])}.")
    if cls_tokens := [state[name].flatten(0, 1) for name in _CLS_TOKENS if name in state]:
        weights["branch.cls_tokens"] = torch.cat(cls_tokens)
    weights |= _batch_norm(state)
    return RenamedWeights(weights, ignored)


def rename_clip_weight(name: str, value: Tensor) -> dict[str, Tensor]:
    """Give one tensor of OpenAI's CLIP, or of an open_clip model of that kind, its name in `CLIPModel`."""
    return _reshape("clip." + _rename(name, _CLIP), value)


def _new_name(name: str) -> str | None:
    if name.startswith("audio_encoder.encoder."):
        return "speech_encoder." + _rename(name.removeprefix("audio_encoder.encoder."), _SPEECH)
    if name.startswith("clip.model."):
        return "clip." + _rename(name.removeprefix("clip.model."), _CLIP)
    if match := re.match(r"cascaded_branch\.downsampling\.conv\.(\d+)\.(.*)", name):
        return f"cif.convolutions.{int(match[1]) // 3}.{match[2]}"  # convolution, dropout and ReLU stand in turn
    new = _rename(name, _BRANCH)
    return None if new == name or ".sequential." in new else new


def _rename(name: str, rules: list[tuple[str, str]]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _reshape(name: str, value: Tensor) -> dict[str, Tensor]:
    if name.endswith((".in_proj_weight", ".in_proj_bias")):
        prefix, _, kind = name.rpartition(".in_proj_")
        return {
            f"{prefix}.{part}_proj.{kind}": chunk.clone() for part, chunk in zip("qkv", value.chunk(3), strict=True)
        }
    if name in ("clip.text_projection.weight", "clip.visual_projection.weight"):
        return {name: value.T}  # OpenAI multiplies by these from the right
    return {name: value}


def _check_copy(name: str, value: Tensor, state: Mapping[str, Tensor]) -> str:
    own = name.removeprefix("cascaded_branch.")
    if own not in state or not torch.equal(value, state[own]):
        raise ValueError(f"The checkpoint's {name!r} should be a copy of {own!r}, and is none.")
    return f"copy of {own}"


def _batch_norm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring the keywords' batch norm to one layout: channel d * K + k for dimension d of place k."""
    found: dict[str, dict[int, Tensor]] = {}
    for name, value in state.items():
        if match := _BATCH_NORM.match(name):
            by_place = found.setdefault(match[2], {})
            if int(match[1] or 0) in by_place:
                raise ValueError("The checkpoint holds batch norms of all places together and of each place as well.")
            by_place[int(match[1] or 0)] = value
    cls_tokens = next((state[n] for n in ("cascaded_branch.cascaded_cls", "cascaded_branch.cls") if n in state), None)
    has_cif = any(name.startswith("cascaded_branch.downsampling.") for name in state)
    places = 1 if has_cif or cls_tokens is None else cls_tokens.shape[1]
    width = next((v.shape[0] for n, v in state.items() if re.match(_KEYWORD_BIAS, n)), None)
    weights = {}
    for name, by_place in found.items():
        value = by_place[min(by_place)]
        if value.dim() and len(by_place) > 1:  # a batch norm for each place
            value = torch.stack([by_place[place] for place in sorted(by_place)], dim=1).flatten()
        elif value.dim() and value.shape[0] == width and places > 1:  # one for all places
            value = value.repeat_interleave(places)
        weights[f"keyword_norm.{name}"] = value
    return weights


def recover_vocabulary(reduced: Tensor, full: Tensor, given: list[int] | None = None) -> list[int]:
    """Find the ids of a reduced token table's rows `(V, E)` in CLIP's full table `(W, E)`; `given` ids are checked."""
    # Of a table in half precision and one in single, the coarser one has the values of both.
    dtype = min(reduced.dtype, full.dtype, key=lambda dtype: torch.finfo(dtype).bits)
    rows, table = _rows(reduced, dtype), _rows(full, dtype)
    if given is not None:
        if len(given) != len(rows) or not 0 <= min(given) <= max(given) < len(table):
            raise ValueError(
                f"The vocabulary has {len(given)} ids from {min(given)} to {max(given)}, but the checkpoint's token "
                f"table {len(rows)} rows of CLIP's {len(table)} tokens."
            )
        if wrong := [place for place, index in enumerate(given) if rows[place] != table[index]]:
            raise ValueError(
                f"By the vocabulary, row {wrong[0]} of the checkpoint's token table is CLIP's id {given[wrong[0]]}, "
                f"but they differ, as do {len(wrong) - 1} more."
            )
        return given
    places: dict[bytes, list[int]] = {}
    for index, row in enumerate(table):
        places.setdefault(row, []).append(index)
    found = [places.get(row, []) for row in rows]
    if missing := [index for index, ids in enumerate(found) if not ids]:
        raise ValueError(
            f"{len(missing)} of the {len(rows)} rows of the reduced token table, the first at {missing[0]}, are not "
            "in CLIP's full table: it was reduced from another CLIP, or trained."
        )
    if tied := [index for index, ids in enumerate(found) if len(ids) > 1]:
        raise ValueError(
            f"Row {tied[0]} of the reduced token table stands {len(found[tied[0]])} times in CLIP's full table, as "
            f"ids {', '.join(map(str, found[tied[0]][:5]))}. Pass the vocabulary file that tells which is meant."
        )
    return [ids[0] for ids in found]


def read_vocabulary(path: str | os.PathLike) -> list[int]:
    """Read CLIP token ids from a `.npy` file: one column of ids, or the original's, ids and their counts."""
    try:
        ids = np.load(Path(path), allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise ValueError(f"{path} is no .npy file of numbers: {error}") from error
    ids = ids[:, 0] if ids.ndim == 2 else ids
    if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids):
        raise ValueError(f"{path} must hold a column of token ids; it holds {ids.dtype} of the shape {ids.shape}.")
    return ids.tolist()


def _rows(table: Tensor, dtype: torch.dtype) -> list[bytes]:
    return [row.tobytes() for row in table.detach().to(dtype).contiguous().view(torch.uint8).numpy()]
