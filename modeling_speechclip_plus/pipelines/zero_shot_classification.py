"""Zero-shot classification of speech, into classes that are named by text."""

from collections.abc import Sequence
from typing import Any

import torch

from ..embedding import embed_texts
from .base import SpeechClipPlusPipeline, window_parameters
from .feature_extraction import mean_embedding

TEMPLATES = ("{}", "a photo of {}.", "a picture of {}.")


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

    def __call__(self, audio: Any, candidate_labels: Sequence[str] | None = None, **kwargs: Any) -> Any:
        """Sort recordings.

        Args:
            audio: What `load_audio` takes (arrays at 16 kHz), or a dictionary with "raw" and "sampling_rate"; or a
                list, a column, a data set or a generator of them.
            candidate_labels: At least two different texts, here or when the pipeline is made.
            **kwargs: `hypothesis_template`: a text with `{}` where the label goes, or several, whose embeddings are
                averaged; if not given, `("{}", "a photo of {}.", "a picture of {}.")`. `branch`: the one that embeds
                the speech, the configured `retrieval_branch` if not given. `chunk_length_s`, `stride_length_s`:
                windows in which recordings are read, see `SpeechKeywordExtractionPipeline`; a recording of several is
                sorted by the mean of their embeddings. `batch_size`, `num_workers`: as in all pipelines.

        Returns:
            For one recording a dictionary for each label, best first: `score`, the softmax over the labels of the
            cosine similarities times the model's `similarity_scale`, and `label`. For a list of recordings a list of
            such lists; for a data set or a generator an iterator.

        Raises:
            TypeError: If an argument is unknown, or a recording or the labels of a wrong kind.
            ValueError: If labels are missing, too few or repeated, a template has no `{}`, or a recording cannot be
                used.
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

    def _sanitize_parameters(
        self,
        candidate_labels: Sequence[str] | None = None,
        hypothesis_template: str | Sequence[str] | None = None,
        branch: str | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | Sequence[float] | None = None,
        class_embeds: torch.Tensor | None = None,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        postprocess: dict[str, Any] = {}
        if class_embeds is not None:  # from `__call__`, which makes them once for all its inputs
            postprocess["class_embeds"] = class_embeds
        if candidate_labels is not None:
            postprocess["candidate_labels"] = _texts("candidate_labels", candidate_labels)
        if hypothesis_template is not None:
            templates = [hypothesis_template] if isinstance(hypothesis_template, str) else hypothesis_template
            postprocess["hypothesis_template"] = _texts("hypothesis_template", templates)
        forward = {} if branch is None else {"branch": self._check_branch(branch)}
        return window_parameters(chunk_length_s, stride_length_s), forward, postprocess

    def _forward(self, model_inputs: dict[str, Any], branch: str | None = None) -> dict[str, Any]:
        return {"is_last": model_inputs["is_last"], "embeds": self._embed(model_inputs, branch)}

    def postprocess(
        self,
        model_outputs: list[dict[str, Any]],
        class_embeds: torch.Tensor,
        candidate_labels: tuple[str, ...],
        hypothesis_template: tuple[str, ...] = TEMPLATES,
    ) -> list[dict[str, Any]]:
        """Compare a recording with the labels."""
        embeds = mean_embedding(torch.cat([output["embeds"] for output in model_outputs]))  # (1, P)
        logits = self.model.similarity_scale.cpu() * (embeds @ class_embeds.T)[0]
        scores = logits.softmax(dim=0)
        order = scores.argsort(descending=True, stable=True).tolist()
        return [{"score": scores[place].item(), "label": candidate_labels[place]} for place in order]


def class_embeddings(
    model: Any, processor: Any, class_names: Sequence[str], templates: Sequence[str] = TEMPLATES
) -> torch.Tensor:
    """Embed classes by what their names say in several templates.

    Args:
        model: A `SpeechClipPlusModel`.
        processor: Its processor.
        class_names: C different ones, at least two.
        templates: Texts with one `{}` for the name.

    Returns:
        `(C, P)`: the mean of each class's text embeddings, scaled to unit length.

    Raises:
        ValueError: For fewer than two classes, repeated names, no template, or one without `{}`.
    """
    if len(class_names) < 2 or len(set(class_names)) < len(class_names):
        raise ValueError(f"Give at least two different class names; got {list(class_names)!r}.")
    wrong = [template for template in templates if template.count("{}") != 1]
    if wrong or not templates:
        raise ValueError(f"A template has one '{{}}' where the class name goes, unlike {wrong or 'no template'!r}.")
    texts = [template.replace("{}", name) for name in class_names for template in templates]
    embeds = embed_texts(model, processor, texts).view(len(class_names), len(templates), -1)  # (C, templates, P)
    return torch.nn.functional.normalize(embeds.mean(1), dim=-1)


def _texts(name: str, given: Any) -> tuple[str, ...]:
    if not isinstance(given, Sequence) or isinstance(given, str) or not all(isinstance(text, str) for text in given):
        raise TypeError(f"{name}: expected a list of texts, got {given!r}.")
    return tuple(given)
