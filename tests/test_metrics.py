"""Retrieval and keyword metrics against brute force and against the original code's numbers."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from speechclip_plus.trainer.evaluation import retrieval_metrics as metrics
from speechclip_plus.trainer.evaluation.keyword_metrics import (
    CONVENTIONS,
    chance_keyword_hit_rate,
    keyword_hit_rate,
    nearest_subwords,
)
from speechclip_plus.trainer.evaluation.retrieval_metrics import (
    all_ranks,
    chance_recall,
    mean_statistics,
    recall_curve,
    resampled_means,
    resampled_medians,
    retrieval_recall,
    retrieval_statistics,
)

GOLDEN = Path(__file__).parent / "golden"


def brute_force_ranks(scores, speech_image_ids, image_ids):
    """Ranks by counting, one pair at a time: 1 + wrong items that score at least as high."""
    to_image = [
        1 + sum(scores[s][i] >= max(scores[s][j] for j in range(len(image_ids)) if image_ids[j] == own)
                for i in range(len(image_ids)) if image_ids[i] != own)
        for s, own in enumerate(speech_image_ids)
    ]  # fmt: skip
    to_speech = []
    for i, image in enumerate(image_ids):
        own = [scores[s][i] for s, target in enumerate(speech_image_ids) if target == image]
        if own:
            wrong = [scores[s][i] for s, target in enumerate(speech_image_ids) if target != image]
            to_speech.append(1 + sum(score >= max(own) for score in wrong))
    return to_image, to_speech


def small_whole_numbers(seed, num_images, captions, width=4):
    """Embeddings of few distinct whole numbers: products are exact and ties abound."""
    generator = torch.Generator().manual_seed(seed)
    image_ids = torch.randperm(1000, generator=generator)[:num_images]
    speech_image_ids = image_ids.repeat_interleave(captions)[
        torch.randperm(num_images * captions, generator=generator)
    ]
    speech = torch.randint(-2, 3, (num_images * captions, width), generator=generator).float()
    images = torch.randint(-2, 3, (num_images, width), generator=generator).float()
    return speech, images, speech_image_ids, image_ids


@pytest.mark.parametrize("case", ["r0", "r1", "r2", "r3"])
def test_recalls_equal_those_of_the_original_code(case):
    arrays = load_file(GOLDEN / "retrieval.safetensors")
    expected = json.loads((GOLDEN / "retrieval.json").read_text())[case]
    scores = arrays[f"{case}/score_per_audio"]  # times the identity: any score matrix is a product of embeddings
    got = retrieval_recall(
        scores, torch.eye(scores.shape[1]), arrays[f"{case}/audio_id"], arrays[f"{case}/image_id"], ks=(1, 5, 10)
    )
    for k in (1, 5, 10):
        assert got[f"speech_to_image_R@{k}"] == pytest.approx(expected["audio_to_image"][f"recall@{k}"], abs=1e-4)
        assert got[f"image_to_speech_R@{k}"] == pytest.approx(expected["image_to_audio"][f"recall@{k}"], abs=1e-4)
        assert got[f"mean_R@{k}"] == pytest.approx(expected["mean"][f"recall@{k}"], abs=1e-4)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("captions", [1, 3])
def test_ranks_equal_a_count_by_hand_when_many_scores_tie(seed, captions):
    speech, images, speech_image_ids, image_ids = small_whole_numbers(seed, num_images=13, captions=captions)
    ranks = all_ranks(speech, images, speech_image_ids, image_ids)
    expected = brute_force_ranks((speech @ images.T).tolist(), speech_image_ids.tolist(), image_ids.tolist())
    assert (ranks.speech.tolist(), ranks.best_own.tolist()) == expected


def test_ranks_do_not_depend_on_the_size_of_the_chunks(monkeypatch):
    data = small_whole_numbers(seed=0, num_images=29, captions=2)
    whole = all_ranks(*data)
    monkeypatch.setattr(metrics, "_CHUNK_BYTES", 29 * 8 * 3)  # three utterances at a time
    parts = all_ranks(*data)
    assert torch.equal(whole.speech, parts.speech) and torch.equal(whole.own, parts.own)


def test_a_model_that_gives_everything_one_embedding_recalls_nothing():
    embeds = torch.nn.functional.normalize(torch.randn(1, 512), dim=-1)
    ids = torch.arange(50)
    scores = retrieval_recall(embeds.repeat(50, 1), embeds.repeat(50, 1), ids, ids, ks=(1, 10, 49, 50))
    assert [scores[f"mean_R@{k}"] for k in (1, 10, 49, 50)] == [0.0, 0.0, 0.0, 100.0]
    assert scores["speech_to_image_median_rank"] == 50


def test_ranks_of_a_small_example_are_those_worked_out_on_paper():
    speech = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.9, 0.1]])
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    scores = retrieval_recall(speech, images, torch.tensor([4, 8, 8]), torch.tensor([4, 8]), ks=(1, 2))
    assert scores["speech_to_image_R@1"] == pytest.approx(200 / 3)  # the third utterance finds the wrong image
    assert scores["speech_to_image_mean_rank"] == pytest.approx(4 / 3)
    assert scores["image_to_speech_R@1"] == 100.0  # image 8 is found by its other utterance


def test_an_image_given_once_per_caption_counts_once():
    speech, images, speech_image_ids, image_ids = small_whole_numbers(seed=3, num_images=9, captions=2)
    once = retrieval_recall(speech, images, speech_image_ids, image_ids)
    rows = torch.tensor([image_ids.tolist().index(i) for i in speech_image_ids.tolist()])
    assert retrieval_recall(speech, images[rows], speech_image_ids, speech_image_ids) == once


def test_an_image_without_an_utterance_is_a_distractor_and_no_query():
    images = torch.eye(3)
    scores = retrieval_recall(images[:1], images, torch.tensor([0]), torch.arange(3), ks=(1,))
    assert scores["image_to_speech_R@1"] == 100.0
    tied = retrieval_recall(images[:1], torch.ones(3, 3), torch.tensor([0]), torch.arange(3), ks=(1,))
    assert tied["speech_to_image_mean_rank"] == 3


def test_one_image_id_for_two_different_images_is_an_error():
    with pytest.raises(ValueError, match="Image id 7 stands for two different images"):
        retrieval_recall(torch.eye(2), torch.eye(2), torch.tensor([7, 7]), torch.tensor([7, 7]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speech_image_ids": torch.tensor([1, 5])}, "image id 5, which is not among"),
        ({"speech_embeds": torch.tensor([[1.0, torch.nan], [0.0, 1.0]])}, "Row 0 of speech_embeds has NaN"),
        ({"speech_embeds": torch.zeros(0, 2)}, "at least one row"),
        ({"image_embeds": torch.eye(3)[:2]}, "width 2 and image_embeds 3"),
        ({"image_ids": torch.tensor([1])}, "must be 2 integers"),
        ({"ks": (0,)}, "whole numbers from 1"),
    ],
)
def test_bad_input_is_named(change, message):
    good = {
        "speech_embeds": torch.eye(2),
        "image_embeds": torch.eye(2),
        "speech_image_ids": torch.tensor([1, 2]),
        "image_ids": torch.tensor([1, 2]),
    }
    with pytest.raises(ValueError, match=message):
        retrieval_recall(**{**good, **change})


def brute_force_hit_rate(keywords, lengths, gold, special, convention):
    shares = []
    for row, length, caption in zip(keywords, lengths, gold, strict=True):
        if caption is None:
            continue
        wanted = set(caption) | special if convention == "original" else set(caption) - special
        shares.append(sum(bool(wanted & set(row[n])) for n in range(length)) / length)
    return 100 * sum(shares) / len(shares)


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("seed", range(4))
def test_hit_rate_equals_a_count_by_hand(seed, convention):
    generator = torch.Generator().manual_seed(seed)
    keywords = torch.randint(0, 20, (30, 6, 3), generator=generator)
    lengths = torch.randint(1, 7, (30,), generator=generator)
    for row, length in enumerate(lengths):
        keywords[row, length:] = -1  # padding, as the model and the evaluation loop write it
    gold = [set(torch.randint(0, 20, (4,), generator=generator).tolist()) for _ in range(29)] + [None]
    got = keyword_hit_rate(keywords, lengths, gold, special_ids={0, 18, 19}, convention=convention)
    expected = brute_force_hit_rate(keywords.tolist(), lengths.tolist(), gold, {0, 18, 19}, convention)
    assert got["hit_rate"] == pytest.approx(expected)
    assert 0 < expected < 100


def test_with_a_fixed_number_of_keywords_the_hit_rate_is_the_mean_over_places():
    keywords = torch.tensor([[1, 2, 3], [1, 5, 6]])
    got = keyword_hit_rate(keywords, torch.tensor([3, 3]), [{1, 3}, {1}], special_ids=())
    assert got["hit_rate_by_place"] == [100.0, 0.0, 50.0]
    assert got["hit_rate"] == pytest.approx(50.0)


def test_a_special_subword_counts_only_in_the_original_convention():
    keywords, lengths = torch.tensor([[49407, 5]]), torch.tensor([2])
    special = {0, 49406, 49407}
    gold = [{49406, 5, 49407}]
    assert keyword_hit_rate(keywords, lengths, gold, special)["hit_rate"] == 50.0
    assert keyword_hit_rate(keywords, lengths, gold, special, convention="original")["hit_rate"] == 100.0


def test_captions_may_come_as_a_padded_tensor():
    keywords, lengths = torch.tensor([[3, 4], [9, -1]]), torch.tensor([2, 1])
    padded = torch.tensor([[4, -1], [8, 9]])
    assert keyword_hit_rate(keywords, lengths, padded, ())["hit_rate"] == 75.0


@pytest.mark.parametrize(
    ("keywords", "lengths", "gold", "message"),
    [
        (torch.ones(2, 3).long(), torch.tensor([1, 4]), [{1}, {1}], "lie in 1..3"),
        (torch.ones(2, 3).long(), torch.tensor([1, 1]), [{1}], "1 have captions"),
        (torch.ones(2, 3).long(), torch.tensor([1, 1]), [None, None], "No utterance has a caption"),
        (torch.ones(3).long(), torch.tensor([1, 1, 1]), [{1}] * 3, "must be \\(B, N\\)"),
    ],
)
def test_bad_keywords_are_named(keywords, lengths, gold, message):
    with pytest.raises(ValueError, match=message):
        keyword_hit_rate(keywords, lengths, gold, special_ids=())


def test_nearest_subwords_keep_to_the_vocabulary_and_start_with_themselves():
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(50, 8, generator=generator)
    table[30] = table[11]  # equal embeddings: a subword still comes before its twin
    vocabulary = torch.arange(10, 40)
    ids = torch.tensor([[11, 30, 39], [12, -1, -1]])
    found = nearest_subwords(ids, table, k=4, vocabulary_ids=vocabulary)
    assert torch.equal(found[..., 0], ids)
    units = torch.nn.functional.normalize(table, dim=-1)
    expected = vocabulary[(units[39] @ units[vocabulary].T).argsort(descending=True)[:4]]
    assert torch.equal(found[0, 2], expected)
    assert set(found[ids >= 0].flatten().tolist()) <= set(vocabulary.tolist())


@pytest.mark.parametrize("captions", [1, 3])
def test_the_chance_of_recall_is_what_random_orders_give(captions):
    image_ids = list(range(12))
    speech_image_ids = [image for image in image_ids for _ in range(captions)]
    generator = torch.Generator().manual_seed(0)
    drawn = []
    for _ in range(400):
        scores = torch.rand(len(speech_image_ids), 12, generator=generator)
        drawn.append(retrieval_recall(scores, torch.eye(12), torch.tensor(speech_image_ids), torch.tensor(image_ids)))
    expected = chance_recall(speech_image_ids, image_ids)
    for name in ("speech_to_image_R@1", "speech_to_image_R@10", "image_to_speech_R@1", "image_to_speech_R@5"):
        assert sum(scores[name] for scores in drawn) / len(drawn) == pytest.approx(expected[name], abs=2)
    for direction in ("speech_to_image", "image_to_speech"):
        ranks = sum(scores[f"{direction}_median_rank"] for scores in drawn) / len(drawn)
        assert ranks == pytest.approx(expected[f"{direction}_median_rank"], abs=1)


def test_the_chance_of_a_keyword_hit_leaves_out_what_cannot_become_a_keyword():
    chance = chance_keyword_hit_rate([{1, 2, 99}, {2, 99}, {3, 99}], keyword_ids=range(1, 5))
    assert chance["keyword_hit_rate@1"] == pytest.approx(100 * (2 + 1 + 1) / 12)
    assert chance["keyword_hit_rate_most_common@1"] == pytest.approx(200 / 3)


def brute_force_lists(scores, speech_image_ids, image_ids):
    """For each image, the rank of each of its utterances: those before it with ties counted against it."""
    ranks = {}
    for i, image in enumerate(image_ids):
        own = sorted((scores[s][i] for s, target in enumerate(speech_image_ids) if target == image), reverse=True)
        wrong = [scores[s][i] for s, target in enumerate(speech_image_ids) if target != image]
        if own:
            ranks[image] = [place + 1 + sum(score >= mine for score in wrong) for place, mine in enumerate(own)]
    return ranks


@pytest.mark.parametrize("seed", range(4))
def test_average_precision_and_the_share_of_all_answers_equal_a_count_by_hand(seed):
    speech, images, speech_image_ids, image_ids = small_whole_numbers(seed, num_images=11, captions=3)
    keep = torch.arange(len(speech)) % 5 > 0  # images with one, two and three utterances
    speech, speech_image_ids = speech[keep], speech_image_ids[keep]
    lists = brute_force_lists((speech @ images.T).tolist(), speech_image_ids.tolist(), image_ids.tolist())
    to_image, _ = brute_force_ranks((speech @ images.T).tolist(), speech_image_ids.tolist(), image_ids.tolist())
    got = retrieval_statistics(speech, images, speech_image_ids, image_ids, resamples=10)
    precisions = [sum((place + 1) / rank for place, rank in enumerate(ranks)) / len(ranks) for ranks in lists.values()]
    assert got.values["image_to_speech_mAP"] == pytest.approx(100 * sum(precisions) / len(precisions))
    assert got.values["speech_to_image_mAP"] == pytest.approx(100 * sum(1 / r for r in to_image) / len(to_image))
    for k in (1, 5, 10):
        shares = [sum(rank <= k for rank in ranks) / len(ranks) for ranks in lists.values()]
        assert got.values[f"image_to_speech_mteb_R@{k}"] == pytest.approx(100 * sum(shares) / len(shares))
    assert got.ranks["image_to_speech"].tolist() == [lists[image][0] for image in sorted(lists)]


def test_statistics_agree_with_the_plain_recalls():
    data = small_whole_numbers(seed=1, num_images=40, captions=2)
    plain, got = retrieval_recall(*data), retrieval_statistics(*data, resamples=10)
    assert {name: got.values[name] for name in plain} == pytest.approx(plain)
    curves = {direction: recall_curve(ranks) for direction, ranks in got.ranks.items()}
    assert curves["speech_to_image"][4] == pytest.approx(plain["speech_to_image_R@5"])
    assert len(curves["image_to_speech"]) == 100 and curves["image_to_speech"][-1] == 100.0


def test_with_one_utterance_per_image_both_recalls_are_one():
    data = small_whole_numbers(seed=1, num_images=9, captions=1)
    assert not any("mteb" in name for name in retrieval_statistics(*data, resamples=10).values)


def mean_interval(values, resamples, seed):
    return mean_statistics({"mean": values}, resamples, seed).intervals["mean"]


def test_bootstrap_means_spread_as_theory_says():
    hits = (torch.arange(400) < 100).double()  # a quarter
    low, high = mean_interval(hits, resamples=4000, seed=3)
    error = 1.96 * (0.25 * 0.75 / 400) ** 0.5
    assert low == pytest.approx(0.25 - error, abs=0.005) and high == pytest.approx(0.25 + error, abs=0.005)
    assert mean_interval(hits, resamples=4000, seed=3) == (low, high)
    assert mean_interval(hits, resamples=4000, seed=4) != (low, high)


def test_bootstrap_medians_are_medians_of_what_was_drawn():
    values = torch.tensor([5.0, 1.0, 9.0, 2.0])
    got = resampled_medians(values, resamples=50, seed=0)
    generator = torch.Generator().manual_seed(0)
    drawn = values.sort().values[torch.randint(4, (50, 4), generator=generator)]
    expected = torch.tensor([torch.quantile(row.double(), 0.5) for row in drawn], dtype=torch.float64)
    assert torch.equal(got, expected)


def test_bootstrap_draws_do_not_depend_on_the_size_of_the_chunks(monkeypatch):
    values = torch.rand(30, 2)
    whole = resampled_means(values, resamples=40)
    monkeypatch.setattr(metrics, "_CHUNK_ITEMS", 90)
    assert torch.equal(resampled_means(values, resamples=40), whole)


def test_an_utterance_without_a_figure_is_left_out_of_its_mean_and_interval():
    values = torch.tensor([1.0, torch.nan, 3.0])
    got = mean_statistics({"some": values, "all": torch.ones(3), "none": torch.full((3,), torch.nan)}, resamples=50)
    assert got.values == {"some": 2.0, "all": 1.0} and got.intervals["all"] == (1.0, 1.0)
    assert got.intervals["some"] == mean_interval(values[[0, 2]], 50, 0)
    assert mean_statistics({"all": torch.ones(3)}, resamples=0).intervals == {}


def test_intervals_contain_their_values():
    got = retrieval_statistics(*small_whole_numbers(seed=2, num_images=60, captions=2))
    assert got.intervals.keys() == got.values.keys()
    for name, value in got.values.items():
        low, high = got.intervals[name]
        assert low <= value <= high
    assert got.intervals["speech_to_image_R@10"][0] < got.intervals["speech_to_image_R@10"][1]


def test_the_evaluate_modules_give_the_same_figures_from_a_folder(repository_root):
    evaluate = pytest.importorskip("evaluate")
    modules = repository_root / "hub_cards" / "metrics"
    speech, images, speech_image_ids, image_ids = small_whole_numbers(seed=5, num_images=8, captions=2)
    recall = evaluate.load(str(modules / "retrieval_recall"))
    got = recall.compute(
        predictions=speech, references=speech_image_ids, image_embeds=images, image_ids=image_ids, ks=(1, 3)
    )
    assert got == retrieval_recall(speech, images, speech_image_ids, image_ids, ks=(1, 3))
    rate = evaluate.load(str(modules / "keyword_hit_rate"))
    given = {"predictions": [[[320, 8], [7, 7]], [[11, 9]]], "references": [[320, 5], [9]], "special_ids": [7]}
    ids = torch.tensor([[[320, 8], [7, 7]], [[11, 9], [-1, -1]]])
    for convention, hits in (("content", 75.0), ("original", 100.0)):
        expected = keyword_hit_rate(ids, torch.tensor([2, 1]), [{320, 5}, {9}], {7}, convention)
        assert rate.compute(**given, convention=convention) == expected
        assert expected["hit_rate"] == hits
