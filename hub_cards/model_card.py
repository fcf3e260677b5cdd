"""A model card from measured facts: every number in it comes from the metrics it is given."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import jinja2
from huggingface_hub import EvalResult, ModelCardData

from ..trainer.versions import versions

_TEMPLATES = resources.files(__package__) / "templates"

PAPERS = {
    "SpeechCLIP": "https://arxiv.org/abs/2210.00705",
    "SpeechCLIP+": "https://arxiv.org/abs/2402.06959",
}
DIRECTIONS = {"speech_to_image": "speech to image", "image_to_speech": "image to speech"}
RECALLS = ("R@1", "R@5", "R@10")


@dataclass
class ModelCardFacts:
    """What a model card tells.

    Attributes:
        name: the model's name.
        config: its `SpeechClipPlusConfig`.
        metrics: of the split named `split`, by the names of `trainer.evaluation.split_metrics`.
        chance: what guessing gives, under the same names; what is not known is left out.
        dataset: the data set's name, such as "spoken_scenes".
        dataset_text: a sentence about it.
        split: which split was measured.
        counts: rows per split.
        training: hyper-parameters and what happened, name to value, in the order to be shown.
        backbones: a line about each frozen encoder.
        limits: what the model is not for.
        license: of the weights.
        language: BCP 47 code of the speech, or None.
        hub_dataset: the data set's repository id, if it is on the Hub.
    """

    name: str
    config: Any
    metrics: Mapping[str, float]
    chance: Mapping[str, float] = field(default_factory=dict)
    dataset: str = "spoken_scenes"
    dataset_text: str = ""
    split: str = "test"
    counts: Mapping[str, int] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    backbones: Mapping[str, str] = field(default_factory=dict)
    limits: str = ""
    license: str = "mit"
    language: str | None = "en"
    hub_dataset: str | None = None


def render_model_card(facts: ModelCardFacts) -> str:
    """Return the card, README.md with metadata that the Hub accepts.

    Raises:
        ValueError: if there is no metric at all: a card without a measured number says nothing.
    """
    branches = [name for name in ("parallel", "cascaded") if f"{name}_speech_to_image_R@1" in facts.metrics]
    if not branches:
        raise ValueError(
            "The metrics hold no retrieval recall of any branch; give those that SpeechClipPlusTrainer.evaluate() "
            "returned, with names such as 'parallel_speech_to_image_R@1'."
        )
    body = render_template(
        "model_card.md.jinja",
        facts=facts,
        config=facts.config,
        branches=branches,
        directions=DIRECTIONS,
        recalls=RECALLS,
        papers=PAPERS,
        versions=versions(),
    )
    return f"---\n{card_metadata(facts).to_yaml()}\n---\n\n{body.strip()}\n"


def render_template(name: str, **values: Any) -> str:
    """Fill one of the templates beside this module; a value that it needs and is not given is an error."""
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string((_TEMPLATES / name).read_text(encoding="utf-8")).render(**values)


def card_metadata(facts: ModelCardFacts) -> ModelCardData:
    """Return the card's metadata: tags by which the Hub finds the model, and its results."""
    results = [
        EvalResult(
            task_type="image-feature-extraction" if direction == "image_to_speech" else "feature-extraction",
            task_name=f"{DIRECTIONS[direction]} retrieval, {branch} branch",
            dataset_type=facts.hub_dataset or facts.dataset,
            dataset_name=facts.dataset,
            dataset_split=facts.split,
            metric_type="recall",
            metric_name=f"{branch} {DIRECTIONS[direction]} {recall}",
            metric_value=round(facts.metrics[f"{branch}_{direction}_{recall}"], 2),
        )
        for branch in ("parallel", "cascaded")
        for direction in DIRECTIONS
        for recall in RECALLS
        if f"{branch}_{direction}_{recall}" in facts.metrics
    ]
    if "keyword_hit_rate@1" in facts.metrics:
        results.append(
            EvalResult(
                task_type="feature-extraction",
                task_name="keyword extraction",
                dataset_type=facts.hub_dataset or facts.dataset,
                dataset_name=facts.dataset,
                dataset_split=facts.split,
                metric_type="keyword_hit_rate",
                metric_name="keyword hit rate, k=1",
                metric_value=round(facts.metrics["keyword_hit_rate@1"], 2),
            )
        )
    return ModelCardData(
        license=facts.license,
        language=facts.language,
        library_name="transformers",
        pipeline_tag="feature-extraction",
        tags=["speechclip-plus", "speech", "audio", "image", "retrieval", "visually-grounded-speech"],
        datasets=[facts.hub_dataset] if facts.hub_dataset else None,
        base_model=hub_backbones(facts.config) or None,
        model_name=facts.name,
        eval_results=results,
    )


def hub_backbones(config: Any) -> list[str]:
    """Repository ids of the backbones; a folder on somebody's disk is none."""
    sources = [config.speech_backbone, config.clip_backbone]
    names = [source["repo_id"] for source in sources if source]
    return [name for name in names if name.count("/") == 1 and not name.startswith((".", "/", "~"))]
