"""SpeechCLIP and SpeechCLIP+ models (arXiv 2210.00705, arXiv 2402.06959)."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoConfig, CLIPModel, PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file, can_return_tuple, extract_commit_hash, logging

from ..configuration.configuration_speechclip_plus import SpeechClipPlusConfig
from ..configuration.publication import push_saved, pushing_options, write_model_files
from ..remote_code import IS_REMOTE
from .branches import BranchEncoder
from .cif import ContinuousIntegrateAndFire, FeatureChangeSegmentation, keyword_times
from .keywords import (
    KeywordBatchNorm,
    cosine_similarities,
    expected_token_embeds,
    merge_repeats,
    projection_head,
    quantize_keywords,
    token_text,
)
from .localization import WINDOW_BATCH, WINDOW_S, best_span, frame_scores, window_starts
from .losses import all_gather_rows, contrastive_loss, quantity_loss, several_processes
from .outputs import Keyword, Localization, Neighbour, SpeechClipPlusAudioOutput, SpeechClipPlusOutput
from .speech_encoder import SPEECH_ENCODERS, LayerWeightedSum, speech_encoder_adapter

logger = logging.get_logger(__name__)

MAX_LOGIT_SCALE = math.log(100)  # CLIP's (arXiv 2103.00020, section 2.5)
BACKBONES = {"speech_encoder": "speech_backbone", "clip": "clip_backbone"}
_CAPTION_TARGETS = (
    "cif_config.target_length is 'caption': give target_lengths, for instance each caption's number of tokens."
)
_HUB_ARGUMENTS = ("cache_dir", "token", "local_files_only", "force_download", "proxies")


class SpeechClipPlusPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading."""

    config: SpeechClipPlusConfig
    config_class = SpeechClipPlusConfig
    base_model_prefix = "speechclip_plus"
    main_input_name = "input_values"
    input_modalities = ("audio", "image", "text")
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["BranchLayer"]
    # bfloat16 would lose the running statistics' small updates and CIF's and the temperature's small steps.
    _keep_in_fp32_modules_strict = ["keyword_norm", "^logit_scale", "layer_sum"]  # ^: CLIP has a logit_scale too

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d):
            # torch's own default, which the original trains from.
            bound = 1 / math.sqrt(module.weight[0].numel())
            init.uniform_(module.weight, -bound, bound)
            if module.bias is not None:
                init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, BranchEncoder) and module.num_cls:
            init.normal_(module.cls_tokens)
        elif isinstance(module, LayerWeightedSum):
            init.zeros_(module.weight)
        elif isinstance(module, KeywordBatchNorm):
            init.zeros_(module.running_mean)
            init.ones_(module.running_var)
            init.zeros_(module.num_batches_tracked)
        elif isinstance(module, SpeechClipPlusModel):
            # The library asks custom models' modules without parameters of their own for nothing, so that what depends
            # on a module's children is set from here; what was loaded stays as it is.
            init.constant_(module.logit_scale, math.log(1 / self.config.loss_config.temperature))
            for layer in module.branch.layers:
                layer.attention.init_weights()  # type: ignore[operator]
            if self.config.has_cif and self.config.cif_config.segmentation == "weights":
                module.cif.init_weights(self.config.cif_config.frames_per_keyword)  # type: ignore[operator]
            if self.config.has_cascaded:
                vocabulary_ids, is_keyword = _vocabulary(self.config)
                init.copy_(module.vocabulary_ids, vocabulary_ids)
                init.copy_(module.is_keyword, is_keyword)
                module._init_keyword_norm()


