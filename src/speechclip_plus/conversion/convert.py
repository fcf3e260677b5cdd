"""Conversion of a checkpoint of the original research code into a folder that `from_pretrained` loads."""

import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPImageProcessor, CLIPTextModel, Wav2Vec2FeatureExtractor

from ..atomic_files import check_new_folder, finished_folder, write_json
from ..configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from ..configuration.presets import preset_names
from ..hub_cards.cards import ConvertedCheckpoint, ModelCardFacts, save_model_card
from ..modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from ..modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from .checkpoint import read_checkpoint
from .open_clip import VOCABULARY_SIZE, openai_tokenizer
from .original_config import (
    HUBERT_HEADS,
    Settings,
    matching_presets,
    merge_settings,
    nested,
    setting_at,
    settings_of_hyperparameters,
    settings_of_preset,
    settings_of_weights,
)
from .state_dict_names import FULL_TABLE, read_vocabulary, recover_vocabulary, rename_original_weights

REPORT = "conversion.json"
_TOKEN_TABLE = "clip.text_model.embeddings.token_embedding.weight"
_MAX_SHARD_SIZE = "300MB"  # a shard is held in memory while it is written
_MASKED_ROWS = (0, 2, 3)  # rows of its table that the original never takes for keywords


@dataclass(frozen=True)
class Conversion:
    """What became of a checkpoint.

    Attributes:
        config: The model's configuration.
        presets: Published configurations that it agrees with.
        used: Tensors of the checkpoint that are in the model.
        ignored: Names of the others, each with the reason.
        notes: What the checkpoint does not say and was concluded.
    """

    config: SpeechClipPlusConfig
    presets: list[str]
    used: int
    ignored: dict[str, str]
    notes: list[str]


def convert_checkpoint(
    checkpoint: str | os.PathLike,
    output_dir: str | os.PathLike,
    *,
    preset: str | None = None,
    vocabulary: str | os.PathLike | None = None,
    clip: str | os.PathLike | None = None,
    force: bool = False,
) -> Conversion:
    """Turn an original SpeechCLIP or SpeechCLIP+ checkpoint into a folder that `from_pretrained` loads.

    Nothing in the checkpoint is run. Its configuration computes what the original computed, in batches too
    (`padding="original"`).

    Args:
        checkpoint: File that the original wrote, such as `epoch_12-step_28794-val_recall_mean_10_36.1455.ckpt`.
        output_dir: Folder to make: weights as safetensors, configuration, processor, model card, `conversion.json`.
        preset: Name of a published configuration that fills in what neither weights nor hyper-parameters tell.
        vocabulary: `.npy` file of the reduced token table's CLIP ids, which are needed if they cannot be recovered.
        clip: Repository or folder of the `CLIPModel` that a checkpoint with a reduced table alone was trained with.
        force: Replace `output_dir` if it exists.

    Raises:
        UnsafeCheckpointError: If the checkpoint asks for anything but data.
        ValueError: If it is damaged, no such checkpoint, or contradicts the preset or the vocabulary.
        OSError: If a file or CLIP is not there. No folder is left behind after any error.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    if not checkpoint.exists():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}.")
    check_new_folder(output_dir, force, (checkpoint, vocabulary, clip))
    given = None if vocabulary is None else read_vocabulary(vocabulary)
    preset_settings = None if preset is None else settings_of_preset(preset)
    state, saved = read_checkpoint(checkpoint)
    weights, ignored = rename_original_weights(state)
    hyperparameters = _hyperparameters(saved)
    found, notes = _settings(weights, state, hyperparameters, given, clip)
    if found["model_variant"] == "parallel" and FULL_TABLE in state:
        ignored["clip.model.token_embedding.weight"] = "reduced token table, which only keywords need"
    if preset_settings is not None:
        found = merge_settings(("the checkpoint", found), (f"the preset {preset}", preset_settings))
    presets = matching_presets(found)
    if "branch_config.num_attention_heads" not in found:
        raise ValueError(
            "The branch's number of attention heads leaves no trace in the weights, and hyper-parameters that tell it "
            f"are missing. Pass another preset=NAME (--preset), as one of {', '.join(presets or preset_names())}."
        )
    config, do_normalize = _configuration(found, presets, preset)
    model = _model_of(weights, config)
    tokens = config.clip_config.text_config.vocab_size
    if tokens != VOCABULARY_SIZE:
        notes.append(f"no processor was written: CLIP's {tokens} tokens are not those of OpenAI's tokenizer")
    conversion = Conversion(config, presets, len(state) - len(ignored), ignored, notes)
    with finished_folder(output_dir) as work:
        model.save_pretrained(work, max_shard_size=_MAX_SHARD_SIZE)
        if tokens == VOCABULARY_SIZE:
            _processor(config, do_normalize).save_pretrained(work)
        _write_card_and_report(conversion, checkpoint, work, output_dir.name)
    return conversion


def _write_card_and_report(conversion: Conversion, checkpoint: Path, folder: Path, name: str) -> None:
    with checkpoint.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    converted = ConvertedCheckpoint(checkpoint.name, sha256, conversion.presets, conversion.notes)
    save_model_card(folder, ModelCardFacts(name, conversion.config, languages=("en",), checkpoint=converted))
    report = {key: value for key, value in vars(conversion).items() if key != "config"}
    write_json(folder / REPORT, {"checkpoint": checkpoint.name, "sha256": sha256, **report})


def _hyperparameters(saved: Any) -> dict[str, Any]:
    """The original's configuration: saved as an argument named `config`, or by itself."""
    saved = saved if isinstance(saved, dict) else {}
    config = saved.get("config")  # its own `config` is the name of the file that it was read from
    return config if isinstance(config, dict) else saved


