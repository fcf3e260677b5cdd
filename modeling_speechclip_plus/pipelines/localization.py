"""Localization of a text, an image or another utterance in speech."""

from typing import Any

import torch
from torch import Tensor

from ..audio_utils import SAMPLING_RATE
from ..localization import best_span
from .base import PipelineInput, SpeechClipPlusPipeline, one_of, waveforms


class SpeechLocalizationPipeline(SpeechClipPlusPipeline):
    """Find where in speech something is said.

    Task "speech-localization" (the field calls it keyword localization, and visually prompted keyword localization
    where an image asks). Any variant answers, the parallel one too; docs/keywords.md says how well.

    Example:
    ```python
    from transformers import pipeline
    import speechclip_plus

    localizer = pipeline("speech-localization", model="quickstart/model")
    localizer("query.wav", query_text="purple")  # {"score": 0.61, "timestamp": (0.42, 0.8), ...}
    localizer("query.wav", query_image="first.png")
    ```
    """

    _arguments = {
        **SpeechClipPlusPipeline._arguments,
        "branch": ("forward",),
        "query": ("forward",),
        "query_embeds": ("forward",),  # from `__call__`, which makes them once for all windows
    }

    def __call__(
        self, inputs: Any, *, batch_size: int | None = None, num_workers: int | None = None, **kwargs: Any
    ) -> Any:
        """Localize.

        Args:
            inputs: Audio: see `SpeechFeatureExtractionPipeline`.
            batch_size: Windows that are computed together; 1 if not given.
            num_workers: Processes that read them.
            **kwargs: `query_text`, `query_image` or `query_audio`: what to look for. `branch`, `chunk_length_s`,
                `stride_length_s`: as in `SpeechFeatureExtractionPipeline`.

        Returns:
            A dictionary for each input: `score`, the highest of `scores`, which are the cosine similarities of the
            query and each frame; `frame_s`, seconds from one frame to the next; `timestamp`, start and end of the
            best span in seconds.
        """
        _, forward, _ = self._sanitize_parameters(**kwargs)
        given = {**self._forward_params, **forward}
        with self.device_placement(), torch.no_grad():
            kwargs["query_embeds"] = self._query_embeds(given.get("query"), given.get("branch"))
        return self._answer("audio", inputs, batch_size=batch_size, num_workers=num_workers, **kwargs)

    def _sanitize_parameters(
        self, query_text: Any = None, query_image: Any = None, query_audio: Any = None, **given: Any
    ) -> tuple[dict[str, Any], ...]:
        if query_text is not None or query_image is not None or query_audio is not None:
            kind, item = one_of(text=query_text, images=query_image, audio=query_audio)
            given["query"] = PipelineInput(kind, item, "query")
        return super()._sanitize_parameters(**given)

    def _query_embeds(self, query: PipelineInput | None, branch: str | None) -> Tensor:
        if query is None:
            raise ValueError("There is nothing to look for: give query_text=, query_image= or query_audio=.")
        (inputs,) = self.preprocess(query, chunk_length_s=0)
        return self._embed(self._ensure_tensor_on_device(inputs, self.device), branch)

    def _forward(
        self, model_inputs: dict[str, Any], query_embeds: Tensor, branch: str | None = None, query: Any = None
    ) -> dict[str, Any]:
        found = self.model.localize(query_embeds, **waveforms(model_inputs), branch=branch)
        place = {name: model_inputs[name] for name in ("is_last", "core", "span")}  # lists in batches of several
        return {**place, "found": found if isinstance(place["is_last"], list) else found[0]}

    def postprocess(self, model_outputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Join the windows' own parts, and find the best span of the whole recording."""
        hop = self.model.speech_adapter.samples_per_frame
        parts = []
        for output in model_outputs:
            first, end = ((sample - output["span"][0]) // hop for sample in output["core"])
            parts.append(output["found"].scores[first : None if output is model_outputs[-1] else end])
        scores = torch.cat(parts)
        span = tuple(frame * hop / SAMPLING_RATE for frame in best_span(scores))
        return {
            "score": scores.max().item(),
            "timestamp": span,
            "frame_s": self.model.speech_adapter.seconds_per_frame,
            "scores": scores.tolist(),
        }
