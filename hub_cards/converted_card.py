"""The model card of a converted checkpoint: where it came from, and what others reported of it."""

import re
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import ModelCardData

from ..configuration.presets import published_results
from .model_card import citation, render_template
from .plain_card import card_metadata, render_usage


@dataclass
class ConvertedCardFacts:
    """What the card of a converted model tells.

    Attributes:
        name: the model's name.
        config: its `SpeechClipPlusConfig`.
        file_name: the checkpoint's.
        sha256: the checkpoint's.
        presets: published configurations that it agrees with.
        notes: what was concluded in converting.
    """

    name: str
    config: Any
    file_name: str
    sha256: str
    presets: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def render_converted_card(facts: ConvertedCardFacts) -> str:
    """Return the card, README.md. It holds no number that was measured here: nothing was."""
    # Some published models agree in all but what a checkpoint tells of its data; then the file's own figure decides.
    reported = [(preset, published_results(preset)) for preset in facts.presets]
    named = figure_of_file_name(facts.file_name)
    body = render_template(
        "converted_card.md.jinja",
        facts=facts,
        config=facts.config,
        reported=reported,
        named=named,
        usage=render_usage(facts.config, facts.name),
        citation=citation(),
    )
    metadata = ModelCardData(
        license="other",
        license_name="as-published-by-the-authors",
        language="en",
        **card_metadata(facts.config),
    )
    return f"---\n{metadata.to_yaml()}\n---\n\n{body.strip()}\n"


def figure_of_file_name(file_name: str) -> str | None:
    """Read the validation figure that the original puts into a checkpoint's name, as a phrase."""
    match = re.search(r"val_recall_mean_(\d+)[=_](\d+(?:\.\d+)?)", file_name)
    return None if match is None else f"mean R@{match[1]} of {float(match[2]):.2f} on the validation split"
