"""Keyword measures against counts by hand; alignments in the forms that Praat and aligners write."""

import math
from types import SimpleNamespace

import pytest
import torch

from speechclip_plus.modeling_speechclip_plus.pipelines.features import class_embeddings
from speechclip_plus.trainer.evaluation.alignments import (
    AlignedWord,
    boundary_agreement,
    even_spans,
    match_alignments,
    read_alignments,
    read_ctm,
    read_textgrid,
    word_boundaries,
)
from speechclip_plus.trainer.evaluation.keyword_metrics import (
    Spelling,
    cloud_counts,
    keyword_statistics,
    semantic_similarities,
    stop_words,
)
from speechclip_plus.trainer.tiny_backbones import tiny_backbone


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_backbone("clip"))


def ids_of(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def statistics(tokenizer, spoken, captions, usable=None, **options):
    rows = [ids_of(tokenizer, text) for text in spoken]
    lengths = torch.tensor([len(row) for row in rows])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1)
    table = torch.eye(len(tokenizer))
    usable = range(len(tokenizer)) if usable is None else usable
    gold = [ids_of(tokenizer, caption) if caption else None for caption in captions]
    return keyword_statistics(ids, lengths, gold, tokenizer, usable, table, resamples=20, **options)


def test_precision_recall_and_f1_are_those_worked_out_on_paper(tokenizer):
    got = statistics(tokenizer, ["red red star the", "blue"], ["a red circle under the star", "a moon"]).values
    # First: {red, star, the} of {a, red, circle, under, the, star}; without stop words {red, star} of three.
    assert got["subword_precision"] == pytest.approx((100 + 0) / 2)
    assert got["subword_recall"] == pytest.approx((50 + 0) / 2)
    assert got["subword_f1"] == pytest.approx((200 * 3 / (3 + 6) + 0) / 2)
    assert got["content_subword_precision"] == pytest.approx(50)
    assert got["content_subword_recall"] == pytest.approx((200 / 3 + 0) / 2)
    assert got["content_word_recall"] == pytest.approx((200 / 3 + 0) / 2)
    assert got["keyword_duplicates"] == pytest.approx((25 + 0) / 2)


def test_a_word_of_several_subwords_counts_once_and_only_whole(tokenizer):
    word = next(text for text in ("zebra", "quartz", "xylophone") if len(ids_of(tokenizer, text)) > 1)
    pieces = ids_of(tokenizer, word)
    spelling = Spelling(tokenizer)
    assert spelling.words(pieces) == [word]
    assert spelling.words([*ids_of(tokenizer, "red"), *pieces, *ids_of(tokenizer, ".")]) == ["red", word]
    assert spelling.words(pieces[:1]) != [word]  # begun, not said
    whole = statistics(tokenizer, [word], [f"a {word}"]).values
    assert whole["word_precision"] == 100 and whole["word_recall"] == 50


def test_coverage_counts_usable_subwords_alone(tokenizer):
    red, blue, star = (ids_of(tokenizer, word)[0] for word in ("red", "blue", "star"))
    got = statistics(tokenizer, ["red", "red star"], ["red blue", "red the"], usable=[red, blue]).values
    assert got["vocabulary_coverage"] == 50 and got["caption_coverage"] == 50
    assert star not in (red, blue)


def test_utterances_without_caption_are_left_out_of_what_needs_one(tokenizer):
    got = statistics(tokenizer, ["red", "blue"], ["red", ""])
    assert got.values["subword_precision"] == 100 and "semantic_similarity_shuffled" not in got.values
    assert statistics(tokenizer, ["red", "blue"], ["", ""]).values.keys() == {
        "vocabulary_coverage",
        "keyword_duplicates",
    }


def test_a_caption_of_stop_words_has_no_content_to_find(tokenizer):
    got = statistics(tokenizer, ["the", "red"], ["the", "red"])
    assert got.values["content_word_f1"] == 100 and got.values["word_f1"] == 100
    assert not any(math.isnan(value) for value in got.values.values())


def test_keywords_are_nearer_to_their_own_caption_than_to_others(tokenizer):
    got = statistics(tokenizer, ["red", "blue", "star"], ["red", "blue", "star"]).values
    assert got["semantic_similarity"] == pytest.approx(1) and got["semantic_similarity_shuffled"] == pytest.approx(0)


def test_semantic_similarity_equals_a_loop():
    table = torch.randn(20, 6, generator=torch.Generator().manual_seed(0))
    keywords, captions = [[1, 2, 3], [4]], [[5, 6], [7, 4, 8]]
    expected = [
        sum(max(torch.cosine_similarity(table[k], table[c], dim=0).item() for c in caption) for k in row) / len(row)
        for row, caption in zip(keywords, captions, strict=True)
    ]
    assert semantic_similarities(keywords, captions, table) == pytest.approx(expected, abs=1e-5)


