"""Configuration of SpeechCLIP+ models (arXiv 2402.06959)."""

import difflib
import re
from dataclasses import fields
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, CLIPConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.utils.type_validators import interval, positive_int_field

VARIANTS = ("parallel", "cascaded", "cascaded_plus", "hybrid", "hybrid_plus")
FORMAT_VERSION = 1

_positive = interval(min=0, exclude_min=True)
_not_negative = interval(min=0)
_probability = interval(min=0, max=1, exclude_max=True)


@strict
class _BlockConfig(PreTrainedConfig):
    """A part of a [`SpeechClipPlusConfig`], which refuses keys that it does not know."""

    def __post_init__(self, **kwargs: Any) -> None:
        unknown = [key for key in kwargs if not (hasattr(PreTrainedConfig, key) or key.startswith("_"))]
        if unknown:
            names = {field.name for field in fields(self)} - {field.name for field in fields(PreTrainedConfig)}
            raise ValueError(
                f"{type(self).__name__} does not know {', '.join(map(repr, sorted(unknown)))}; "
                f"it has {', '.join(sorted(names))}."
            )
        super().__post_init__(**kwargs)


@strict
class SpeechClipPlusBranchConfig(_BlockConfig):
    """The trained layer over the frozen speech features, shared by both branches of the hybrids.

    Args:
        layer_type: `"attention_and_norm"`, `LayerNorm(MultiheadAttention(x) + x)` without a feed-forward part, or
            `"transformer_encoder"`, a post-norm encoder layer followed by one more LayerNorm.
        num_layers: Layers of that kind.
        num_attention_heads: Heads; must divide the speech encoder's width.
        intermediate_size: Width of the feed-forward part (`transformer_encoder` only).
        dropout: Inside the layers and in the parallel projection's hidden layer.
        layer_norm_eps: Of the layer norms.
        parallel_projection_hidden_size: Width of a hidden ReLU layer in the parallel projection; `None` for a
            plain linear map.
    """

    model_type = "speechclip_plus_branch"
    base_config_key = "branch_config"

    layer_type: Literal["attention_and_norm", "transformer_encoder"] = "attention_and_norm"
    num_layers: int = _positive(default=1)
    num_attention_heads: int = _positive(default=8)
    intermediate_size: int = _positive(default=3072)
    dropout: float | int = _probability(default=0.1)
    layer_norm_eps: float = 1e-5
    parallel_projection_hidden_size: int | None = positive_int_field(default=None)


@strict
class SpeechClipPlusCifConfig(_BlockConfig):
    """Continuous Integrate-and-Fire, which decides how many keywords an utterance has (paper section 2.2).

    Args:
        threshold: Accumulated weight at which a keyword fires.
        conv_layers: Convolutions over time in front of the weights.
        conv_width: Their kernel width in frames; odd.
        dropout: Dropout after each convolution and before the weights' linear map.
        scale_until_step: Global training step before which the weights are scaled so that exactly the target
            number of keywords fires; 0 never scales.
        tail_threshold: Weight that a remainder needs to become one more keyword in evaluation.
        target_length: `"frames"`, one keyword per `frames_per_keyword` frames, or `"caption"`, the lengths given
            to `forward(target_lengths=...)`, such as numbers of caption tokens.
        frames_per_keyword: Frames (50 per second) per keyword of the `"frames"` target.
        segmentation: `"weights"` as published, where a predicted weight per frame decides where keywords begin; or
            `"feature_change"`, where they begin where the speech encoder's last hidden state changes most, and the
            mean of the frames between two changes, before the branch's attention, becomes the keyword. The published
            objective leaves the weights flat (docs/keywords.md). Needs `hybrid_plus` and the `"frames"` target.
    """

    model_type = "speechclip_plus_cif"
    base_config_key = "cif_config"

    threshold: float | int = _positive(default=1.0)
    conv_layers: int = _positive(default=1)
    conv_width: int = _positive(default=3)
    dropout: float | int = _probability(default=0.5)
    scale_until_step: int = _not_negative(default=5000)
    tail_threshold: float | int = _positive(default=0.5)
    target_length: Literal["frames", "caption"] = "frames"
    frames_per_keyword: int = _positive(default=20)
    segmentation: Literal["weights", "feature_change"] = "weights"


