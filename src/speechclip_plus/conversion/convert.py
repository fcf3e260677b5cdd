"""`speechclip-plus convert`: a checkpoint of the original research code becomes a folder to load."""

from __future__ import annotations

import argparse
import hashlib
import math
import os
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPImageProcessor, CLIPTextModel, Wav2Vec2FeatureExtractor

from ..atomic_files import check_new_folder, finished_folder, write_json
from ..configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from ..hub_cards.model_card import ConvertedCheckpoint, ModelCardFacts, save_model_card
from ..modeling_speechclip_plus.modeling_speechclip_plus import SpeechClipPlusModel
from ..modeling_speechclip_plus.processing_speechclip_plus import SpeechClipPlusProcessor
from ..modeling_speechclip_plus.saving import write_model_files
from .checkpoint import let_go, plain, read_checkpoint
from .clip_tokenizer import VOCABULARY_SIZE, openai_tokenizer
from .original_config import (
    Settings,
    matching_presets,
    merge_settings,
    nested,
    settings_of_hyperparameters,
    settings_of_preset,
    settings_of_weights,
)
from .state_dict_names import FULL_TABLE, rename_original_weights
from .vocabulary import read_vocabulary, recover_vocabulary

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
    show_progress: bool = False,
) -> Conversion:
    """Turn an original SpeechCLIP or SpeechCLIP+ checkpoint into a folder that `from_pretrained` loads.

    Nothing in the checkpoint is run. Its configuration computes what the original computed, in batches too
    (`padding="original"`).

    Args:
        checkpoint: File that the original wrote, such as `epoch_12-step_28794-val_recall_mean_10_36.1455.ckpt`.
        output_dir: Folder to make: weights as safetensors, configuration, processor, model card, and
            `conversion.json`, which tells what was used and what ignored.
        preset: Name of a published configuration that fills in what neither weights nor hyper-parameters tell.
        vocabulary: `.npy` file of CLIP subword ids (the original's own has them beside their counts), row by row of
            the reduced table; only needed if they cannot be recovered, and checked against the table.
        clip: Repository or folder of the `CLIPModel` that a checkpoint with a reduced table, but without the full one,
            was trained with.
        force: Replace `output_dir` if it exists.
        show_progress: Draw a progress bar.

    Returns:
        What became of it.

    Raises:
        UnsafeCheckpointError: If the checkpoint asks for anything but data.
        ValueError: If it is damaged, no such checkpoint, or contradicts the preset or the vocabulary.
        OSError: If a file or CLIP is not there. No folder is left behind after any error.
    """
    checkpoint, output_dir = Path(checkpoint), Path(output_dir)
    if not checkpoint.exists():
        raise FileNotFoundError(f"There is no checkpoint {checkpoint}.")
    check_new_folder(output_dir, force)
    for source in (checkpoint, vocabulary, clip):
        if source is not None and os.path.exists(source):
            place = Path(source).resolve()
            if output_dir.resolve() in (place, *place.parents):
                raise ValueError(f"{source} is in {output_dir}, which would be replaced; name another folder.")
    given = None if vocabulary is None else read_vocabulary(vocabulary)
    preset_settings = None if preset is None else settings_of_preset(preset)
    with _progress(checkpoint, show_progress) as bar:
        content = read_checkpoint(checkpoint, bar.update)
        state = _state_dict(content, checkpoint)
        weights, ignored = rename_original_weights(state)
        hyperparameters = _hyperparameters(content)
        found, notes = _settings(weights, state, hyperparameters, given, clip)
        if found["variant"] == "parallel" and FULL_TABLE in state:
            ignored["clip.model.token_embedding.weight"] = "reduced subword table, which only keywords need"
        if preset_settings is not None:
            found = merge_settings(("the checkpoint", found), (f"the preset {preset}", preset_settings))
        presets = matching_presets(found)
        _require_heads(found, hyperparameters, preset, presets)
        config, do_normalize = _configuration(found, presets)
        on_disk = {value.untyped_storage().data_ptr() for value in state.values()}
        _complete(weights, config, on_disk)
        with finished_folder(output_dir) as work:
            _write_weights(weights, work, bar, on_disk)
            processor = _processor(config, do_normalize, clip)
            if processor is None:
                notes.append(
                    f"no processor was written: CLIP's {config.clip_config.text_config.vocab_size} subwords are not "
                    "those of OpenAI's tokenizer; clip=REPOSITORY_OR_FOLDER would supply one"
                )
            else:
                processor.save_pretrained(work)
            digest = _sha256(checkpoint)
            conversion = Conversion(config, presets, len(state) - len(ignored), ignored, notes)
            converted = ConvertedCheckpoint(checkpoint.name, digest, presets, notes)
            facts = ModelCardFacts(output_dir.name, config, languages=("en",), checkpoint=converted)
            save_model_card(work, facts)
            write_model_files(work, config)
            write_json(
                work / REPORT,
                {"checkpoint": checkpoint.name, "sha256": digest, "used": conversion.used, "ignored": ignored,
                 "notes": notes, "presets": presets},
            )  # fmt: skip
            config.save_pretrained(work)  # last: without it, nothing takes the folder for a model
    return conversion


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments to a parser."""
    parser.add_argument("checkpoint", type=Path, metavar="CKPT", help="file that the original research code wrote")
    parser.add_argument("output_dir", type=Path, metavar="OUT", help="folder to make")
    parser.add_argument("--preset", help="published configuration that fills in what the checkpoint does not tell")
    parser.add_argument("--vocabulary", type=Path, metavar="FILE", help=".npy of CLIP subword ids of a reduced table")
    parser.add_argument("--clip", metavar="REPO_OR_DIR", help="CLIP with the full subword table, if CKPT has none")
    parser.add_argument("--force", action="store_true", help="replace OUT if it exists")


def run(args: argparse.Namespace) -> int:
    """Convert; returns the exit code."""
    start = time.perf_counter()
    conversion = convert_checkpoint(
        args.checkpoint,
        args.output_dir,
        preset=args.preset,
        vocabulary=args.vocabulary,
        clip=args.clip,
        force=args.force,
        show_progress=True,
    )
    size = sum(file.stat().st_size for file in args.output_dir.iterdir())
    print(f"{conversion.config.variant}, as published: {', '.join(conversion.presets) or 'none of these sizes'}")
    print(f"{conversion.used} tensors used; {len(conversion.ignored)} not:")
    reasons = Counter(reason.partition(" of clip.")[0] for reason in conversion.ignored.values())
    for reason, count in reasons.most_common():
        print(f"  {count} {reason}")
    for note in conversion.notes:
        print(f"note: {note}")
    print(f"{args.output_dir}: {size / 1e6:,.0f} MB in {time.perf_counter() - start:.0f} s")
    return 0


def _progress(checkpoint: Path, show: bool) -> tqdm:
    size = checkpoint.stat().st_size if checkpoint.is_file() else 0
    return tqdm(total=size, unit="B", unit_scale=True, desc="checking", disable=not show)


def _state_dict(content: Mapping[str, Any], checkpoint: Path) -> dict[str, Tensor]:
    state = content.get("state_dict")
    if not isinstance(state, Mapping) or not state:
        raise ValueError(
            f"{checkpoint} holds no state_dict, which a Lightning checkpoint has; it holds "
            f"{', '.join(map(repr, list(content)[:5]))}."
        )
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise ValueError(f"{checkpoint} holds in its state_dict {name!r}, a {type(value).__name__} and no tensor.")
        if value.is_sparse or value.is_quantized or value.is_meta:
            raise ValueError(f"{checkpoint} holds {name!r} in a layout that is no plain tensor's.")
    return dict(state)


def _hyperparameters(content: Mapping[str, Any]) -> dict[str, Any]:
    """The original's configuration: saved as an argument named `config`, or by itself."""
    saved = plain(content.get("hyper_parameters"))
    if not isinstance(saved, dict):
        return {}
    config = saved.get("config")  # its own `config` is the name of the file that it was read from
    return config if isinstance(config, dict) else saved


