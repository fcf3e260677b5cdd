"""A model card of what the configuration says: true of every model, with no number that would have to be measured."""

import hashlib
import os
import re
from collections.abc import Sequence
from typing import Any

TAGS = ("speechclip-plus", "speech", "audio", "image", "retrieval", "visually-grounded-speech")
"""By which the Hub finds these models."""

PAPERS = {
    "SpeechCLIP": "https://arxiv.org/abs/2210.00705",
    "SpeechCLIP+": "https://arxiv.org/abs/2402.06959",
}

_LOADED_BY_CODE = """\
from transformers import AutoModel, AutoProcessor

model = AutoModel.from_pretrained("{name}", trust_remote_code=True)
processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
"""

_LOADED_BY_PACKAGE = """\
from speechclip_plus import SpeechClipPlusModel, SpeechClipPlusProcessor

model = SpeechClipPlusModel.from_pretrained("{name}")
processor = SpeechClipPlusProcessor.from_pretrained("{name}")
"""

_CALLED = """\
speech = processor(audio="query.wav", return_tensors="pt")
images = processor(images=["first.png", "second.png"], return_tensors="pt")
with torch.no_grad():
    speech_embeds = model.get_audio_features(**speech).pooler_output  # (1, P)
    image_embeds = model.get_image_features(**images).pooler_output  # (2, P)
similarity = speech_embeds @ image_embeds.T  # (1, 2) cosines
"""

_KEYWORDS = """\
for keyword in model.extract_keywords(**speech, tokenizer=processor)[0]:
    print(keyword.text, keyword.start, keyword.end)
"""

_BRANCHES = {
    "parallel": "one branch that embeds an utterance as a whole (parallel)",
    "cascaded": "one branch that reads keywords and lets CLIP's text encoder embed them (cascaded)",
    "cascaded_plus": "one branch that reads keywords and lets CLIP's text encoder embed them (cascaded)",
    "hybrid": "a branch that embeds an utterance as a whole (parallel) and one that reads keywords (cascaded)",
    "hybrid_plus": "a branch that embeds an utterance as a whole (parallel) and one that reads keywords (cascaded)",
}


def is_local_path(name: str) -> bool:
    """Whether what stands for a repository is a folder of this or another machine."""
    return name.startswith(("/", "~", ".")) or bool(re.match(r"[A-Za-z]:[\\/]", name)) or os.path.isdir(name)


def hub_backbones(config: Any) -> list[str]:
    """Repository ids of a model's backbones, speech encoder first; a folder on somebody's disk is none."""
    sources = [config.speech_backbone, config.clip_backbone]
    return [source["repo_id"] for source in sources if source and not is_local_path(source["repo_id"])]


def card_metadata(config: Any, tags: Sequence[str] = ()) -> dict[str, Any]:
    """What the Hub reads of a card, as far as the configuration tells: `huggingface_hub.ModelCardData` takes it.

    Args:
        config: A `SpeechClipPlusConfig`.
        tags: Tags to add.
    """
    own = [*TAGS, *(["keyword-extraction"] if config.has_cascaded else [])]
    base_models = hub_backbones(config)
    return {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction",
        "tags": [*own, *(tag for tag in tags if tag not in own)],
        "base_model": base_models or None,
        # Its own branch on top of theirs, or their weights trained on: the Hub's words for it.
        "base_model_relation": (
            ("finetune" if config.train_speech_encoder or config.train_clip else "adapter") if base_models else None
        ),
    }


def generated_card(card: str) -> str:
    """Mark a card as made by a program, so that a later one may take its place, as long as nobody changes it."""
    return f"{card.rstrip()}\n\n<!-- generated card {_mark(card)} -->\n"


def is_generated_card(card: str) -> bool:
    """Whether a card is as `generated_card` made it."""
    match = re.fullmatch(r"(.*)<!-- generated card ([0-9a-f]{16}) -->\s*", card.replace("\r\n", "\n"), re.DOTALL)
    return match is not None and match[2] == _mark(match[1])


def render_plain_card(config: Any, name: str, tags: Sequence[str] = ()) -> str:
    """Return a README.md with metadata, what the model is, and how to use it.

    Args:
        config: A `SpeechClipPlusConfig`, as it was saved.
        name: The repository, `owner/name`.
        tags: Tags to add to the metadata.
    """
    from huggingface_hub import ModelCardData

    lines = [
        f"# {name.split('/')[-1]}",
        "",
        f"A SpeechCLIP+ model of the variant `{config.variant}`. It embeds speech, pictures and texts into one "
        f"space of {config.clip_config.projection_dim} dimensions, so that what is said finds the picture that it "
        "describes.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {what} | {value} |" for what, value in _facts(config)),
        "",
        "## Use",
        "",
        render_usage(config, name),
        "This card was written from the configuration when the model was pushed. Nothing in it was measured: on what "
        "it was trained, how well it works and under which licence it may be used is for its authors to add.",
        "",
        "Method: " + ", ".join(f"[{title}]({address})" for title, address in PAPERS.items()) + ".",
    ]
    metadata = ModelCardData(**card_metadata(config, tags))
    return generated_card(f"---\n{metadata.to_yaml()}\n---\n\n" + "\n".join(lines))


def render_usage(config: Any, name: str) -> str:
    """Return how to load a model and what to call, as Markdown.

    Args:
        config: A `SpeechClipPlusConfig`, as it was saved: it says whether the code lies beside the weights.
        name: The repository, `owner/name`, or a folder.
    """
    travels = bool(getattr(config, "auto_map", None))
    loaded = (_LOADED_BY_CODE if travels else _LOADED_BY_PACKAGE).format(name=name)
    code = f"import torch\n{loaded}\n{_CALLED}{_KEYWORDS if config.has_cascaded else ''}"
    alone = "Where the package `speechclip-plus` is installed and imported, `trust_remote_code` is not needed.\n"
    return f"```python\n{code}```\n" + (f"\n{alone}" if travels else "")


def _mark(card: str) -> str:
    return hashlib.sha256(card.strip().encode()).hexdigest()[:16]


def _facts(config: Any) -> list[tuple[str, str]]:
    speech, clip = config.speech_config, config.clip_config
    facts = [("trained", _BRANCHES[config.variant])]
    if config.has_cif:
        facts.append(
            ("keywords", "their number follows the utterance (CIF), and each has the time at which it was said")
        )
    elif config.has_cascaded:
        facts.append(("keywords", f"{config.keyword_config.num_keywords} per utterance"))
    if config.has_cascaded and config.keyword_config.vocabulary_ids is not None:
        facts.append(("vocabulary", f"{len(config.keyword_config.vocabulary_ids):,} of CLIP's subwords"))
    facts += [
        (
            "speech encoder",
            _backbone(config.speech_backbone, config.train_speech_encoder)
            + f"{speech.model_type}, {speech.num_hidden_layers} layers of width {speech.hidden_size}, 16 kHz mono",
        ),
        (
            "CLIP",
            _backbone(config.clip_backbone, config.train_clip)
            + f"pictures of {clip.vision_config.image_size} x {clip.vision_config.image_size} pixels, "
            f"{clip.text_config.vocab_size:,} subwords",
        ),
        (
            "weights here",
            "all"
            if config.backbones_saved
            else "the trained part; the backbones are loaded from their own repositories",
        ),
    ]
    return facts


def _backbone(source: dict[str, Any] | None, trained: bool) -> str:
    state = "trained, " if trained else "frozen, "
    if source is None or is_local_path(source["repo_id"]):
        return state
    return f"[{source['repo_id']}](https://huggingface.co/{source['repo_id']}), {state}"
