"""Keywords of one recording, as the reports show them."""

from typing import Any

import numpy as np
import torch

from ...hub_cards.report import SpokenKeyword
from ...modeling_speechclip_plus.audio_utils import SAMPLING_RATE


@torch.no_grad()
def spoken_keywords(
    model: Any, processor: Any, waveform: np.ndarray, caption: str | None
) -> tuple[list[SpokenKeyword], np.ndarray | None]:
    """Read the keywords out of a recording.

    Args:
        model: a `SpeechClipPlusModel`.
        processor: its processor.
        waveform: (S,) samples at 16 kHz.
        caption: what is said, if known.

    Returns:
        The keywords (none if the model has none), and CIF's weight of each frame (T,), or None without CIF.
    """
    if not model.config.has_cascaded:
        return [], None
    inputs = processor(audio=waveform, sampling_rate=SAMPLING_RATE)
    speech = {name: inputs[name].to(model.device) for name in ("input_values", "attention_mask")}
    gold = None if caption is None else set(processor.tokenizer(caption, add_special_tokens=False)["input_ids"])
    top_k = min(4, int(model.is_keyword.sum()))
    keywords = [
        SpokenKeyword(
            text=keyword.text or str(keyword.id),
            similarity=keyword.similarity,
            start=keyword.start,
            end=keyword.end,
            in_caption=None if gold is None else keyword.id in gold,
            neighbours=[
                neighbour.text or str(neighbour.id) for neighbour in keyword.neighbours if neighbour.id != keyword.id
            ],
        )
        for keyword in model.extract_keywords(**speech, tokenizer=processor, top_k=top_k)[0]
    ]
    alphas = model(**speech).alphas
    return keywords, None if alphas is None else alphas[0].cpu().numpy()


def frame_seconds(model: Any) -> float:
    """Seconds from one frame of the model's speech encoder to the next."""
    return float(np.prod(model.config.speech_config.conv_stride)) / SAMPLING_RATE