def _settings(
    weights: dict[str, Tensor],
    state: Mapping[str, Tensor],
    hyperparameters: Mapping[str, Any],
    given: list[int] | None,
    clip: str | os.PathLike | None,
) -> tuple[Settings, list[str]]:
    """Settings that the checkpoint tells; puts CLIP's full subword table into the weights."""
    notes: list[str] = []
    reduced = weights.get(_TOKEN_TABLE)
    if reduced is None:
        raise ValueError("The checkpoint holds no subword table of CLIP (clip.model.token_embedding.weight).")
    full = state.get(FULL_TABLE)
    was_reduced = (hyperparameters.get("clip") or {}).get("reduce_subword_embbedding")
    if full is None and clip is not None:
        full = CLIPTextModel.from_pretrained(clip, dtype=torch.float32).get_input_embeddings().weight.detach()
    if full is None:
        if was_reduced is not None or given is not None or len(reduced) < VOCABULARY_SIZE and not hyperparameters:
            raise ValueError(
                f"The checkpoint's subword table is reduced to {len(reduced)} rows and CLIP's own is not in the file. "
                "Pass the CLIP that it was trained with: clip=REPOSITORY_OR_FOLDER (--clip)."
            )
        full = reduced
    weights[_TOKEN_TABLE] = full
    found = settings_of_weights(weights)
    has_keywords = found["variant"] != "parallel"
    if has_keywords:
        ids = list(range(len(full)))
        if len(reduced) != len(full) or given is not None or not torch.equal(reduced, full):
            ids = found["keyword_config.vocabulary_ids"] = recover_vocabulary(reduced, full, given)
        special = {0, len(full) - 2, len(full) - 1}
        masked = {ids[row] for row in _MASKED_ROWS if row < len(ids)}
        if masked != special:
            found["keyword_config.excluded_ids"] = sorted(masked)
            notes.append(
                f"the original never takes the subwords {sorted(masked)} for keywords, where start, end and padding "
                f"are {sorted(special)}; the configuration does as the original did"
            )
    known = settings_of_hyperparameters(hyperparameters, found["variant"])
    if known.get("retrieval_branch") not in ("parallel", "cascaded") or found["variant"] in ("parallel", "cascaded"):
        known.pop("retrieval_branch", None)
    width, heads = found["speech_config.hidden_size"], found["speech_config.num_attention_heads"]
    if not any(_speech_size(name) == width for name in ("parallel-base-flickr8k", "parallel-large-flickr8k")):
        notes.append(
            f"HuBERT of width {width} is taken to have {heads} attention heads, as many as groups in its positional "
            "convolution: nothing in the file tells"
        )
    return merge_settings(("the weights", found), ("the checkpoint's hyper-parameters", known)), notes