@strict
class SpeechClipPlusKeywordConfig(_BlockConfig):
    """Keywords: from speech features to tokens of CLIP (paper section 2.1).

    Args:
        num_keywords: Keywords per utterance of the fixed-number variants (`cascaded`, `hybrid`); `None` in the
            plus variants, where CIF decides.
        projection_hidden_size: Width of a hidden ReLU layer between speech and token width; `None` for a plain
            linear map.
        projection_dropout: Dropout in that hidden layer.
        batch_norm_scale: Factor on the per-dimension standard deviation of CLIP's token embeddings that the
            batch normalisation's weight starts from.
        temperature: Temperature of the softmax through which the quantiser's gradient flows.
        vocabulary_ids: CLIP token ids that may become keywords; `None` for all of them.
        excluded_ids: Ids of that vocabulary that are no keywords; `None` for CLIP's padding (0), start and end.
        merge_repeats: Whether neighbouring keywords of the same token are read as one in evaluation, whose span is
            theirs together: a long word often fires twice (docs/keywords.md). Not as published.
    """

    model_type = "speechclip_plus_keyword"
    base_config_key = "keyword_config"

    num_keywords: int | None = None
    projection_hidden_size: int | None = positive_int_field(default=None)
    projection_dropout: float | int = _probability(default=0.1)
    batch_norm_scale: float | int = _positive(default=1.0)
    temperature: float | int = _positive(default=0.1)
    vocabulary_ids: list[int] | None = None
    excluded_ids: list[int] | None = None
    merge_repeats: bool = False


@strict
class SpeechClipPlusLossConfig(_BlockConfig):
    """Weights of the losses and the temperature shared by the branches.

    Args:
        parallel_weight: Weight of the parallel branch's contrastive loss.
        cascaded_weight: Weight of the cascaded branch's contrastive loss.
        quantity_weight: Weight of CIF's quantity loss.
        expected_weight: Weight of the contrastive loss of the keywords before they are snapped: the softmax-weighted
            mean of the tokens' embeddings, read by CLIP's text encoder. Its exact gradient finds better tokens than
            the straight-through one alone (docs/keywords.md); 0, as published, leaves it out.
        temperature: Initial temperature; the model's `logit_scale` starts at `log(1 / temperature)`.
        train_temperature: Whether `logit_scale` is trained.
    """

    model_type = "speechclip_plus_loss"
    base_config_key = "loss_config"

    parallel_weight: float | int = _not_negative(default=1.0)
    cascaded_weight: float | int = _not_negative(default=1.0)
    quantity_weight: float | int = _not_negative(default=0.25)
    expected_weight: float | int = _not_negative(default=0.0)
    temperature: float | int = _positive(default=0.07)
    train_temperature: bool = True


