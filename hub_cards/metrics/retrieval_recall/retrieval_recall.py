"""Recall of speech-image retrieval as an `evaluate` metric, over the core of speechclip-plus."""

import datasets
import evaluate
import torch

from speechclip_plus.trainer.evaluation.retrieval_metrics import retrieval_recall

_DESCRIPTION = """
Recall at k, median and mean rank between utterances and images, in both directions. Every image counts once; ties
count against the model; an image is found at the rank of the best of its utterances.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: one embedding per utterance, a list of floats; unit length for cosine similarity.
    references: the id of each utterance's image.
    image_embeds: one embedding per image.
    image_ids: the id of each image.
    ks: the cut-offs, (1, 5, 10) unless given.
Returns:
    speech_to_image_R@k, image_to_speech_R@k and mean_R@k in percent, and median and mean ranks of both directions.
Examples:
    >>> metric = evaluate.load("hub_cards/metrics/retrieval_recall")
    >>> metric.compute(predictions=[[1.0, 0.0], [0.0, 1.0]], references=[7, 9],
    ...                image_embeds=[[1.0, 0.0], [0.0, 1.0]], image_ids=[7, 9], ks=(1,))["mean_R@1"]
    100.0
"""

_CITATION = """
@article{speechclipplus, title={SpeechCLIP+: Self-supervised multi-task representation learning for speech via CLIP and
speech-image data}, journal={arXiv:2402.06959}, year={2024}}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class RetrievalRecall(evaluate.Metric):
    """Recall at k between utterances and images."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float32")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions, references, image_embeds, image_ids, ks=(1, 5, 10)):
        return retrieval_recall(
            torch.as_tensor(predictions),
            torch.as_tensor(image_embeds),
            torch.as_tensor(references),
            torch.as_tensor(image_ids),
            tuple(ks),
        )
