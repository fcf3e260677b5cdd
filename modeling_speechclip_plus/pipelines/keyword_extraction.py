"""Keyword extraction from speech, however long it is."""

from collections.abc import Sequence
from typing import Any

from transformers.utils import logging

from ..audio_utils import SAMPLING_RATE
from ..outputs import Keyword, Neighbour
from .base import CHUNK_LENGTH_S, SpeechClipPlusPipeline, Windowing, waveforms

logger = logging.get_logger(__name__)


class SpeechKeywordExtractionPipeline(SpeechClipPlusPipeline):
    """Read keywords out of speech that was never transcribed.

    Task "speech-keyword-extraction". The model must have a cascaded branch. Recordings of more than `chunk_length_s`
    are read in windows that overlap, an hour of a file in no more memory than a minute; what two windows both hear is
    told once.

    Example:
    ```python
    from transformers import pipeline
    import speechclip_plus

    extractor = pipeline("speech-keyword-extraction", model="quickstart/model")
    extractor("query.wav", return_timestamps=True)
    # [{"keyword": "red", "score": 0.41, "token_id": 2, "timestamp": (0.0, 0.38)}, ...]
    ```
    """

    _arguments = {
        **SpeechClipPlusPipeline._arguments,
        "top_k": ("forward", "postprocess"),
        "return_timestamps": ("postprocess",),
    }

    def __call__(self, audio: Any, **kwargs: Any) -> Any:
        """Extract keywords.

        Args:
            audio: As in `SpeechFeatureExtractionPipeline`.
            **kwargs: `top_k`: how many nearest tokens to tell with each keyword; none if not given.
                `return_timestamps`: whether to tell from when to when each keyword is said, in seconds.
                `chunk_length_s`: length of the windows in which recordings are read, 15 s if not given; 0 reads them
                whole. `stride_length_s`: overlap of the windows, in seconds or as (left, right); a sixth of
                `chunk_length_s` on both sides if not given. `batch_size`, `num_workers`.

        Returns:
            For one recording a list of dictionaries in spoken order: `keyword` (the token's text), `score` (cosine
            similarity of what was heard and the token), `token_id` (CLIP's); with `return_timestamps` `timestamp`
            (start, end); with `top_k` `neighbours`, dictionaries of `keyword`, `score`, `token_id`, the keyword itself
            first. For a list of recordings a list of such lists; for a data set or a generator an iterator.
        """
        return self._answer("audio", audio, **kwargs)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], ...]:
        config = self.model.config
        if not config.has_cascaded:
            raise ValueError(
                f"This {config.model_variant} model has no keywords; use a cascaded or hybrid one, or the task "
                "'speech-image-retrieval'."
            )
        if given.get("return_timestamps") and not config.has_cif:
            raise ValueError(
                f"return_timestamps: the {config.model_variant} variant does not say when its keywords are said; "
                "cascaded_plus and hybrid_plus do."
            )
        return super()._sanitize_parameters(**given)

    def _windowing(
        self, chunk_length_s: float = CHUNK_LENGTH_S, stride_length_s: float | Sequence[float] | None = None
    ) -> Windowing:
        if self.model.config.has_cif:
            return super()._windowing(chunk_length_s, stride_length_s)
        windowing = super()._windowing(chunk_length_s, 0 if stride_length_s is None else stride_length_s)
        if windowing.left or windowing.right:
            raise ValueError(
                f"stride_length_s={stride_length_s!r}: the {self.model.config.model_variant} variant does not say "
                "when its keywords are said, so those that two windows both hear would be told twice; leave it out."
            )
        return windowing

    def _forward(self, model_inputs: dict[str, Any], top_k: int | None = None) -> dict[str, Any]:
        keywords = self.model.extract_keywords(
            **waveforms(model_inputs), tokenizer=self.processor, top_k=1 if top_k is None else top_k
        )
        place = {name: model_inputs[name] for name in ("is_last", "core", "span")}  # lists in batches of several
        return {**place, "keywords": keywords if isinstance(place["is_last"], list) else keywords[0]}

    def postprocess(
        self, model_outputs: list[dict[str, Any]], top_k: int | None = None, return_timestamps: bool = False
    ) -> list[dict[str, Any]]:
        """Join the keywords of a recording's windows."""
        heard: list[tuple[Keyword, Any]] = [(word, None) for output in model_outputs for word in output["keywords"]]
        if self.model.config.has_cif:
            most = self.model.config.max_keywords
            for output in model_outputs:
                if len(output["keywords"]) == most:
                    start, end = (sample / SAMPLING_RATE for sample in output["span"])
                    logger.warning(
                        f"More than the {most} keywords that fit into CLIP's places may be said between {start:.1f} "
                        f"and {end:.1f} s: choose a shorter chunk_length_s."
                    )
            heard = _joined(model_outputs)
        answer = []
        for keyword, span in heard:
            answer.append(_told(keyword))
            if return_timestamps:
                answer[-1]["timestamp"] = span
            if top_k is not None:
                answer[-1]["neighbours"] = [_told(neighbour) for neighbour in keyword.neighbours]
        return answer


def _joined(model_outputs: list[dict[str, Any]]) -> list[tuple[Keyword, tuple[float, float]]]:
    """Tell each keyword of windows that overlap once, with its times in seconds of the whole recording.

    Both windows hear what lies in their overlap, not at quite the same times, and cut it at other places. So a window
    speaks, by the middles of its keywords, up to the end of its own part, and the next one goes on where the last
    keyword told ends.
    """
    heard: list[tuple[Keyword, tuple[float, float]]] = []
    covered = 0.0  # up to where what was told reaches
    for output in model_outputs:
        offset = output["span"][0] / SAMPLING_RATE
        end_of_core = float("inf") if output is model_outputs[-1] else output["core"][1] / SAMPLING_RATE
        told_before = len(heard)
        for keyword in output["keywords"]:
            start, end = offset + keyword.start, offset + keyword.end
            if not covered <= (start + end) / 2 < end_of_core:
                continue
            if start < covered and len(heard) == told_before and keyword.id == heard[-1][0].id:
                heard[-1] = heard[-1][0], (heard[-1][1][0], end)  # the same one, heard a little later now
            else:
                heard.append((keyword, (max(start, covered), end)))
        if heard:
            covered = heard[-1][1][1]
    return heard


def _told(token: Keyword | Neighbour) -> dict[str, Any]:
    return {"keyword": token.text, "score": token.similarity, "token_id": token.id}
