"""Hit rate of keywords as an `evaluate` metric, over the core of speechclip-plus."""

import datasets
import evaluate
import torch

from speechclip_plus.trainer.evaluation.keyword_metrics import keyword_hit_rate

_DESCRIPTION = """
Share of the keywords read out of speech that are in the caption: a keyword hits if any of its nearest subwords is one
of the caption's subwords. Every utterance contributes the share of its keywords that hit.
"""

_KWARGS_DESCRIPTION = """
Args:
    predictions: for each utterance its keywords, each a list of its nearest subword ids (one id: the keyword itself).
    references: for each utterance the subword ids of its caption.
    special_ids: ids of start, end and padding.
    convention: "content" (default) never counts a special subword as part of the caption, "original" always does, as
        the authors' code.
Returns:
    hit_rate in percent, and hit_rate_by_place, in percent for each place of a keyword.
Examples:
    >>> metric = evaluate.load("hub_cards/metrics/keyword_hit_rate")
    >>> metric.compute(predictions=[[[320], [7]], [[11]]], references=[[320, 5], [9]], special_ids=[7])["hit_rate"]
    25.0
"""

_CITATION = """
@article{speechclipplus, title={SpeechCLIP+: Self-supervised multi-task representation learning for speech via CLIP and
speech-image data}, journal={arXiv:2402.06959}, year={2024}}
"""


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class KeywordHitRate(evaluate.Metric):
    """Share of the keywords that are in the caption."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Sequence(datasets.Value("int64"))),
                    "references": datasets.Sequence(datasets.Value("int64")),
                }
            ),
        )

    def _compute(self, predictions, references, special_ids=(), convention="content"):
        places = max(1, max(len(keywords) for keywords in predictions))
        width = max(1, max((len(near) for keywords in predictions for near in keywords), default=1))
        ids = torch.full((len(predictions), places, width), -1)
        for row, keywords in enumerate(predictions):
            for place, near in enumerate(keywords):
                ids[row, place, : len(near)] = torch.as_tensor(near)
        lengths = torch.tensor([len(keywords) for keywords in predictions])
        gold = [[int(i) for i in caption] for caption in references]
        return keyword_hit_rate(ids, lengths, gold, {int(i) for i in special_ids}, convention)