def test_intervals_are_of_the_means_over_utterances(tokenizer):
    got = statistics(tokenizer, ["red", "blue", "star"] * 5, ["red", "moon", "star"] * 5)
    assert "subword_f1" in got.intervals and "vocabulary_coverage" not in got.intervals
    assert all(
        low <= got.values[name] <= high for name, (low, high) in got.intervals.items() if "shuffled" not in name
    )


def test_counts_that_do_not_fit_are_named(tokenizer):
    with pytest.raises(ValueError, match="1 utterances have keywords, 1 have lengths and 2 have captions"):
        statistics(tokenizer, ["red"], ["red", "blue"])


def test_the_stop_list_is_words_in_lower_case():
    assert {"the", "a", "of"} <= stop_words() and not {"red", "dog", "man"} & stop_words()
    assert all(word == word.lower() for word in stop_words())


def test_clouds_part_hits_from_misses():
    counts = cloud_counts([[1, 1, 2], [3]], [{1}, None])
    assert counts == {"hit": {1: 2}, "miss": {2: 1}, "unknown": {3: 1}}


# ---- boundaries


def test_boundaries_are_matched_one_to_one():
    got = boundary_agreement([[0.50, 0.51, 2.0]], [[0.50, 1.0]], tolerances_ms=(20,))
    assert got["boundary_precision@20ms"] == pytest.approx(100 / 3)  # the second at 0.5 has nobody left
    assert got["boundary_recall@20ms"] == pytest.approx(50)
    assert got["boundary_f1@20ms"] == pytest.approx(40)


def test_a_boundary_at_the_tolerance_is_within_it():
    assert boundary_agreement([[0.52]], [[0.50]], tolerances_ms=(20,))["boundary_f1@20ms"] == 100
    assert boundary_agreement([[0.521]], [[0.50]], tolerances_ms=(20,))["boundary_f1@20ms"] == 0


def test_the_r_value_is_that_of_its_formula():
    perfect = boundary_agreement([[0.5, 1.0]], [[0.5, 1.0]])
    assert perfect["boundary_r_value@20ms"] == pytest.approx(100)
    # Recall 1, twice as many as there should be: OS = 1, r1 = 1, r2 = -1 / sqrt 2.
    over = boundary_agreement([[0.5, 0.7, 1.0, 1.2]], [[0.5, 1.0]], tolerances_ms=(20,))
    assert over["boundary_r_value@20ms"] == pytest.approx(100 * (1 - (1 + 1 / math.sqrt(2)) / 2))


def test_even_spans_share_an_utterance_out():
    assert even_spans(2, 3.0) == [(0.0, 1.5), (1.5, 3.0)] and even_spans(1, 2.0) == [(0.0, 2.0)]


# ---- alignments

LONG = '''File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.5
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.5
        intervals: size = 4
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.4
            text = "say ""hé"""
        intervals [3]:
            xmin = 0.4
            xmax = 0.9
            text = "cat"
        intervals [4]:
            xmin = 0.9
            xmax = 1.5
            text = "<sil>"
    item [2]:
        class = "TextTier"
        name = "clicks"
        xmin = 0
        xmax = 1.5
        points: size = 1
        points [1]:
            number = 0.3
            mark = "x"
'''
SHORT = '''File type = "ooTextFile"
Object class = "TextGrid"

0
1.5
<exists>
2
"TextTier"
"clicks"
0
1.5
1
0.3
"x"
"IntervalTier"
"words"
0
1.5
4
0
0.1
""
0.1
0.4
"say ""hé"""
0.4
0.9
"cat"
0.9
1.5
"<sil>"
'''
WORDS = [AlignedWord('say "hé"', 0.1, 0.4), AlignedWord("cat", 0.4, 0.9)]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom", "utf-16-be-bom"])
@pytest.mark.parametrize("text", [LONG, SHORT], ids=["long", "short"])
def test_a_textgrid_is_read_in_both_forms_and_encodings(tmp_path, text, encoding):
    file = tmp_path / "a.TextGrid"
    if encoding.endswith("-bom"):
        file.write_bytes(("\ufeff" + text.replace("\n", "\r\n")).encode(encoding.removesuffix("-bom")))
    else:
        file.write_bytes(text.encode(encoding))
    assert read_textgrid(file) == WORDS


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG[:520], "a.TextGrid cannot be read"),
        (LONG[: LONG.index("        intervals [4]")], "a.TextGrid was cut short: its tier 'words' should last 1.5 s"),
        (SHORT[: SHORT.index("0.9\n1.5")], "a.TextGrid was cut short: its tier 'words' should last 1.5 s"),
        ("hello", "a.TextGrid cannot be read"),
        (LONG.replace("xmin = 0.4", 'xmin = "early"'), "a.TextGrid cannot be read"),
        (LONG.replace("xmax = 0.4", "xmax = 0.7"), "a.TextGrid cannot be read .* overlap"),
        (LONG.replace('"IntervalTier"', '"TextTier"').split("        intervals:")[0] + "points: size = 0 \n" +
         LONG[LONG.index("    item [2]"):], "it has none"),
    ],
)  # fmt: skip
def test_a_damaged_textgrid_is_named(tmp_path, text, message):
    file = tmp_path / "a.TextGrid"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_textgrid(file)