def _settings(
    weights: dict[str, Tensor],
    state: Mapping[str, Tensor],
    hyperparameters: Mapping[str, Any],
    given: list[int] | None,
    clip: str | os.PathLike | None,
) -> tuple[Settings, list[str]]:
    """Settings that the checkpoint tells; puts CLIP's full token table into the weights."""
    notes: list[str] = []
    reduced = weights.get(_TOKEN_TABLE)
    if reduced is None:
        raise ValueError("The checkpoint holds no token table of CLIP (clip.model.token_embedding.weight).")
    full = state.get(FULL_TABLE)
    was_reduced = setting_at(hyperparameters, "clip.reduce_subword_embbedding")
    if full is None and clip is not None:
        full = CLIPTextModel.from_pretrained(clip, dtype=torch.float32).get_input_embeddings().weight.detach()
    if full is None:
        if was_reduced is not None or given is not None or len(reduced) < VOCABULARY_SIZE and not hyperparameters:
            raise ValueError(
                f"The checkpoint's token table is reduced to {len(reduced)} rows and CLIP's own is not in the file. "
                "Pass the CLIP that it was trained with: clip=REPOSITORY_OR_FOLDER (--clip)."
            )
        full = reduced
    weights[_TOKEN_TABLE] = full
    found = settings_of_weights(weights)
    has_keywords = found["model_variant"] != "parallel"
    if has_keywords:
        ids = list(range(len(full)))
        if len(reduced) != len(full) or given is not None or not torch.equal(reduced, full):
            ids = found["keyword_config.vocabulary_ids"] = recover_vocabulary(reduced, full, given)
        special = {0, len(full) - 2, len(full) - 1}
        masked = {ids[row] for row in _MASKED_ROWS if row < len(ids)}
        if masked != special:
            found["keyword_config.excluded_ids"] = sorted(masked)
            notes.append(
                f"the original never takes the tokens {sorted(masked)} for keywords, where start, end and padding "
                f"are {sorted(special)}; the configuration does as the original did"
            )
    known = settings_of_hyperparameters(hyperparameters, found["model_variant"])
    chosen = known.get("retrieval_branch") in ("parallel", "cascaded")
    if not chosen or not found["model_variant"].startswith("hybrid"):  # others have no choice
        known.pop("retrieval_branch", None)
    width, heads = found["speech_config.hidden_size"], found["speech_config.num_attention_heads"]
    if width not in HUBERT_HEADS:
        notes.append(
            f"HuBERT of width {width} is taken to have {heads} attention heads, as many as groups in its positional "
            "convolution: nothing in the file tells"
        )
    return merge_settings(("the weights", found), ("the checkpoint's hyper-parameters", known)), notes


def _configuration(settings: Settings, presets: list[str], preset: str | None) -> tuple[SpeechClipPlusConfig, bool]:
    values = nested(settings)
    # The large HuBERT was trained on normalised waveforms, and fairseq sees to it whatever the data set does.
    do_normalize = bool(values.pop("do_normalize", False)) or values["speech_config"]["feat_extract_norm"] == "layer"
    backbones = {
        (preset["speech_backbone"]["repo_id"], preset["clip_backbone"]["repo_id"]): preset
        for preset in map(settings_of_preset, presets)
    }
    if len(backbones) == 1:
        (published,) = backbones.values()
        values |= {key: published[key] for key in ("speech_backbone", "clip_backbone")}
    if preset is None and len(presets) == 1:
        preset = presets[0]
    return SpeechClipPlusConfig(**{**values, "padding": "original", "preset": preset}), do_normalize


def _model_of(weights: dict[str, Tensor], config: SpeechClipPlusConfig) -> SpeechClipPlusModel:
    """Put weights into a model without copying them; they must be all of its weights, and nothing besides."""
    if not config.loss_config.train_temperature:  # then the original keeps it outside of its weights
        weights["logit_scale"] = torch.tensor(math.log(1 / config.loss_config.temperature))
    with torch.device("meta"):
        model = SpeechClipPlusModel(config)
    # Models that were put together on a GPU carry CLIP in half precision.
    weights = {name: value.float() if value.is_floating_point() else value for name, value in weights.items()}
    try:
        model.load_state_dict(weights, assign=True)
    except RuntimeError as error:
        raise ValueError(
            f"What the checkpoint holds is not the whole of a {config.model_variant} model: {error}"
        ) from None
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise ValueError(f"What becomes {name!r} holds numbers that are infinite or none: training had failed.")
    return model


def _processor(config: SpeechClipPlusConfig, do_normalize: bool) -> SpeechClipPlusProcessor:
    side = config.clip_config.vision_config.image_size
    return SpeechClipPlusProcessor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=do_normalize),
        image_processor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=openai_tokenizer(),
    )
