"""What a model does without being trained for it: speech against texts, and speech sorted by text prompts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .bootstrap import RESAMPLES, mean_interval
from .retrieval_statistics import RetrievalStatistics, retrieval_statistics


@dataclass(frozen=True)
class Classification:
    """How utterances were sorted into classes.

    Attributes:
        accuracy: share of utterances whose class scored strictly highest, in percent.
        interval: its bootstrap interval.
        mean_class_accuracy: mean of `by_class`.
        by_class: the same share over each class's utterances; classes without any are left out.
        predictions: (S,) index of each utterance's best class.
    """

    accuracy: float
    interval: tuple[float, float]
    mean_class_accuracy: float
    by_class: dict[str, float]
    predictions: Tensor


def speech_text_retrieval(
    speech_embeds: Tensor,
    captions: Sequence[str],
    text_embeds: Tensor,
    ks: Sequence[int] = (1, 5, 10),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> RetrievalStatistics:
    """Score speech to text and text to speech.

    The right text of an utterance is its own caption; captions that are letter for letter the same are one text.

    Args:
        speech_embeds: (S, P).
        captions: of the utterances.
        text_embeds: (T, P), of the different captions in the order in which they first occur.
        ks: the cut-offs.
        resamples: see `retrieval_statistics`.
        seed: see `retrieval_statistics`.

    Returns:
        The statistics of `retrieval_statistics` with `item="text"`.

    Raises:
        ValueError: if an utterance has no caption, or the numbers do not agree.
    """
    number: dict[str, int] = {}
    ids = torch.tensor([number.setdefault(caption, len(number)) for caption in captions])
    if not all(captions):
        raise ValueError(f"Utterance {[bool(caption) for caption in captions].index(False)} has no caption.")
    if len(number) != len(text_embeds):
        raise ValueError(f"There are {len(number)} different captions, but {len(text_embeds)} text embeddings.")
    return retrieval_statistics(
        speech_embeds, text_embeds, ids, torch.arange(len(number)), ks, "text", resamples, seed
    )


def classify(
    speech_embeds: Tensor,
    class_embeds: Tensor,
    labels: Tensor,
    class_names: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Classification:
    """Sort utterances into the class whose embedding is nearest. A tie with a wrong class is an error.

    Args:
        speech_embeds: (S, P).
        class_embeds: (C, P), from `class_embeddings`.
        labels: (S,) integers, the right class of each utterance.
        class_names: C names.
        resamples: how many times utterances are drawn for the interval.
        seed: of the draws.

    Raises:
        ValueError: if the numbers do not agree, or a label is no class.
    """
    if len(class_embeds) != len(class_names) or len(labels) != len(speech_embeds) or len(labels) == 0:
        raise ValueError(
            f"{len(class_embeds)} class embeddings have {len(class_names)} names, and {len(speech_embeds)} utterances "
            f"{len(labels)} labels; they must be equally many, and at least one utterance."
        )
    if int(labels.min()) < 0 or int(labels.max()) >= len(class_names):
        raise ValueError(
            f"Labels must lie in 0..{len(class_names) - 1}; got {int(labels.min())}..{int(labels.max())}."
        )
    scores = speech_embeds.double() @ class_embeds.double().T  # (S, C)
    own = scores.gather(1, labels[:, None])
    right = (scores.scatter(1, labels[:, None], -torch.inf) < own).all(1)  # (S,)
    figures = 100.0 * right.double()
    by_class = {
        name: figures[labels == number].mean().item()
        for number, name in enumerate(class_names)
        if (labels == number).any()
    }
    return Classification(
        accuracy=figures.mean().item(),
        interval=mean_interval(figures, resamples, seed),
        mean_class_accuracy=sum(by_class.values()) / len(by_class),
        by_class=by_class,
        predictions=scores.argmax(1),
    )
