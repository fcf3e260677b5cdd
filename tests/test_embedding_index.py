"""`EmbeddingIndex`: exact search, items on disk, and errors for what is damaged or does not fit."""

import json
import pickle

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from speechclip_plus import EmbeddingIndex, SpeechClipPlusConfig, SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus import embedding_index
from speechclip_plus.modeling_speechclip_plus.weight_fingerprint import same_weights, weight_fingerprint


def write_index(folder, embeds, **facts):
    folder.mkdir(exist_ok=True)
    np.save(folder / "embeddings.npy", np.asarray(embeds, np.float32))
    items = [{"id": f"é{row}", "path": f"/pictures/{row}.png"} for row in range(len(embeds))]
    lines = [json.dumps(item).encode() + b"\n" for item in items]
    (folder / "items.jsonl").write_bytes(b"".join(lines))
    np.save(folder / "items.npy", np.cumsum([0, *map(len, lines)], dtype=np.int64))
    head = {"format": "speechclip-plus-index", "version": 1, "complete": True, "kind": "images", "branch": None}
    model = {"name": "some/model", "weights": {}}
    sizes = {"count": len(embeds), "width": len(embeds[0]), "bytes": 0}
    (folder / "index.json").write_text(json.dumps({**head, "model": model, **sizes, **facts}))
    return folder


def brute_force(queries, embeds, k):
    scores = (queries.double() @ embeds.double().T).float()
    best = scores.sort(dim=1, descending=True, stable=True)  # of equal scores the lower row first
    return best.values[:, :k], best.indices[:, :k]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("hybrid_plus-tiny")).eval()


@pytest.fixture
def small(tmp_path):
    return write_index(tmp_path / "small", torch.eye(4))


@pytest.mark.parametrize(
    ("rows", "width", "queries", "k"), [(1, 3, 2, 5), (7, 2, 3, 7), (3_000, 20, 300, 10), (5_000, 64, 4, 3)]
)
def test_search_finds_what_a_full_sort_finds(tmp_path, monkeypatch, rows, width, queries, k):
    monkeypatch.setattr(embedding_index, "_BLOCK_BYTES", 8 * width * 100)  # many blocks and chunks
    monkeypatch.setattr(embedding_index, "_SCORE_BYTES", 4 * 256 * 1_000)
    generator = torch.Generator().manual_seed(rows)
    embeds = normalize(torch.randn(rows, width, generator=generator), dim=1)
    asked = normalize(torch.randn(queries, width, generator=generator), dim=1)
    scores, found = EmbeddingIndex.load(write_index(tmp_path / "index", embeds)).search(asked, k)
    expected_scores, expected = brute_force(asked, embeds, k)
    assert torch.equal(scores, expected_scores) and torch.equal(found, expected)


def test_of_equal_rows_the_lower_comes_first_wherever_they_stand(tmp_path, monkeypatch):
    monkeypatch.setattr(embedding_index, "_BLOCK_BYTES", 8 * 48 * 37)
    generator = torch.Generator().manual_seed(0)
    different = normalize(torch.randn(20, 48, generator=generator), dim=1)
    embeds = different[torch.randint(0, 20, (2_000,), generator=generator)]
    asked = torch.cat([different[:5], torch.zeros(1, 48), -different[:5]])  # zeros: all rows are equal
    _, found = EmbeddingIndex.load(write_index(tmp_path / "index", embeds)).search(asked, 150)
    assert torch.equal(found, brute_force(asked, embeds, 150)[1])
    assert found[5].tolist() == list(range(150))


def test_items_are_read_by_row_from_both_ends(small):
    items = EmbeddingIndex.load(small).items
    assert len(items) == 4
    assert items[2] == {"id": "é2", "path": "/pictures/2.png"}
    assert items[-1] == items[3] == items[torch.tensor(3)]
    assert [item["id"] for item in items[1:3]] == ["é1", "é2"]
    assert [item["id"] for item in items] == ["é0", "é1", "é2", "é3"]
    with pytest.raises(IndexError, match="no row 4: the index has 4"):
        items[4]


def test_an_index_goes_to_another_process(small):
    index = pickle.loads(pickle.dumps(EmbeddingIndex.load(small)))
    assert index.search(torch.eye(4)[2:3], 1)[1].tolist() == [[2]]
    assert isinstance(index.embeddings, np.memmap)