class SpeechClipPlusModel(SpeechClipPlusPreTrainedModel):
    """A frozen speech encoder and a frozen CLIP, joined by a small trained branch.

    One class serves the five variants; only what the configured one needs is built. Speech, images and texts embed
    into CLIP's joint space at unit length, so that any two compare by dot product.

    Example:
    ```python
    >>> import torch
    >>> from speechclip_plus import SpeechClipPlusConfig, SpeechClipPlusModel
    >>> model = SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("hybrid_plus-tiny")).eval()
    >>> model.get_audio_features(torch.randn(2, 16_000)).pooler_output.shape
    torch.Size([2, 128])

    ```
    """

    def __init__(self, config: SpeechClipPlusConfig):
        super().__init__(config)
        text_config = config.text_config
        self.speech_adapter = speech_encoder_adapter(config.speech_config)
        self.speech_encoder = self.speech_adapter.build(config.padding)
        # One precision for all parts, whatever precisions a saved configuration names.
        self.clip = CLIPModel._from_config(config.clip_config, dtype=torch.get_default_dtype())
        self.layer_sum = LayerWeightedSum(config.speech_config.num_hidden_layers + 1, config.normalize_hidden_states)
        self.branch = BranchEncoder(config)
        if config.has_parallel:
            branch = config.branch_config
            self.parallel_projection = projection_head(
                config.hidden_size, config.projection_dim, branch.parallel_projection_hidden_size, branch.dropout
            )
        if config.has_cif:
            cif = config.cif_config
            self.cif: FeatureChangeSegmentation | ContinuousIntegrateAndFire
            if cif.segmentation == "feature_change":
                self.cif = FeatureChangeSegmentation(cif.threshold, config.max_keywords)
            else:
                self.cif = ContinuousIntegrateAndFire(
                    config.hidden_size,
                    threshold=cif.threshold,
                    conv_layers=cif.conv_layers,
                    conv_width=cif.conv_width,
                    dropout=cif.dropout,
                    tail_threshold=cif.tail_threshold,
                    max_keywords=config.max_keywords,
                    mask_padding=config.padding == "invariant",
                )
        if config.has_cascaded:
            keyword = config.keyword_config
            self.keyword_projection = projection_head(
                config.hidden_size, text_config.hidden_size, keyword.projection_hidden_size, keyword.projection_dropout
            )
            self.keyword_norm = KeywordBatchNorm(text_config.hidden_size, keyword.num_keywords)
            # Derived from the configuration, so neither is saved; _init_weights fills them again after loading.
            vocabulary_ids, is_keyword = _vocabulary(config)
            self.vocabulary_ids = nn.Buffer(vocabulary_ids, persistent=False)
            self.is_keyword = nn.Buffer(is_keyword, persistent=False)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / config.loss_config.temperature)))
        self.post_init()
        self.float_statistics()
        self.set_trainable(speech_encoder=config.train_speech_encoder, clip=config.train_clip)
        if not config.backbones_saved:
            self._keys_to_ignore_on_load_missing |= {rf"^{name}\." for name in BACKBONES}

    # Building, freezing, saving and loading

    @classmethod
    def from_backbones(
        cls,
        speech: str | os.PathLike | None = None,
        clip: str | os.PathLike | None = None,
        config: SpeechClipPlusConfig | str = "hybrid_plus-base-flickr8k",
        *,
        speech_revision: str | None = None,
        clip_revision: str | None = None,
        dtype: torch.dtype = torch.float32,
        **kwargs: Any,
    ) -> SpeechClipPlusModel:
        """Join pretrained backbones by a new, untrained branch.

        Args:
            speech: Repository id or folder of a speech encoder (HuBERT, WavLM, wav2vec 2.0, w2v-BERT 2.0 or Whisper);
                the configuration's if not given.
            clip: Repository id or folder of a CLIP; the configuration's if not given.
            config: A configuration or the name of a preset, of which the backbones' own replace theirs.
            speech_revision: Branch, tag or commit of the speech encoder's repository.
            clip_revision: The same of CLIP's.
            dtype: Of all weights.
            **kwargs: For both backbones' `from_pretrained`, such as `cache_dir` or `token`.

        Raises:
            ValueError: If a backbone is of another kind, or the parts do not fit together.
            OSError: If a backbone is not there.
        """
        config = SpeechClipPlusConfig.from_preset(config) if isinstance(config, str) else config
        values = config.to_dict()
        for name, given, revision in (("speech", speech, speech_revision), ("clip", clip, clip_revision)):
            source = values[f"{name}_backbone"]
            if given is not None:
                source = {"repo_id": _absolute_if_folder(given), "revision": revision}
            elif source is None:
                raise ValueError(f"The configuration names no {name} backbone: pass {name}=REPOSITORY_OR_FOLDER.")
            loaded = AutoConfig.from_pretrained(source["repo_id"], revision=source["revision"], **kwargs)
            allowed = SPEECH_ENCODERS if name == "speech" else ("clip",)
            if loaded.model_type not in allowed:
                raise ValueError(
                    f"{name}={source['repo_id']!r} is a {loaded.model_type!r} model; "
                    f"it must be one of {', '.join(allowed)}."
                )
            values[f"{name}_backbone"] = {**source, "revision": _commit(**source, **kwargs) or source["revision"]}
            values[f"{name}_config"] = loaded
        model = cls(SpeechClipPlusConfig(**values))
        model._load_backbones(**kwargs)
        if model.config.has_cascaded:
            model._init_keyword_norm()
        return model.to(dtype).float_statistics().eval()

    def _load_backbones(self, **kwargs: Any) -> None:
        """Load both backbones' weights from where the configuration says they are, in float32."""
        for name, key in BACKBONES.items():
            source = getattr(self.config, key)
            own = getattr(self, name)
            options = {"revision": source["revision"], "dtype": torch.float32, **kwargs}
            try:
                if name == "clip":
                    options["output_loading_info"] = True
                    backbone, report = CLIPModel.from_pretrained(source["repo_id"], **options)
                else:
                    backbone, report = self.speech_adapter.load(source["repo_id"], **options)
            except OSError as error:
                raise OSError(
                    f"This model needs the backbone {source['repo_id']!r} (revision {source['revision']!r}) for its "
                    f"{name}, which cannot be loaded: {error}"
                ) from error
            missing = [key for key in report["missing_keys"] if "masked_spec_embed" not in key]
            if missing or report["mismatched_keys"]:
                raise OSError(
                    f"The backbone {source['repo_id']!r} does not hold the whole {name}: "
                    f"missing or misshapen are {sorted(map(str, [*missing, *report['mismatched_keys']]))[:5]}."
                )
            try:
                own.load_state_dict(backbone.state_dict())
            except RuntimeError as error:
                raise ValueError(f"The backbone {source['repo_id']!r} does not fit this model: {error}") from error

    def set_attn_implementation(self, attn_implementation: str | dict, allow_all_kernels: bool = False) -> None:
        """See `transformers.PreTrainedModel.set_attn_implementation`."""
        blocks: list[Any] = []
        if not isinstance(attn_implementation, dict):
            parts = (getattr(self.config, f"{name}_config") for name in ("branch", "cif", "keyword", "loss"))
            blocks = [part for part in parts if part is not None]
        for block in blocks:
            # These have no model of their own, of which the library would warn.
            block._attn_implementation = attn_implementation
        try:
            super().set_attn_implementation(attn_implementation, allow_all_kernels)
        finally:
            for block in blocks:
                block._attn_implementation = self.config._attn_implementation

    def float_statistics(self) -> SpeechClipPlusModel:
        """Bring the parts that must stay float32 back to it, after a cast of the whole model; returns the model."""
        for name in ("keyword_norm", "layer_sum"):
            if hasattr(self, name):
                getattr(self, name).float()
        self.logit_scale.data = self.logit_scale.data.float()
        return self

    def set_trainable(self, speech_encoder: bool | None = None, clip: bool | None = None) -> None:
        """Freeze or unfreeze the backbones; `None` leaves one as it is. The configuration records the choice.

        A backbone of which no parameter requires a gradient runs without a graph and stays in evaluation mode under
        `train()`. So parts of one can be trained as well, by `requires_grad_()` on its layers or by adapters in them.
        """
        for name, trainable in (("speech_encoder", speech_encoder), ("clip", clip)):
            if trainable is not None:
                setattr(self.config, f"train_{name}", trainable)
                getattr(self, name).requires_grad_(trainable)
        # CLIP's own temperature has no part in what this model computes.
        self.clip.logit_scale.requires_grad_(False)
        self.logit_scale.requires_grad_(self.config.loss_config.train_temperature)
        self.train(self.training)

    def train(self, mode: bool = True) -> SpeechClipPlusModel:
        """Set training mode, except for frozen backbones, which stay in evaluation mode."""
        super().train(mode)
        if is_frozen(self.clip):
            self.clip.eval()
        if is_frozen(self.speech_encoder):
            self.speech_encoder.eval()
            if mode and self.config.speech_encoder_dropout:
                # The original leaves dropout on in the frozen encoder; time masking and LayerDrop stay off.
                for module in self.speech_adapter.dropout_modules(self.speech_encoder):
                    module.train()
        return self

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike | None, *model_args: Any, **kwargs: Any
    ) -> SpeechClipPlusModel:
        """Load a model saved whole, or its trained part together with the backbones that it names.

        See `transformers.PreTrainedModel.from_pretrained` for the arguments.

        Raises:
            OSError: If the folder or repository, or a backbone that it needs, is not there.
        """
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if not model.config.backbones_saved:
            model._load_backbones(**{key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs})
            model.config.backbones_saved = True
        # The library makes every loaded parameter anew, as one that requires a gradient.
        model.set_trainable(model.config.train_speech_encoder, model.config.train_clip)
        return loaded

    def save_pretrained(
        self,
        save_directory: str | os.PathLike,
        *args: Any,
        save_backbones: bool = True,
        remote_code: bool = IS_REMOTE,
        **kwargs: Any,
    ) -> None:
        """Save the model as safetensors, with its configuration and a card.

        Args:
            save_directory: Folder to write.
            *args: As in `transformers.PreTrainedModel.save_pretrained`, like `**kwargs`.
            save_backbones: `False` saves the trained part alone (some MB), with the backbones' repositories and
                revisions, from which `from_pretrained` restores them.
            remote_code: Whether to write the Python files too by which `trust_remote_code=True` loads the model where
                this package is not installed; by default if it was loaded by such files. A push always has them.
            **kwargs: See `*args`.

        Raises:
            ValueError: If the backbones shall be left out but were trained, or it is not known where they came from.
        """
        pushing = pushing_options(kwargs, save_directory)
        if not save_backbones:
            for name, key in BACKBONES.items():
                if getattr(self.config, f"train_{name}") or not is_frozen(getattr(self, name)):
                    raise ValueError(f"The {name} was trained, so it must be saved: use save_backbones=True.")
                if getattr(self.config, key) is None:
                    raise ValueError(
                        f"It is not known where the {name} came from (config.{key} is None), so it could not be "
                        "loaded again. Build the model with from_backbones, or use save_backbones=True."
                    )
        ignored = self._keys_to_ignore_on_save  # type: ignore[has-type]
        try:
            self.config.backbones_saved = save_backbones
            if not save_backbones:
                prefixes = tuple(f"{name}." for name in BACKBONES)
                self._keys_to_ignore_on_save = {key for key in self.state_dict() if key.startswith(prefixes)}
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            self.config.backbones_saved = True
            self._keys_to_ignore_on_save = ignored
        if kwargs.get("is_main_process", True):
            write_model_files(save_directory, self.config, remote_code)
        if pushing is not None:
            sizes = {"max_shard_size": kwargs["max_shard_size"]} if "max_shard_size" in kwargs else {}
            self.push_to_hub(**pushing, **sizes, save_backbones=save_backbones)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        save_backbones: bool = True,
        max_shard_size: int | str = "50GB",
        commit_message: str = "Upload model",
        tags: list[str] | str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Push the model to the Hub with the code to load it, in one commit.

        `save_backbones` and `max_shard_size` are those of `save_pretrained`; the others, what is returned and the
        errors those of [`push_saved`]. A README.md that the repository has stays, with `tags` added; otherwise it gets
        a plain one of what the configuration says.
        """
        save = partial(self.save_pretrained, save_backbones=save_backbones, max_shard_size=max_shard_size)
        tags = [*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
        return push_saved(save, repo_id, tags, commit_message=commit_message, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        """CLIP's token embeddings, which are also the keywords' codebook."""
        return self.clip.text_model.embeddings.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace CLIP's token embeddings."""
        self.clip.text_model.embeddings.token_embedding = value

    def resize_token_embeddings(self, *args: Any, **kwargs: Any) -> nn.Module:
        """See `transformers.PreTrainedModel.resize_token_embeddings`; added tokens may become keywords.

        Raises:
            ValueError: If the start or end token, or one of `keyword_config.vocabulary_ids`, would be cut off.
        """
        text = self.config.text_config
        # Otherwise the last two rows of the table could be taken for them.
        text.bos_token_id, text.eos_token_id = self.config.start_token_id, self.config.end_token_id
        self.clip.text_model.eos_token_id = text.eos_token_id
        embeddings = super().resize_token_embeddings(*args, **kwargs)
        self.config.validate_architecture()
        if self.config.has_cascaded:
            ids, is_keyword = (values.to(self.vocabulary_ids.device) for values in _vocabulary(self.config))
            self.vocabulary_ids = nn.Buffer(ids, persistent=False)
            self.is_keyword = nn.Buffer(is_keyword, persistent=False)
        return embeddings

    def to_empty(self, *, device: Any, recurse: bool = True) -> SpeechClipPlusModel:
        """Move a model from the meta device, with new weights and all that is not saved with a model in place."""
        super().to_empty(device=device, recurse=recurse)
        self.init_weights()
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the configuration and the weights: torch refuses weight-normed layers, which most encoders have."""
        trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        return _unpickled, (type(self), self.config, self.state_dict(), trained, self.training)

    def __deepcopy__(self, memo: dict[int, Any]) -> SpeechClipPlusModel:
        memo[id(self)] = copied = object.__new__(type(self))
        copied.__dict__ = copy.deepcopy(self.__dict__, memo)  # adapters and hooks too, which a pickle leaves out
        return copied

    # Vocabulary

    @torch.no_grad()
    def _init_keyword_norm(self) -> None:
        scale = self.config.keyword_config.batch_norm_scale
        weight, bias = self.keyword_norm.initial_values(self._codebook(), scale)
        init.copy_(self.keyword_norm.weight, weight)
        init.copy_(self.keyword_norm.bias, bias)

    def _codebook(self) -> Tensor:
        """CLIP's own embeddings of the vocabulary in use, `(V, E)`."""
        embeddings: Any = self.get_input_embeddings()
        # An offloaded table is there during its module's call alone.
        whole = self.config.keyword_config.vocabulary_ids is None and not embeddings.weight.is_meta
        return embeddings.weight if whole else embeddings(self.vocabulary_ids)

    # Embeddings

    def encode_speech_frames(
        self, input_values: Tensor, attention_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Run the speech encoder alone, to keep its hidden states while it is frozen; inputs as in `encode_audio`.

        Returns:
            All hidden states `(B, L + 1, T, D)` and the frames of each utterance `(B,)`; every other method takes
            them as `speech_hidden_states` and `frame_lengths` in place of `input_values`.
        """
        hidden_states, frame_lengths, _ = self._speech_states(input_values, attention_mask)
        return torch.stack(tuple(hidden_states), dim=1), frame_lengths

    def encode_audio(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        speech_hidden_states: Tensor | None = None,
        frame_lengths: Tensor | None = None,
        target_lengths: Tensor | None = None,
        global_step: int | None = None,
        branches: tuple[str, ...] = ("parallel", "cascaded"),
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> SpeechClipPlusAudioOutput:
        """Compute what each utterance gives by itself: the first stage of `forward`, before the batch matters.

        Args:
            input_values: `(B, S)` float waveforms at 16 kHz, zero-padded on the right, or the log-mel features of an
                encoder that reads those: `(B, T, F)` (w2v-BERT 2.0) or `(B, F, T)` (Whisper).
            attention_mask: `(B, S)` or `(B, T)`, 1 for a sample or feature frame, 0 for padding.
            speech_hidden_states: `(B, L + 1, T, D)` from `encode_speech_frames`, in place of `input_values`.
            frame_lengths: `(B,)` frames, with `speech_hidden_states`.
            target_lengths: `(B,)` int64, wanted numbers of keywords for CIF; those of the configuration if not given.
            global_step: Training step, against which `cif_config.scale_until_step` is held; 0 if not given.
            branches: Which of the model's branches to compute.
            output_hidden_states: Whether to return the speech encoder's hidden states.
            output_attentions: Whether to return attention weights; needs `attn_implementation="eager"`.

        Raises:
            ValueError: If inputs are missing, of the wrong shape, or do not fit together; or in training, if
                `cif_config.target_length` is `"caption"` and no `target_lengths` are given.
        """
        config = self.config
        output_attentions = config.output_attentions if output_attentions is None else output_attentions
        hidden_states, frame_lengths, attentions = self._speech_states(
            input_values, attention_mask, speech_hidden_states, frame_lengths, output_attentions
        )
        if config.has_cif:
            target_lengths = self._target_lengths(frame_lengths, target_lengths)
        frames = self.layer_sum(hidden_states)  # (B, T, D)
        if isinstance(hidden_states, Tensor):
            hidden_states = hidden_states.unbind(dim=1)
        frame_mask = torch.arange(frames.shape[1], device=frames.device) < frame_lengths[:, None]  # (B, T)
        from_weights = config.has_cif and config.cif_config.segmentation == "weights"
        cls_outputs, frame_outputs, branch_attentions = self.branch(
            frames, frame_mask, frame_outputs=output_attentions or (from_weights and "cascaded" in branches)
        )
        audio: dict[str, Any] = {"frame_lengths": frame_lengths}
        if config.has_parallel and "parallel" in branches:
            audio["parallel_embeds"] = F.normalize(self.parallel_projection(cls_outputs[:, 0]), dim=-1)
        if config.has_cascaded and "cascaded" in branches:
            if config.has_cif:
                if from_weights:
                    scale = self.training and (global_step or 0) < config.cif_config.scale_until_step
                    cif = self.cif(frame_outputs, frame_mask, target_lengths if self.training else None, scale=scale)
                else:
                    cif = self.cif(frames, hidden_states[-1], frame_lengths, target_lengths)
                features, lengths = cif.keywords, cif.lengths
                audio |= {"alphas": cif.alphas, "alpha_sums": cif.alpha_sums, "target_lengths": target_lengths}
            else:
                features = cls_outputs[:, int(config.has_parallel) :]  # (B, K, D)
                lengths = torch.full_like(frame_lengths, features.shape[1])
            audio |= {"keyword_features": self.keyword_projection(features), "keyword_lengths": lengths}  # (B, N, E)
        if output_hidden_states is None:
            output_hidden_states = config.output_hidden_states
        return SpeechClipPlusAudioOutput(
            **audio,
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
            attentions=attentions or None,
            branch_attentions=branch_attentions if attentions else None,
        )

    def score(
        self,
        audio: Any,
        pixel_values: Tensor | None = None,
        image_embeds: Tensor | None = None,
        image_ids: Tensor | None = None,
        return_loss: bool | None = None,
    ) -> SpeechClipPlusOutput:
        """Read the keywords of a batch, and compare its utterances with images: the second stage of `forward`.

        In training the keywords' batch norm takes its statistics from the whole batch; where `torch.distributed` runs,
        from those of all processes, whose pairs are in-batch negatives in the losses too. Every process must then
        take part in this call, and their gradients must be averaged, as `DistributedDataParallel` does.

        Args:
            audio: The [`SpeechClipPlusAudioOutput`] that `encode_audio` returned.
            pixel_values: `(B_image, 3, H, W)` images.
            image_embeds: `(B_image, P)` CLIP image features, in place of `pixel_values`.
            image_ids: `(B,)` int64; utterances and images with the same id are no negatives of each other.
            return_loss: Whether to compute the losses; needs one image per utterance.

        Raises:
            ValueError: If images or ids do not fit the utterances, or the losses lack what they need.
        """
        if pixel_values is not None and image_embeds is not None:
            raise ValueError("Give pixel_values or image_embeds, not both.")
        if pixel_values is not None:
            image_embeds = self.get_image_features(pixel_values).pooler_output
        elif image_embeds is not None:
            image_embeds = F.normalize(image_embeds.to(self.dtype), dim=-1)
        self._check_pairs(audio, image_embeds, image_ids, return_loss)
        values: dict[str, Any] = {name: value for name, value in audio.items() if name != "keyword_features"}
        if audio.keyword_features is not None:
            spans = None
            if audio.alphas is not None and not self.training:
                spans = keyword_times(
                    audio.alphas,
                    audio.frame_lengths,
                    audio.keyword_lengths,
                    self.cif.threshold,
                    self.config.max_keywords,
                )
            values |= self._read_keywords(audio.keyword_features, audio.keyword_lengths, spans)
        embeds = values.get(f"{self.config.retrieval_branch}_embeds")
        output = SpeechClipPlusOutput(speech_embeds=embeds, image_embeds=image_embeds, **values)
        if image_embeds is not None:
            for branch in ("parallel", "cascaded"):
                if (embeds := values.get(f"{branch}_embeds")) is not None:
                    output[f"{branch}_logits"] = self._logits(embeds, image_embeds)
        if return_loss:
            for name, value in self._losses(output, image_ids).items():
                output[name] = value
        return output

    @can_return_tuple
    def get_audio_features(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        branch: str | None = None,
        speech_hidden_states: Tensor | None = None,
        frame_lengths: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Embed audio by a branch, `"parallel"` or `"cascaded"`; the configured `retrieval_branch` if not given.

        Inputs are as in `encode_audio`. Where utterances differ in length they need their `attention_mask`.

        Returns:
            `pooler_output` `(B, P)`, the embedding at unit length, and of the speech encoder the `last_hidden_state`
            `(B, T, D)`, `hidden_states` and `attentions`.

        Raises:
            ValueError: If the model has no such branch, or the input does not fit.
        """
        branch = branch or self.config.retrieval_branch
        if branch not in ("parallel", "cascaded") or not getattr(self.config, f"has_{branch}"):
            raise ValueError(f"This {self.config.model_variant} model has no {branch!r} branch.")
        audio: Any = self.encode_audio(
            input_values,
            attention_mask,
            speech_hidden_states,
            frame_lengths,
            branches=(branch,),
            output_hidden_states=True,
            output_attentions=output_attentions,
        )
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        return BaseModelOutputWithPooling(
            last_hidden_state=audio.hidden_states[-1],
            pooler_output=self.score(audio)[f"{branch}_embeds"],
            hidden_states=audio.hidden_states if output_hidden_states else None,
            attentions=audio.attentions,
        )

    @can_return_tuple
    def get_image_features(self, pixel_values: Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Embed images `(B, 3, H, W)` as CLIP's `get_image_features`, with `pooler_output` `(B, P)` at unit length."""
        return self._clip_features(self.clip.get_image_features, pixel_values=pixel_values, **kwargs)

    @can_return_tuple
    def get_text_features(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPooling:
        """Embed texts `(B, L)` as CLIP's `get_text_features`, with `pooler_output` `(B, P)` at unit length.

        An `attention_mask` `(B, L)`, which a tokenizer gives, matters only if texts are padded on the left: what
        stands behind the end token is invisible under CLIP's causal mask.
        """
        return self._clip_features(
            self.clip.get_text_features, input_ids=input_ids, attention_mask=attention_mask, **kwargs
        )

    def _clip_features(self, embed: Callable, **kwargs: Any) -> BaseModelOutputWithPooling:
        for key in ("output_hidden_states", "output_attentions"):
            kwargs.setdefault(key, getattr(self.config, key))
        with no_grad_if_frozen(self.clip):
            output = embed(**kwargs)
            output.pooler_output = F.normalize(output.pooler_output, dim=-1)
        return output

    @can_return_tuple
    def forward(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        image_ids: Tensor | None = None,
        return_loss: bool | None = None,
        global_step: int | None = None,
        speech_hidden_states: Tensor | None = None,
        frame_lengths: Tensor | None = None,
        image_embeds: Tensor | None = None,
        target_lengths: Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> SpeechClipPlusOutput:
        """Embed speech, and images if given, and compare them: `encode_audio`, then `score`, whose arguments it takes.

        `return_dict=False` gives a tuple.
        """
        kwargs.pop("return_dict", None)
        if kwargs:
            raise TypeError(f"SpeechClipPlusModel.forward does not know {', '.join(map(repr, kwargs))}.")
        audio = self.encode_audio(
            input_values,
            attention_mask,
            speech_hidden_states,
            frame_lengths,
            target_lengths,
            global_step,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        return self.score(audio, pixel_values, image_embeds, image_ids, return_loss)

    @property
    def similarity_scale(self) -> Tensor:
        """The factor on similarities in losses and logits: `exp(logit_scale)`, at most 100 as in CLIP, float32."""
        scale = self.logit_scale.float()
        bounded = scale.detach().clamp(max=MAX_LOGIT_SCALE)
        return (bounded + (scale - scale.detach())).exp()  # beyond the bound it keeps its gradient and can come back

    def _logits(self, embeds: Tensor, image_embeds: Tensor) -> Tensor:
        with torch.autocast(embeds.device.type, enabled=False):
            return self.similarity_scale * (embeds.float() @ image_embeds.float().T)

    def _losses(self, output: SpeechClipPlusOutput, image_ids: Tensor | None) -> dict[str, Tensor]:
        """Losses of the configured branches and their weighted sum (arXiv 2402.06959, section 2.3)."""
        names = [f"{name}_embeds" for name in ("parallel", "cascaded", "expected", "image")]
        rows = {name: output.get(name) for name in (*names, "alpha_sums", "target_lengths")} | {"image_ids": image_ids}
        rows = {name: value for name, value in rows.items() if value is not None}
        if self.training and several_processes():
            rows = all_gather_rows(rows)
        losses = {}
        for branch in ("parallel", "cascaded", "expected"):
            if f"{branch}_embeds" in rows:
                logits = self._logits(rows[f"{branch}_embeds"], rows["image_embeds"])
                losses[f"{branch}_loss"] = contrastive_loss(logits, rows.get("image_ids"))
        if "alpha_sums" in rows:
            losses["quantity_loss"] = quantity_loss(rows["alpha_sums"], rows["target_lengths"])
        weights = self.config.loss_config
        losses["loss"] = sum(
            getattr(weights, f"{name.removesuffix('_loss')}_weight") * losses[name] for name in losses
        )
        return losses

    @torch.no_grad()
    def extract_keywords(
        self,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        tokenizer: Any = None,
        top_k: int = 5,
        speech_hidden_states: Tensor | None = None,
        frame_lengths: Tensor | None = None,
    ) -> list[list[Keyword]]:
        """Read the keywords out of speech, as in evaluation mode; inputs as in `encode_audio`.

        The keywords' texts are `None` without CLIP's `tokenizer` or the processor that holds it. `top_k` nearest
        tokens come with each keyword.

        Returns:
            Per utterance its keywords in spoken order.
        """
        if not self.config.has_cascaded:
            raise ValueError("The parallel variant has no keywords; use a cascaded or hybrid model.")
        if not 1 <= top_k <= int(self.is_keyword.sum()):
            raise ValueError(f"top_k must be between 1 and {int(self.is_keyword.sum())}, but is {top_k}.")
        model: Any = _evaluation_view(self) if self.training else self
        audio = model.encode_audio(
            input_values, attention_mask, speech_hidden_states, frame_lengths, branches=("cascaded",)
        )
        output = model.score(audio)
        near = cosine_similarities(output.keyword_embeds, self._codebook()).masked_fill(~self.is_keyword, -torch.inf)
        nearest = near.topk(top_k, dim=-1)  # (B, N, k)
        near_ids, near_similarities = self.vocabulary_ids[nearest.indices].tolist(), nearest.values.tolist()
        spans = None
        if self.config.has_cif:
            spans = (output.keyword_spans * self.speech_adapter.seconds_per_frame).tolist()
        ids, similarities = output.keyword_ids.tolist(), output.keyword_similarities.tolist()
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)
        text = cache(lambda token_id: None if tokenizer is None else token_text(tokenizer, token_id))

        def keyword(b: int, n: int) -> Keyword:
            near = zip(near_ids[b][n], near_similarities[b][n], strict=True)
            start, end = spans[b][n] if spans else (None, None)
            neighbours = tuple(Neighbour(text(token_id), token_id, similarity) for token_id, similarity in near)
            return Keyword(text(ids[b][n]), ids[b][n], similarities[b][n], start, end, neighbours)

        return [[keyword(b, n) for n in range(count)] for b, count in enumerate(output.keyword_lengths.tolist())]

    @torch.no_grad()
    def localize(
        self,
        query_embeds: Tensor,
        input_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        branch: str | None = None,
        window_s: float = WINDOW_S,
        speech_hidden_states: Tensor | None = None,
        frame_lengths: Tensor | None = None,
    ) -> list[Localization]:
        """Find where in speech a text, an image or another utterance is said, as in evaluation mode.

        The branch embeds overlapping windows of the speech encoder's hidden states one by one; a frame scores the
        mean similarity of its windows and the query. Other inputs are as in `encode_audio`.

        Args:
            query_embeds: `(B, P)`, or `(1, P)` for all utterances: `pooler_output` of `get_text_features`,
                `get_image_features` or `get_audio_features`.
            input_values: The speech to search.
            attention_mask: Its mask.
            branch: See `get_audio_features`.
            window_s: Length of a window in seconds, about that of what is looked for.
            speech_hidden_states: In place of `input_values`.
            frame_lengths: With `speech_hidden_states`.

        Returns:
            Per utterance the score of each frame and the best span.

        Raises:
            ValueError: If the queries do not fit the utterances, or the window is shorter than a frame.
        """
        model: Any = _evaluation_view(self) if self.training else self
        if speech_hidden_states is None or frame_lengths is None:
            speech_hidden_states, frame_lengths = model.encode_speech_frames(input_values, attention_mask)
        count, width = len(speech_hidden_states), self.config.projection_dim
        if query_embeds.shape not in ((1, width), (count, width)):
            raise ValueError(
                f"query_embeds must have the shape (1, {width}) or ({count}, {width}), but has "
                f"{tuple(query_embeds.shape)}."
            )
        frame_s = self.speech_adapter.seconds_per_frame
        if window_s < frame_s:
            raise ValueError(f"window_s={window_s} is shorter than a frame of {frame_s} s.")
        found = []
        for states, length, query in zip(
            speech_hidden_states, frame_lengths.tolist(), query_embeds.expand(count, -1).float(), strict=True
        ):
            frames = min(round(window_s / frame_s), length)
            starts = window_starts(length, frames)
            similarities = []
            for first in range(0, len(starts), WINDOW_BATCH):
                windows = torch.stack([states[:, s : s + frames] for s in starts[first : first + WINDOW_BATCH]])
                lengths = torch.full((len(windows),), frames, device=windows.device)
                embeds = model.get_audio_features(speech_hidden_states=windows, frame_lengths=lengths, branch=branch)
                similarities.append(embeds.pooler_output.float() @ query)
            scores = frame_scores(torch.cat(similarities).cpu(), starts, frames, length)
            start, end = best_span(scores)
            found.append(Localization(scores, start * frame_s, end * frame_s))
        return found

    # From hidden states to embeddings

    def _speech_states(
        self,
        input_values: Tensor | None,
        attention_mask: Tensor | None,
        speech_hidden_states: Tensor | None = None,
        frame_lengths: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[tuple[Tensor, ...] | Tensor, Tensor, tuple[Tensor, ...] | None]:
        if (input_values is None) == (speech_hidden_states is None):
            raise ValueError("Give either input_values or speech_hidden_states.")
        if input_values is None:
            return *self._kept_states(speech_hidden_states, frame_lengths, output_attentions), None
        self.speech_adapter.check_input(input_values, attention_mask)
        if output_attentions and self.config._attn_implementation != "eager":
            logger.warning_once(
                f"Attention weights cannot be had from attn_implementation={self.config._attn_implementation!r}, so "
                "none are returned. Load the model with attn_implementation='eager', or call "
                "model.set_attn_implementation('eager')."
            )
        with no_grad_if_frozen(self.speech_encoder):
            return self.speech_adapter.encode(
                self.speech_encoder,
                input_values.to(self.speech_encoder.dtype),
                attention_mask,
                padding=self.config.padding,
                output_attentions=output_attentions,
            )

    def _kept_states(
        self, speech_hidden_states: Any, frame_lengths: Tensor | None, output_attentions: bool
    ) -> tuple[Tensor, Tensor]:
        if output_attentions:
            raise ValueError("Attention weights need input_values: speech_hidden_states come without them.")
        expected = (self.config.speech_config.num_hidden_layers + 1, self.config.hidden_size)
        shape = tuple(speech_hidden_states.shape)
        if len(shape) != 4 or (shape[1], shape[3]) != expected:
            raise ValueError(
                f"speech_hidden_states must have the shape (B, {expected[0]}, T, {expected[1]}), but has {shape}."
            )
        if frame_lengths is None or frame_lengths.shape != (shape[0],):
            raise ValueError(
                f"speech_hidden_states of {shape[0]} utterances need frame_lengths of shape ({shape[0]},)."
            )
        return speech_hidden_states.to(self.dtype), frame_lengths

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the model; not that of its first parameter, the temperature, which stays float32."""
        return next(self.branch.layers.parameters()).dtype

    def _target_lengths(self, frame_lengths: Tensor, target_lengths: Tensor | None) -> Tensor | None:
        """Wanted numbers of keywords; `None` in evaluation, if they are those of captions that are not given."""
        cif = self.config.cif_config
        if target_lengths is None:
            if cif.target_length == "caption":
                if self.training:
                    raise ValueError(_CAPTION_TARGETS)
                return None
            # Half to even, as the original rounds. It asks for no keyword at all in very short utterances.
            target_lengths = torch.round(frame_lengths / cif.frames_per_keyword).long()
            target_lengths = target_lengths.clamp(min=0 if self.config.padding == "original" else 1)
        elif target_lengths.shape != frame_lengths.shape:
            expected = tuple(frame_lengths.shape)
            raise ValueError(f"target_lengths must have the shape {expected}, but has {tuple(target_lengths.shape)}.")
        return target_lengths

    def _check_pairs(
        self, audio: SpeechClipPlusAudioOutput, image_embeds: Tensor | None, image_ids: Tensor | None, return_loss: Any
    ) -> None:
        count = audio.frame_lengths.shape[0]
        if image_ids is not None and image_ids.shape != (count,):
            raise ValueError(
                f"image_ids must name one image for each of the {count} utterances, shape ({count},), "
                f"but has {tuple(image_ids.shape)}."
            )
        if not return_loss:
            return
        if image_embeds is None:
            raise ValueError("return_loss needs images: give pixel_values or image_embeds.")
        if image_embeds.shape[0] != count:
            raise ValueError(
                f"return_loss needs one image for each utterance, but there are {count} utterances and "
                f"{image_embeds.shape[0]} images. Repeat an image that several utterances describe."
            )
        if audio.alpha_sums is not None and audio.target_lengths is None:
            raise ValueError(_CAPTION_TARGETS)

    def _read_keywords(self, features: Tensor, lengths: Tensor, spans: Tensor | None) -> dict[str, Tensor]:
        """Normalise and quantise keyword features `(B, N, E)`, and embed the keywords by CLIP's text encoder."""
        config = self.config
        mask = torch.arange(features.shape[1], device=features.device) < lengths[:, None]  # (B, N)
        # The original lets padding into the statistics.
        counted = mask if config.has_cif and config.padding == "invariant" else None
        features = self.keyword_norm(features, counted)  # (B, N, E)
        quantized = quantize_keywords(
            features, self._codebook(), self.is_keyword, config.keyword_config.temperature, self.training
        )
        embeds, indices, similarities = quantized.embeds, quantized.indices, quantized.similarities
        if config.keyword_config.merge_repeats and not self.training:
            first, last, lengths = merge_repeats(indices, lengths)
            mask = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
            rows = torch.arange(first.shape[0], device=first.device)[:, None]
            embeds, indices, similarities = embeds[rows, first], indices[rows, first], similarities[rows, first]
            if spans is not None:
                spans = torch.stack([spans[rows, first, 0], spans[rows, last, 1]], dim=-1).masked_fill(
                    ~mask[..., None], 0
                )
        values = {
            "cascaded_embeds": F.normalize(self._embed_keywords(embeds, lengths), dim=-1),
            "keyword_ids": self.vocabulary_ids[indices].masked_fill(~mask, -1),
            "keyword_lengths": lengths,
            "keyword_similarities": similarities.masked_fill(~mask, 0),
            "keyword_embeds": embeds,
        }
        if spans is not None:
            values["keyword_spans"] = spans
        if self.training and config.loss_config.expected_weight:
            expected = expected_token_embeds(
                features, self._codebook(), self.is_keyword, config.keyword_config.temperature
            )
            values["expected_embeds"] = F.normalize(self._embed_keywords(expected, lengths), dim=-1)
        return values

    def _embed_keywords(self, keyword_embeds: Tensor, lengths: Tensor) -> Tensor:
        """Read keywords `(B, N, E)` with CLIP's text encoder (arXiv 2210.00705, section 3.3): `(B, P)`.

        They stand between CLIP's start and end tokens; the embedding is the projected output at the end token. Only
        N + 2 positions are computed, since the end token sees nothing behind itself.
        """
        text_model = self.clip.text_model
        batch, num_keywords, _ = keyword_embeds.shape
        ends = lengths[:, None] + 1  # (B, 1), the position of the end token
        positions = torch.arange(num_keywords + 2, device=keyword_embeds.device)
        ids = torch.tensor([self.config.start_token_id, self.config.end_token_id], device=keyword_embeds.device)
        start, end = text_model.embeddings.token_embedding(ids).expand(batch, -1, -1).split(1, dim=1)  # (B, 1, E)
        embeds = torch.cat([start, keyword_embeds.to(start.dtype), end], dim=1)  # (B, N + 2, E)
        embeds = torch.where((positions == ends)[:, :, None], end, embeds)
        hidden = text_model.embeddings(inputs_embeds=embeds)
        # Under SDPA the mask is None and causality rests on is_causal.
        mask = create_causal_mask(text_model.config, hidden, None, None)
        hidden = text_model.encoder(inputs_embeds=hidden, attention_mask=mask, is_causal=True).last_hidden_state
        at_end = hidden.gather(1, ends[:, :, None].expand(-1, -1, hidden.shape[-1])).squeeze(1)  # (B, E)
        return self.clip.text_projection(text_model.final_layer_norm(at_end))


def _unpickled(
    kind: type[SpeechClipPlusModel],
    config: SpeechClipPlusConfig,
    weights: dict[str, Tensor],
    trained: set[str],
    training: bool,
) -> SpeechClipPlusModel:
    model = kind(config).to(weights["layer_sum.weight"].device)  # of buffers that are not among the weights
    model.load_state_dict(weights, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    return model.train(training)


def is_frozen(module: nn.Module) -> bool:
    """Whether no parameter of a module requires a gradient."""
    return not any(parameter.requires_grad for parameter in module.parameters())


def _evaluation_view(module: nn.Module) -> nn.Module:
    """A module in evaluation mode with the weights of one that stays in its mode, for another thread perhaps."""
    view = object.__new__(type(module))
    view.__dict__ = {key: value.copy() if isinstance(value, dict) else value for key, value in vars(module).items()}
    view.__dict__["training"] = False
    view.__dict__["_modules"] = {name: child and _evaluation_view(child) for name, child in module._modules.items()}
    return view


def no_grad_if_frozen(module: nn.Module) -> AbstractContextManager:
    """Context without gradients for a frozen module, whose outputs could require one all the same.

    HuBERT, for instance, asks for the gradient of its first convolution's input.
    """
    return torch.no_grad() if is_frozen(module) else nullcontext()


def _vocabulary(config: SpeechClipPlusConfig) -> tuple[Tensor, Tensor]:
    """CLIP ids of the vocabulary in use, and which of them may become keywords; both `(V,)`."""
    ids, text_config = config.keyword_config.vocabulary_ids, config.text_config
    ids = torch.arange(text_config.vocab_size) if ids is None else torch.tensor(ids)
    excluded = torch.tensor(sorted(config.excluded_token_ids), dtype=torch.long, device=ids.device)
    return ids, ~torch.isin(ids, excluded)


def _commit(repo_id: str, revision: str | None, **kwargs: Any) -> str | None:
    """Commit that a branch or a tag stands for today, so that what is saved restores the same weights."""
    hub_arguments = {key: kwargs[key] for key in _HUB_ARGUMENTS if key in kwargs}
    return extract_commit_hash(cached_file(repo_id, "config.json", revision=revision, **hub_arguments), None)


def _absolute_if_folder(source: str | os.PathLike) -> str:
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"A backbone is given by its repository or folder, not as a {type(source).__name__}.")
    # A folder must be found again from wherever the saved model is loaded.
    return os.path.abspath(source) if os.path.isdir(source) else os.fspath(source)


__all__ = ["SpeechClipPlusModel", "SpeechClipPlusPreTrainedModel"]