@strict
class SpeechClipPlusConfig(PreTrainedConfig):
    """Configuration of a [`SpeechClipPlusModel`].

    Args:
        model_variant: `"parallel"`, `"cascaded"`, `"cascaded_plus"`, `"hybrid"` or `"hybrid_plus"`.
        speech_config: Configuration (or its dictionary with `model_type`) of the speech encoder: hubert, wavlm,
            wav2vec2, wav2vec2-bert or whisper. Its LayerDrop is set to 0, since every layer enters the weighted sum.
        clip_config: Configuration of the CLIP model.
        branch_config: A [`SpeechClipPlusBranchConfig`] or its dictionary.
        cif_config: A [`SpeechClipPlusCifConfig`] or its dictionary; `None` in the variants without CIF.
        keyword_config: A [`SpeechClipPlusKeywordConfig`] or its dictionary; `None` in the parallel variant.
        loss_config: A [`SpeechClipPlusLossConfig`] or its dictionary.
        retrieval_branch: Branch whose embedding stands for the utterance: `"parallel"` or `"cascaded"`; `None` for
            the parallel one where there is one.
        normalize_hidden_states: Apply a parameter-free layer norm to each hidden state of the speech encoder before
            their weighted sum.
        padding: `"invariant"`, an utterance's output does not depend on what it is batched with, or `"original"`,
            batches are computed exactly as the original code does, where padding leaks into group norm, attention
            masks, CIF's convolution and batch statistics.
        speech_encoder_dropout: Keep the dropout of a frozen speech encoder active in training, as the original does.
        train_speech_encoder: Whether the speech encoder is trained; frozen otherwise.
        train_clip: Whether CLIP is trained; frozen otherwise.
        speech_backbone: Where the speech encoder's weights came from, `{"repo_id": ..., "revision": ...}`.
        clip_backbone: The same for CLIP.
        preset: Name of the preset that the configuration was made from; keys of it may have been changed since.
        backbones_saved: `False` in a saved model that holds the trained part alone; its backbones are then loaded
            from `speech_backbone` and `clip_backbone`.
        format_version: Version of this layout; newer ones are refused.

    Raises:
        ValueError: If the combination is impossible; the message says what to change.
        huggingface_hub.errors.StrictDataclassFieldValidationError: If a value has the wrong type or is out of range.

    Example:
    ```python
    >>> from speechclip_plus import SpeechClipPlusConfig
    >>> SpeechClipPlusConfig.from_preset("hybrid_plus-base-flickr8k").model_variant
    'hybrid_plus'

    ```
    """

    model_type = "speechclip_plus"
    sub_configs_defaults = {
        "speech_config": SubConfigSpec(AutoConfig, model_type="hubert"),
        "clip_config": CLIPConfig,
        "branch_config": SpeechClipPlusBranchConfig,
        "cif_config": SubConfigSpec(SpeechClipPlusCifConfig, optional=True),
        "keyword_config": SubConfigSpec(SpeechClipPlusKeywordConfig, optional=True),
        "loss_config": SpeechClipPlusLossConfig,
    }

    model_variant: str = "hybrid_plus"
    speech_config: dict | PreTrainedConfig | None = None
    clip_config: dict | PreTrainedConfig | None = None
    branch_config: dict | PreTrainedConfig | None = None
    cif_config: dict | PreTrainedConfig | None = None
    keyword_config: dict | PreTrainedConfig | None = None
    loss_config: dict | PreTrainedConfig | None = None
    retrieval_branch: str | None = None
    normalize_hidden_states: bool = False
    padding: Literal["invariant", "original"] = "invariant"
    speech_encoder_dropout: bool = False
    train_speech_encoder: bool = False
    train_clip: bool = False
    speech_backbone: dict | None = None
    clip_backbone: dict | None = None
    preset: str | None = None
    backbones_saved: bool = True
    format_version: int = FORMAT_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        if self.format_version > FORMAT_VERSION:
            raise ValueError(
                f"This configuration has format_version {self.format_version}, but this speechclip-plus reads up to "
                f"{FORMAT_VERSION}: it was saved by a newer version. Upgrade with `pip install -U speechclip-plus`."
            )
        if self.model_variant not in VARIANTS:
            raise ValueError(f"Unknown model_variant {self.model_variant!r}; choose one of {', '.join(VARIANTS)}.")
        if not __name__.startswith("transformers_modules"):
            # This package registers its pipelines. With those that travel with a model in its configuration,
            # transformers would ask for `trust_remote_code`.
            kwargs.pop("custom_pipelines", None)
        names = [field.name for field in fields(self)]
        for key in kwargs:
            if (close := difflib.get_close_matches(key, names, n=1, cutoff=0.7)) and key not in names:
                raise ValueError(f"SpeechClipPlusConfig does not know {key!r}; did you mean {close[0]!r}?")
        if self.has_cif and self.cif_config is None:
            self.cif_config = {}
        if self.has_cascaded and self.keyword_config is None:
            self.keyword_config = {}
        super().__post_init__(**kwargs)
        if self.has_cascaded and not self.has_cif and self.keyword_config.num_keywords is None:
            self.keyword_config.num_keywords = 8
        if self.retrieval_branch is None:
            self.retrieval_branch = "parallel" if self.has_parallel else "cascaded"
        for key in ("layerdrop", "encoder_layerdrop"):
            if hasattr(self.speech_config, key):
                setattr(self.speech_config, key, 0.0)
        # Called here too, so that what is wrong surfaces as a plain ValueError at construction.
        self.validate_architecture()

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> "SpeechClipPlusConfig":
        """Build the configuration of a published model (or a tiny one) by its name.

        Args:
            name: For instance `"hybrid_plus-large-flickr8k"`; `speechclip_plus.preset_names()` lists them.
            **overrides: Keys of this configuration that replace the preset's; a dictionary is merged into a block.
        """
        from .presets import load_preset

        values = {"preset": name, **load_preset(name)["config"]}
        return cls(**_with_overrides(values, overrides))

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `transformers.PreTrainedConfig.from_dict`; a dictionary given for a block is merged into it."""
        names = {field.name for field in fields(cls)} - {field.name for field in fields(PreTrainedConfig)}
        overrides = {key: kwargs.pop(key) for key in names & kwargs.keys()}
        return super().from_dict(_with_overrides(config_dict, overrides), **kwargs)

    @property
    def has_parallel(self) -> bool:
        """Whether the variant has a parallel branch."""
        return self.model_variant in ("parallel", "hybrid", "hybrid_plus")

    @property
    def has_cascaded(self) -> bool:
        """Whether the variant has a cascaded branch, that is keywords."""
        return self.model_variant != "parallel"

    @property
    def has_cif(self) -> bool:
        """Whether CIF decides the number of keywords (the plus variants)."""
        return self.model_variant in ("cascaded_plus", "hybrid_plus")

    @property
    def hidden_size(self) -> int:
        """Width of the speech features, D."""
        return self.speech_config.hidden_size

    @property
    def projection_dim(self) -> int:
        """Width of the joint embedding space, P."""
        return self.clip_config.projection_dim

    @property
    def text_config(self) -> Any:
        """Configuration of CLIP's text encoder, where transformers looks for the vocabulary."""
        return self.clip_config.text_config

    @property
    def max_keywords(self) -> int:
        """Keywords that fit between CLIP's start and end tokens."""
        return self.text_config.max_position_embeddings - 2

    @property
    def start_token_id(self) -> int:
        """CLIP's start token."""
        text = self.text_config
        # Published CLIP configurations carry 0 and 2 here, which are wrong; the table's last two rows are right.
        return text.vocab_size - 2 if text.eos_token_id == 2 else text.bos_token_id

    @property
    def end_token_id(self) -> int:
        """CLIP's end token."""
        text = self.text_config
        return text.vocab_size - 1 if text.eos_token_id == 2 else text.eos_token_id

    def validate_architecture(self) -> None:
        """Raise a `ValueError` naming the keys and values of parts that do not fit together."""
        super().validate_architecture()
        branches = [name for name in ("parallel", "cascaded") if getattr(self, f"has_{name}")]
        if self.retrieval_branch not in branches:
            raise ValueError(
                f"retrieval_branch is {self.retrieval_branch!r}, but the {self.model_variant} variant has only: "
                f"{', '.join(branches)}."
            )
        heads = self.branch_config.num_attention_heads
        if self.hidden_size % heads:
            raise ValueError(
                f"branch_config.num_attention_heads ({heads}) does not divide the speech encoder's width "
                f"({self.hidden_size}). Choose a divisor of {self.hidden_size}."
            )
        for given, expected, block, what, others in (
            (self.cif_config, self.has_cif, "cif_config", "CIF", "cascaded_plus or hybrid_plus"),
            (self.keyword_config, self.has_cascaded, "keyword_config", "keywords", "a cascaded or hybrid variant"),
        ):
            if expected != (given is not None):
                raise ValueError(
                    f"The {self.model_variant} variant has no {what}, but a {block} was given. Remove it, or choose "
                    f"{others}."
                )
        if self.has_cif:
            self._validate_cif()
        if self.has_cascaded:
            self._validate_keywords()
        for name in ("speech_backbone", "clip_backbone"):
            backbone = getattr(self, name)
            if backbone is not None and not isinstance(backbone.get("repo_id"), str):
                raise ValueError(f"{name} must be {{'repo_id': ..., 'revision': ...}}, but is {backbone!r}.")
            if backbone is None and not self.backbones_saved:
                raise ValueError(f"backbones_saved is False, so {name} must say where its weights are.")

    def _validate_cif(self) -> None:
        cif = self.cif_config
        if cif.conv_width % 2 == 0:
            raise ValueError(f"cif_config.conv_width must be odd to keep the number of frames: {cif.conv_width}.")
        if cif.tail_threshold > cif.threshold:
            raise ValueError(
                f"cif_config.tail_threshold ({cif.tail_threshold}) is above the firing threshold ({cif.threshold}), "
                "so no remainder could ever reach it."
            )
        if cif.segmentation == "feature_change" and (
            self.model_variant != "hybrid_plus" or cif.target_length != "frames"
        ):
            raise ValueError(
                "cif_config.segmentation='feature_change' needs model_variant='hybrid_plus' and "
                f"cif_config.target_length='frames', but they are {self.model_variant!r} and {cif.target_length!r}."
            )

    def _validate_keywords(self) -> None:
        keyword, text = self.keyword_config, self.text_config
        if self.has_cif and keyword.num_keywords is not None:
            raise ValueError(
                f"keyword_config.num_keywords is {keyword.num_keywords}, but in the {self.model_variant} variant CIF "
                "decides how many keywords there are. Remove it, or choose cascaded or hybrid."
            )
        if not self.has_cif and not 1 <= (keyword.num_keywords or 0) <= self.max_keywords:
            raise ValueError(
                f"keyword_config.num_keywords must be between 1 and {self.max_keywords} (what fits into CLIP's "
                f"{text.max_position_embeddings} places), but is {keyword.num_keywords}."
            )
        for name, token_id in (("bos_token_id", self.start_token_id), ("eos_token_id", self.end_token_id)):
            if token_id is None or not 0 <= token_id < text.vocab_size:
                raise ValueError(
                    f"clip_config.text_config.{name} is {token_id}, outside its vocabulary of {text.vocab_size}; "
                    "keywords are read between CLIP's start and end tokens, so set it to theirs."
                )
        if (ids := keyword.vocabulary_ids) is not None:
            bad = next((i for i in ids if not 0 <= i < text.vocab_size), None)
            if bad is not None or len(set(ids)) != len(ids):
                what = "has repeated ids" if bad is None else f"has the id {bad}, outside CLIP's {text.vocab_size}"
                raise ValueError(f"keyword_config.vocabulary_ids {what}.")
            if not set(ids) - self.excluded_token_ids:
                raise ValueError("keyword_config.vocabulary_ids holds no token that may become a keyword.")

    @property
    def excluded_token_ids(self) -> set[int]:
        """CLIP token ids that never become keywords."""
        excluded = self.keyword_config.excluded_ids
        return {0, self.start_token_id, self.end_token_id} if excluded is None else set(excluded)

    def to_json_string(self, use_diff: bool = True) -> str:
        """Serialise, with lists of numbers on one line each: a vocabulary has thousands."""
        text = super().to_json_string(use_diff)
        return re.sub(r"\[\s+(\d+(?:,\s+\d+)*)\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text)

    def __repr__(self) -> str:
        """Show long vocabularies, which would fill the screen, by their beginning."""

        def shortened(found: re.Match[str]) -> str:
            ids = found[1].split(", ")
            return f"[{', '.join(ids[:4])}, ... {len(ids)} ids]"

        return re.sub(r"\[(\d+(?:, \d+){8,})\]", shortened, super().__repr__())


def _with_overrides(values: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    """Replace values of a configuration; in a block, at any depth, only those that are given."""
    merged = dict(values)
    for key, value in overrides.items():
        if key.endswith("_config") and isinstance(value, dict) and isinstance(merged.get(key), dict):
            value = _with_overrides(merged[key], value)
        merged[key] = value
    return merged


__all__ = [
    "SpeechClipPlusBranchConfig",
    "SpeechClipPlusCifConfig",
    "SpeechClipPlusConfig",
    "SpeechClipPlusKeywordConfig",
    "SpeechClipPlusLossConfig",
]
