"""What guessing would give, to hold measured figures against."""

from collections import Counter
from collections.abc import Collection, Sequence
from math import comb


def chance_recall(
    speech_image_ids: Sequence[int], image_ids: Sequence[int], ks: Sequence[int] = (1, 5, 10)
) -> dict[str, float]:
    """Expected recall at k in percent, and median rank, of a random order.

    Args:
        speech_image_ids: the image of each utterance.
        image_ids: the images; repeated ids are one image.
        ks: the cut-offs.

    Returns:
        `speech_to_image_R@k`, `image_to_speech_R@k`, `mean_R@k`, and `{direction}_median_rank`.

    Example:
        >>> chance_recall([1, 1, 2, 2], [1, 2], ks=(1,))["image_to_speech_R@1"]
        50.0
    """
    num_speech, num_images = len(speech_image_ids), len(set(image_ids))
    spoken = Counter(Counter(speech_image_ids).values())  # utterances of an image -> how many images have so many
    queries = sum(spoken.values())

    def found(direction: str, k: int) -> float:
        if direction == "speech_to_image":
            return min(k / num_images, 1.0)
        k = min(k, num_speech)
        missed = {own: comb(num_speech - own, k) / comb(num_speech, k) for own in spoken}
        return sum(images * (1 - missed[own]) for own, images in spoken.items()) / queries

    chance = {}
    for direction, items in (("speech_to_image", num_images), ("image_to_speech", num_speech)):
        for k in ks:
            chance[f"{direction}_R@{k}"] = 100.0 * found(direction, k)
        low, high = 1, items  # the first rank by which half of the queries have found theirs
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if found(direction, middle) >= 0.5 else (middle + 1, high)
        chance[f"{direction}_median_rank"] = low
    for k in ks:
        chance[f"mean_R@{k}"] = (chance[f"speech_to_image_R@{k}"] + chance[f"image_to_speech_R@{k}"]) / 2
    return chance


def chance_keyword_hit_rate(gold_ids: Sequence[Collection[int]], keyword_ids: Collection[int]) -> dict[str, float]:
    """Expected keyword hit rate (k=1) in percent of two ways to guess.

    Args:
        gold_ids: per utterance the subword ids of its caption.
        keyword_ids: the subwords that may become keywords.

    Returns:
        `keyword_hit_rate@1` for subwords drawn uniformly at random, and `keyword_hit_rate_most_common@1` for always
        giving the subword that the most captions have.

    Example:
        >>> chance_keyword_hit_rate([{1, 2}, {2}], {1, 2, 3, 4})
        {'keyword_hit_rate@1': 37.5, 'keyword_hit_rate_most_common@1': 100.0}
    """
    allowed = set(keyword_ids)
    gold_sets = [set(gold) & allowed for gold in gold_ids]
    common = Counter(subword for gold in gold_sets for subword in gold).most_common(1)
    return {
        "keyword_hit_rate@1": 100.0 * sum(map(len, gold_sets)) / (len(gold_sets) * len(allowed)),
        "keyword_hit_rate_most_common@1": 100.0 * (common[0][1] if common else 0) / len(gold_sets),
    }