def _speech_size(preset: str) -> int:
    return SpeechClipPlusConfig.from_preset(preset).hidden_size


def _require_heads(
    found: Settings, hyperparameters: Mapping[str, Any], preset: str | None, presets: list[str]
) -> None:
    if "branch_config.num_attention_heads" not in found:
        what = "its hyper-parameters do not tell" if hyperparameters else "the file holds no hyper-parameters"
        choice = f"one of {', '.join(presets)}" if presets else "a published configuration of its kind"
        raise ValueError(
            f"The branch's number of attention heads leaves no trace in the weights, and {what}. Pass preset=NAME "
            f"(--preset), {choice}{f' ({preset} does not say either)' if preset else ''}."
        )


def _configuration(settings: Settings, presets: list[str]) -> tuple[SpeechClipPlusConfig, bool]:
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
    config = SpeechClipPlusConfig(**{**values, "padding": "original"})
    config.architectures = [SpeechClipPlusModel.__name__]
    config.dtype = torch.float32
    return config, do_normalize


def _complete(weights: dict[str, Tensor], config: SpeechClipPlusConfig, on_disk: set[int]) -> None:
    """Check that the weights are all of a model's, of the right sizes, and nothing besides."""
    if not config.loss_config.train_temperature:  # then the original keeps it outside of its weights
        weights["logit_scale"] = torch.tensor(math.log(1 / config.loss_config.temperature))
    with torch.device("meta"):
        expected = {name: tuple(value.shape) for name, value in SpeechClipPlusModel(config).state_dict().items()}
    if missing := sorted(expected.keys() - weights.keys()):
        raise ValueError(f"The checkpoint is incomplete: nothing in it becomes {', '.join(map(repr, missing[:5]))}.")
    if extra := sorted(weights.keys() - expected.keys()):
        raise ValueError(f"The {config.variant} model has no place for {', '.join(map(repr, extra[:5]))}.")
    for name, shape in expected.items():
        if tuple(weights[name].shape) != shape:
            raise ValueError(
                f"What becomes {name!r} has the shape {tuple(weights[name].shape)}, but the model needs {shape}."
            )
        if weights[name].is_floating_point() and not torch.isfinite(weights[name]).all():
            raise ValueError(f"What becomes {name!r} holds numbers that are infinite or none: training had failed.")
        _let_go(weights[name], on_disk)


def _write_weights(weights: dict[str, Tensor], folder: Path, bar: tqdm, on_disk: set[int]) -> None:
    """Write shard by shard, so that no more than one is in memory besides what is mapped."""
    bar.set_description("writing")
    bar.reset(total=sum(value.numel() * 4 for value in weights.values()))
    split = split_torch_state_dict_into_shards(
        weights, filename_pattern="model{suffix}.safetensors", max_shard_size=_MAX_SHARD_SIZE
    )
    for file_name, names in split.filename_to_tensors.items():
        shard = {name: _float32(weights[name]) for name in names}
        save_file(shard, folder / file_name, metadata={"format": "pt"})
        for name in names:
            _let_go(weights[name], on_disk)
        bar.update(sum(value.numel() * 4 for value in shard.values()))
    if split.is_sharded:
        write_json(
            folder / "model.safetensors.index.json",
            {"metadata": split.metadata, "weight_map": dict(sorted(split.tensor_to_filename.items()))},
        )


def _let_go(value: Tensor, on_disk: set[int]) -> None:
    if value.untyped_storage().data_ptr() in on_disk:
        let_go(value)


def _float32(value: Tensor) -> Tensor:
    # Models that were put together on a GPU carry CLIP in half precision; every such number is a float32 as well.
    return (value.float() if value.is_floating_point() else value).contiguous()


def _processor(
    config: SpeechClipPlusConfig, do_normalize: bool, clip: str | os.PathLike | None
) -> SpeechClipPlusProcessor | None:
    side = config.clip_config.vision_config.image_size
    if config.clip_config.text_config.vocab_size == VOCABULARY_SIZE:
        tokenizer: Any = openai_tokenizer()
    elif clip is not None:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(clip)
        if len(tokenizer) < 2 * 256:  # every byte, alone and at a word's end: with less it was made from nothing
            raise OSError(f"{clip} holds no tokenizer (tokenizer.json, or vocab.json and merges.txt).")
    else:
        return None
    return SpeechClipPlusProcessor(
        feature_extractor=Wav2Vec2FeatureExtractor(do_normalize=do_normalize),
        image_processor=CLIPImageProcessor(size={"shortest_edge": side}, crop_size={"height": side, "width": side}),
        tokenizer=tokenizer,
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