def test_a_textgrid_that_does_not_tell_its_words_lists_its_tiers(tmp_path):
    tier = SHORT[SHORT.index('"IntervalTier"') :]
    head = SHORT[: SHORT.index("2\n")] + "2\n"
    file = tmp_path / "a.TextGrid"
    file.write_text(head + tier.replace("words", "one") + tier.replace("words", "two"), encoding="utf-8")
    with pytest.raises(ValueError, match="it has 'one', 'two'"):
        read_textgrid(file)
    file.write_text(head + tier.replace("words", "phones") + tier.replace("words", "Ann - Words"), encoding="utf-8")
    assert read_textgrid(file) == WORDS


def test_a_ctm_file_holds_many_utterances(tmp_path):
    file = tmp_path / "all.ctm"
    file.write_text(";; made by hand\nu1 1 0.40 0.50 cat 0.99\nu1 1 0.10 0.30 the\nu2 A 0 1 dog\nu2 A 1 1 <eps>\n")
    got = read_ctm(file)
    assert [word.word for word in got["u1"]] == ["the", "cat"] and got["u1"][1].end == pytest.approx(0.9)
    assert got["u2"] == [AlignedWord("dog", 0, 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u1 1 zero 0.3 cat", "line 2: expected 'utterance channel"),
        ("u1 1 0.05 0.1 b", "overlaps"),
    ],
)
def test_a_damaged_ctm_line_is_named(tmp_path, line, message):
    file = tmp_path / "all.ctm"
    file.write_text(f"u1 1 0 0.1 a\n{line}\n")
    with pytest.raises(ValueError, match=message):
        read_ctm(file)


def test_alignments_are_found_by_caption_id_or_file_name(tmp_path):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "u1.TextGrid").write_text(LONG, encoding="utf-8")
    (tmp_path / "rest.ctm").write_text("u2 1 0 0.5 cat\n")
    alignments = read_alignments(tmp_path)
    matched = match_alignments(alignments, [["test-0", "u1"], ["u2"], ["u3"]], [1.5, 1.0, 1.0])
    assert matched == [WORDS, [AlignedWord("cat", 0, 0.5)], None]
    with pytest.raises(ValueError, match="None of the 1 utterances has an alignment: the first is called 'x'"):
        match_alignments(alignments, [["x"]], [1.0])
    with pytest.raises(ValueError, match="'u1' does not match its recording: a word ends at 0.90 s, .* at 0.50 s"):
        match_alignments(alignments, [["u1"]], [0.5])
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        read_alignments(tmp_path / "none")
    (tmp_path / "u2.TextGrid").write_text(LONG, encoding="utf-8")
    with pytest.raises(ValueError, match="'u2' has an alignment already"):
        read_alignments(tmp_path)


def test_neighbouring_words_share_a_boundary():
    assert word_boundaries(WORDS) == [0.4]
    assert word_boundaries([AlignedWord("a", 0, 1)]) == []
    rounded = [AlignedWord("a", 0, 0.31), AlignedWord("b", 0.30, 0.6), AlignedWord("c", 0.61, 0.8)]
    assert word_boundaries(rounded) == [0.30, 0.61]


# ---- classes


def test_class_embeddings_average_their_templates():
    class Model:
        device = "cpu"
        config = SimpleNamespace(projection_dim=2, clip_config=SimpleNamespace(projection_dim=2))

        def get_text_features(self, input_ids):
            embeds = torch.nn.functional.normalize(input_ids.float(), dim=-1)
            return SimpleNamespace(pooler_output=embeds)

    def processor(text, return_tensors):
        return {"input_ids": torch.tensor([[len(item), item.count("a") + 1] for item in text])}

    got = class_embeddings(Model(), processor, ["cat", "dog"], templates=("{}", "a {}"))
    parts = torch.nn.functional.normalize(torch.tensor([[3.0, 2.0], [5.0, 3.0]]), dim=-1)
    assert torch.allclose(got[0], torch.nn.functional.normalize(parts.mean(0), dim=-1))
    with pytest.raises(ValueError, match="two different class names"):
        class_embeddings(Model(), processor, ["cat", "cat"], ("{}",))
    with pytest.raises(ValueError, match="A template has one"):
        class_embeddings(Model(), processor, ["cat", "dog"], templates=("a photo",))
