"""Feature extraction from speech, images and texts, and zero-shot classification of speech by such features."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..embedding import embed_texts
from .base import SpeechClipPlusPipeline, mean_embedding, one_of, waveforms

TEMPLATES = ("{}", "a photo of {}.", "a picture of {}.")


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

    _arguments = {
        **SpeechClipPlusPipeline._arguments,
        "pool": ("forward",),
        "branch": ("forward",),
        "return_tensors": ("postprocess",),
    }

    def __call__(self, audio: Any = None, *, images: Any = None, text: Any = None, **kwargs: Any) -> Any:
        """Extract features of recordings, images or texts.

        Args:
            audio: What `load_audio` takes (arrays at 16 kHz), or a dictionary with "raw" and "sampling_rate"; or a
                list, a column, a data set or a generator of them.
            images: In place of `audio`: what the processor takes as an image, or many of them.
            text: In place of `audio`: a string, or many of them.
            **kwargs: `pool`: whether to give one embedding of a recording in place of its frames, of a long one the
                mean of its windows' embeddings. `branch`: the one that embeds, the configured `retrieval_branch` if
                not given. `return_tensors`: whether to give tensors in place of lists. `chunk_length_s`,
                `stride_length_s`: see `SpeechKeywordExtractionPipeline`. `batch_size`, `num_workers`.

        Returns:
            For each recording (1, T, D), the speech encoder's layers summed with the weights that the model learned,
            or with `pool` (1, P) of unit length; for each image or text (1, P). Lists of floats, or float32 tensors.
        """
        kind, given = one_of(audio=audio, images=images, text=text)
        return self._answer(kind, given, **kwargs)

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
            features = mean_embedding(model_outputs)
        else:
            features = torch.cat([self._own_frames(output) for output in model_outputs])[None]  # (1, T, D)
        return features if return_tensors else features.tolist()

    def _own_frames(self, output: dict[str, Any]) -> Tensor:
        hop = self.model.speech_adapter.samples_per_frame
        start, end = ((sample - output["span"][0]) // hop for sample in output["core"])
        frames = output["frames"][0, : int(output["frame_lengths"][0])]
        return frames[start:] if output["core"][1] == output["span"][1] else frames[start:end]


class ZeroShotSpeechClassificationPipeline(SpeechClipPlusPipeline):
    """Sort speech by what it is about into classes that the model was not trained on.

    Task "zero-shot-speech-classification".

    Example:
    ```python
    from transformers import pipeline
    import speechclip_plus

    classifier = pipeline("zero-shot-speech-classification", model="quickstart/model")
    classifier("query.wav", candidate_labels=["a red circle", "a blue square"])
    # [{"score": 0.98, "label": "a red circle"}, {"score": 0.02, "label": "a blue square"}]
    ```
    """

    _arguments = {
        **SpeechClipPlusPipeline._arguments,
        "branch": ("forward",),
        "candidate_labels": ("postprocess",),
        "hypothesis_template": ("postprocess",),
        "class_embeds": ("postprocess",),  # from `__call__`, which makes them once for all its inputs
    }

    def __call__(self, audio: Any, candidate_labels: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Sort recordings.

        Args:
            audio: As in `SpeechFeatureExtractionPipeline`.
            candidate_labels: At least two different texts, here or when the pipeline is made.
            **kwargs: `hypothesis_template`: a text with `{}` where the label goes, or several, whose embeddings are
                averaged; if not given, `("{}", "a photo of {}.", "a picture of {}.")`. `branch`, `chunk_length_s`,
                `stride_length_s`, `batch_size`, `num_workers`: as in `SpeechFeatureExtractionPipeline`.

        Returns:
            For one recording a dictionary for each label, best first: `score`, the softmax over the labels of the
            cosine similarities times the model's `similarity_scale`, and `label`. For a list of recordings a list of
            such lists; for a data set or a generator an iterator.
        """
        if candidate_labels is not None:
            kwargs["candidate_labels"] = candidate_labels
        options = {name: value for name, value in kwargs.items() if name not in ("batch_size", "num_workers")}
        asked = {**self._postprocess_params, **self._sanitize_parameters(**options)[2]}
        if "candidate_labels" not in asked:
            raise ValueError("Give candidate_labels=[...], at least two different texts.")
        labels, templates = asked["candidate_labels"], asked.get("hypothesis_template", TEMPLATES)
        class_embeds = class_embeddings(self.model, self.processor, labels, templates)  # (C, P)
        return self._answer("audio", audio, **kwargs, class_embeds=class_embeds)

    def _sanitize_parameters(self, **given: Any) -> tuple[dict[str, Any], ...]:
        if isinstance(given.get("candidate_labels"), str):
            raise TypeError(f"candidate_labels: expected a list of texts, got {given['candidate_labels']!r}.")
        if isinstance(given.get("hypothesis_template"), str):
            given["hypothesis_template"] = (given["hypothesis_template"],)
        return super()._sanitize_parameters(**given)

    def _forward(self, model_inputs: dict[str, Any], branch: str | None = None) -> dict[str, Any]:
        return {"is_last": model_inputs["is_last"], "embeds": self._embed(model_inputs, branch)}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        class_embeds: Tensor,
        candidate_labels: Sequence[str],
        hypothesis_template: Sequence[str] = TEMPLATES,
    ) -> list[dict[str, Any]]:
        """Compare a recording with the labels."""
        logits = self.model.similarity_scale.cpu() * (mean_embedding(model_outputs) @ class_embeds.T)[0]
        scores = logits.softmax(dim=0)
        order = scores.argsort(descending=True, stable=True).tolist()
        return [{"score": scores[place].item(), "label": candidate_labels[place]} for place in order]


def class_embeddings(model: Any, processor: Any, class_names: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Embed C classes: `(C, P)`, the mean of each name's embeddings in all templates, scaled to unit length."""
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise ValueError(f"Give at least two different class names; got {list(class_names)!r}.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"A template has one '{{}}' where the class name goes, unlike {wrong or 'no template'!r}.")
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    embeds = embed_texts(model, processor, texts).view(len(class_names), len(templates), -1)  # (C, templates, P)
    return torch.nn.functional.normalize(embeds.mean(1), dim=-1)
