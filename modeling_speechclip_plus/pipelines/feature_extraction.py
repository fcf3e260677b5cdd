"""Feature extraction: frames or embeddings of speech, embeddings of images and texts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .base import SpeechClipPlusPipeline, one_of, waveforms, window_parameters


class SpeechFeatureExtractionPipeline(SpeechClipPlusPipeline):
    """Give what the model makes of speech, frame by frame or as one embedding in CLIP's space.

    Task "speech-feature-extraction".

    Example:
    ```python
    from transformers import pipeline
    import speechclip_plus

    extractor = pipeline("speech-feature-extraction", model="quickstart/model")
    frames = extractor("query.wav", return_tensors=True)  # (1, T, D), a frame every 20 ms
    embedding = extractor("query.wav", pool=True, return_tensors=True)  # (1, P), unit length
    image = extractor(images="first.png", return_tensors=True)  # (1, P)
    ```
    """

    def __call__(self, audio: Any = None, *, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Extract features of recordings, images or texts.

        Args:
            audio: What `load_audio` takes (arrays at 16 kHz), or a dictionary with "raw" and "sampling_rate"; or a
                list, a column, a data set or a generator of them.
            images: In place of `audio`: what the processor takes as an image, or many of them.
            text: In place of `audio`: a string, or many of them.
            **kwargs: `pool`: whether to give one embedding of a recording in place of its frames; that of a recording
                longer than a window is the mean of its windows' embeddings, scaled to unit length. `branch`: the one
                that embeds, the configured `retrieval_branch` if not given. `return_tensors`: whether to give tensors
                in place of lists. `chunk_length_s`, `stride_length_s`: windows in which recordings are read, see
                `SpeechKeywordExtractionPipeline`. `batch_size`, `num_workers`: as in all pipelines.

        Returns:
            For each recording (1, T, D), the speech encoder's layers summed with the weights that the model learned,
            or with `pool` (1, P) of unit length, P being the width of CLIP's joint space; for each image or text
            (1, P). Nested lists of floats, or float32 tensors.

        Raises:
            TypeError: If an argument is unknown, or an input of a wrong kind, or not one of `audio`, `images` and
                `text` is given.
            ValueError: If an input cannot be used, or the list is empty.
        """
        kind, given = one_of(audio=audio, images=images, text=text)
        return self._answer(kind, given, **kwargs)

    def _sanitize_parameters(
        self,
        pool: bool | None = None,
        branch: str | None = None,
        return_tensors: bool | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward: dict[str, Any] = {} if pool is None else {"pool": pool}
        if branch is not None:
            forward["branch"] = self._check_branch(branch)
        postprocess = {} if return_tensors is None else {"return_tensors": return_tensors}
        return window_parameters(chunk_length_s, stride_length_s), forward, postprocess

    def _forward(self, model_inputs: dict[str, Any], pool: bool = False, branch: str | None = None) -> dict[str, Any]:
        is_last = model_inputs["is_last"]
        if pool or "input_values" not in model_inputs:
            return {"is_last": is_last, "embeds": self._embed(model_inputs, branch)}
        hidden_states, frame_lengths = self.model.encode_speech_frames(**waveforms(model_inputs))
        return {
            "is_last": is_last,
            "frames": self.model.layer_sum(hidden_states.unbind(dim=1)).float(),  # (B, T, D)
            "frame_lengths": frame_lengths,
            "span": model_inputs["span"],
            "core": model_inputs["core"],
        }

    def postprocess(self, model_outputs: list[dict[str, Any]], return_tensors: bool = False) -> Any:
        """Join what was made of a recording's windows."""
        if "embeds" in model_outputs[0]:
            features = mean_embedding(torch.cat([output["embeds"] for output in model_outputs]))
        else:
            features = torch.cat([self._own_frames(output) for output in model_outputs])[None]  # (1, T, D)
        return features if return_tensors else features.tolist()

    def _own_frames(self, output: dict[str, Any]) -> Tensor:
        hop = self.model.speech_adapter.samples_per_frame
        start, end = ((sample - output["span"][0]) // hop for sample in output["core"])
        frames = output["frames"][0, : int(output["frame_lengths"][0])]
        return frames[start:] if output["core"][1] == output["span"][1] else frames[start:end]


def mean_embedding(embeds: Tensor) -> Tensor:
    """One embedding of a recording's windows (W, P): (1, P), their mean scaled to unit length."""
    return torch.nn.functional.normalize(embeds.mean(dim=0, keepdim=True), dim=-1)