@pytest.mark.parametrize(
    ("queries", "top_k", "said"),
    [
        (torch.zeros(2, 3), 5, r"shape \(Q, 4\).*got \(2, 3\)"),
        (torch.zeros(4), 5, r"got \(4,\)"),
        (torch.zeros(1, 4), 0, "top_k=0: expected a whole number from 1"),
        (torch.tensor([[0.0, 1, 0, 0], [torch.nan, 0, 0, 0]]), 5, r"queries \[1\] hold NaN"),
    ],
)
def test_queries_that_do_not_fit_are_an_error(small, queries, top_k, said):
    with pytest.raises(ValueError, match=said):
        EmbeddingIndex.load(small).search(queries, top_k)


def damage_text(name, old, new):
    return lambda folder: (folder / name).write_text((folder / name).read_text().replace(old, new))


def cut(name):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-8])


@pytest.mark.parametrize(
    ("harm", "error", "said"),
    [
        (lambda folder: (folder / "index.json").unlink(), FileNotFoundError, "small has no index.json: expected an"),
        (damage_text("index.json", '"version": 1', '"version": 2'), ValueError, "format version 2, this .* up to 1"),
        (damage_text("index.json", "plus-index", "plus"), ValueError, "is of something else"),
        (damage_text("index.json", '"complete": true', '"complete": false'), ValueError, "is unfinished"),
        (damage_text("index.json", '"kind"', '"kin"'), ValueError, "does not say kind: it is damaged"),
        (damage_text("index.json", "}", ""), ValueError, "is damaged"),
        (damage_text("index.json", '"count": 4', '"count": 5'), ValueError, r"says \(5, 4\), .* has \(4, 4\)"),
        (damage_text("index.json", '"bytes": 0', '"bytes": 9'), FileNotFoundError, "lacks its files.bin"),
        (lambda folder: (folder / "items.jsonl").unlink(), FileNotFoundError, "lacks its items.jsonl"),
        (cut("items.jsonl"), ValueError, "is damaged: items.jsonl has .* bytes, expected"),
        (cut("embeddings.npy"), ValueError, "is damaged"),
        (lambda folder: (folder / "embeddings.npy").write_bytes(b""), ValueError, "is damaged"),
    ],
)
def test_a_damaged_index_is_one_clear_error(small, harm, error, said):
    harm(small)
    with pytest.raises(error, match=said):
        EmbeddingIndex.load(small)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere is not there: expected an index made by"):
        EmbeddingIndex.load(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("kind", "branch"), [("images", None), ("recordings", "parallel"), ("recordings", "cascaded")]
)
def test_a_fingerprint_outlives_saving_and_halving_but_not_another_weight(model, tmp_path, kind, branch):
    model.save_pretrained(tmp_path)
    own = weight_fingerprint(model, kind, branch)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = SpeechClipPlusModel.from_pretrained(tmp_path, dtype=dtype)
        assert same_weights(own, weight_fingerprint(loaded, kind, branch)) is True
    part = loaded.clip.vision_model if kind == "images" else loaded.branch
    with torch.no_grad():
        next(part.parameters()).add_(0.01)
    assert same_weights(own, weight_fingerprint(loaded, kind, branch)) is False
    assert same_weights({"float16": "a"}, {"bfloat16": "a"}) is None


def index_of(folder, model, kind="images", branch=None):
    facts = {"kind": kind, "branch": branch}
    facts["model"] = {"name": "first/model", "weights": weight_fingerprint(model, kind, branch)}
    return EmbeddingIndex.load(write_index(folder, torch.zeros(2, 128), **facts))


def test_another_branch_may_search_pictures_of_the_same_clip(model, tmp_path):
    index = index_of(tmp_path / "index", model)
    other = SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("parallel-tiny"))
    other.clip.load_state_dict(model.clip.state_dict())
    index.check_model(other)


def test_a_model_that_does_not_fit_is_an_error_that_names_both(model, tmp_path):
    other = SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("parallel-tiny"))
    other.name_or_path = "second/model"
    pictures = index_of(tmp_path / "pictures", model)
    with pytest.raises(ValueError, match="the model second/model has other weights .* made by first/model"):
        pictures.check_model(other)
    recordings = index_of(tmp_path / "recordings", model, "recordings", "cascaded")
    recordings.check_model(model)
    with pytest.raises(ValueError, match=r"second/model \(parallel\) has no cascaded branch.*first/model"):
        recordings.check_model(other)
    narrow = write_index(tmp_path / "narrow", torch.zeros(2, 64), model={"name": "first/model", "weights": {}})
    with pytest.raises(ValueError, match="second/model embeds in 128 dimensions, .*first/model.* in 64"):
        EmbeddingIndex.load(narrow).check_model(other)
    pictures.facts["model"]["weights"] = {"float16": "x"}
    with pytest.raises(ValueError, match="is in torch.bfloat16 and .* in float16: these cannot be compared"):
        pictures.check_model(other.to(torch.bfloat16))
