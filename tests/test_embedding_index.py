"""`EmbeddingIndex`: exact search, items on disk, and errors for what is damaged or does not fit."""

import json
import pickle
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from speechclip_plus import EmbeddingIndex, SpeechClipPlusConfig, SpeechClipPlusModel
from speechclip_plus.modeling_speechclip_plus.embedding_index import same_weights, weight_fingerprint


def write_index(folder, embeds, shard_size=1_000, **facts):
    folder.mkdir(exist_ok=True)
    shards = torch.as_tensor(embeds).split(shard_size)
    start = 0
    for number, part in enumerate(shards):
        file = folder / f"shard-{number:05d}.safetensors"
        save_file({"embeddings": part.contiguous()}, file)
        names = [str(row) for row in range(start, start + len(part))]
        table = {"id": [f"é{name}" for name in names], "path": [f"/images/{name}.png" for name in names]}
        empty = [None] * len(part)
        table |= {"bytes": empty, "text": empty, "seconds": empty}
        pyarrow.parquet.write_table(pyarrow.table(table), file.with_suffix(".parquet"))
        start += len(part)
    head = {"format": "speechclip-plus-index", "version": 2, "complete": True, "kind": "images", "branch": None}
    model = {"name": "some/model", "weights": {}}
    sizes = {"shards": len(shards), "shape": list(embeds.shape)}
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
def test_search_finds_what_a_full_sort_finds(tmp_path, rows, width, queries, k):
    generator = torch.Generator().manual_seed(rows)
    embeds = normalize(torch.randn(rows, width, generator=generator), dim=1)
    asked = normalize(torch.randn(queries, width, generator=generator), dim=1)
    scores, found = EmbeddingIndex.load(write_index(tmp_path / "index", embeds, 200)).search(asked, k)
    expected_scores, expected = brute_force(asked, embeds, k)
    assert torch.equal(scores, expected_scores) and torch.equal(found, expected)


def test_of_equal_rows_the_lower_comes_first_wherever_they_stand(tmp_path):
    generator = torch.Generator().manual_seed(0)
    different = normalize(torch.randn(20, 48, generator=generator), dim=1)
    embeds = different[torch.randint(0, 20, (2_000,), generator=generator)]
    asked = torch.cat([different[:5], torch.zeros(1, 48), -different[:5]])  # zeros: all rows are equal
    _, found = EmbeddingIndex.load(write_index(tmp_path / "index", embeds, 37)).search(asked, 150)
    assert torch.equal(found, brute_force(asked, embeds, 150)[1])
    assert found[5].tolist() == list(range(150))


def test_items_are_read_by_row_from_both_ends(tmp_path):
    index = EmbeddingIndex.load(write_index(tmp_path / "index", torch.eye(4), shard_size=3))
    assert len(index) == 4
    assert index[2] == {"id": "é2", "path": "/images/2.png"}
    assert index[-1] == index[3] == index[torch.tensor(3)]
    assert [item["id"] for item in index] == ["é0", "é1", "é2", "é3"]
    with pytest.raises(IndexError, match="no row 4: the index has 4"):
        index[4]


def test_an_index_goes_to_another_process(small):
    index = pickle.loads(pickle.dumps(EmbeddingIndex.load(small)))
    assert index.search(torch.eye(4)[2:3], 1)[1].tolist() == [[2]]


def test_embeddings_are_mapped_and_not_read_when_an_index_is_opened(tmp_path):
    folder = write_index(tmp_path / "index", torch.zeros(2_000, 512))
    status = Path("/proc/self/smaps")
    if not status.exists():
        pytest.skip("needs /proc")
    index = EmbeddingIndex.load(folder)
    assert status.read_text().count(str(folder)) == 2
    assert len(index) == 2_000


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
        (lambda folder: (folder / "index.json").unlink(), FileNotFoundError, "No such file .*small/index.json"),
        (damage_text("index.json", '"version": 2', '"version": 3'), ValueError, "format version 3, this .* version 2"),
        (damage_text("index.json", "plus-index", "plus"), ValueError, "is of something else"),
        (damage_text("index.json", '"complete": true', '"complete": false'), ValueError, "is unfinished"),
        (damage_text("index.json", '"kind"', '"kin"'), ValueError, "is damaged: 'kind'"),
        (damage_text("index.json", "}", ""), ValueError, "is damaged"),
        (damage_text("index.json", "[4, 4]", "[5, 4]"), ValueError, r"says \(5, 4\), the shards have \(4, 4\)"),
        (
            damage_text("index.json", '"shards": 1', '"shards": 2'),
            FileNotFoundError,
            "shard-00001.safet",
        ),
        (
            lambda folder: (folder / "shard-00000.parquet").unlink(),
            FileNotFoundError,
            "lacks the table of its",
        ),
        (cut("shard-00000.safetensors"), ValueError, "is damaged"),
        (lambda folder: (folder / "shard-00000.safetensors").write_bytes(b""), ValueError, "is damaged"),
    ],
)
def test_a_damaged_index_is_one_clear_error(small, harm, error, said):
    harm(small)
    with pytest.raises(error, match=said):
        EmbeddingIndex.load(small)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere/index.json"):
        EmbeddingIndex.load(tmp_path / "nowhere")


@pytest.mark.parametrize("kind", ["images", "audio"])
def test_a_fingerprint_outlives_saving_and_halving_but_not_another_weight(model, tmp_path, kind):
    model.save_pretrained(tmp_path)
    own = weight_fingerprint(model, kind)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        loaded = SpeechClipPlusModel.from_pretrained(tmp_path, dtype=dtype)
        assert same_weights(own, weight_fingerprint(loaded, kind))
    part = loaded.clip.vision_model if kind == "images" else loaded.branch
    with torch.no_grad():
        next(part.parameters()).add_(0.01)
    assert not same_weights(own, weight_fingerprint(loaded, kind))
    other = "audio" if kind == "images" else "images"
    assert same_weights(weight_fingerprint(model, other), weight_fingerprint(loaded, other))
    assert not same_weights({"float16": "a"}, {"bfloat16": "a"})


def index_of(folder, model, kind="images", branch=None):
    facts = {"kind": kind, "branch": branch}
    facts["model"] = {"name": "first/model", "weights": weight_fingerprint(model, kind)}
    return EmbeddingIndex.load(write_index(folder, torch.zeros(2, 128), **facts))


def test_another_branch_may_search_images_of_the_same_clip(model, tmp_path):
    index = index_of(tmp_path / "index", model)
    other = SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("parallel-tiny"))
    other.clip.load_state_dict(model.clip.state_dict())
    index.check_model(other)


def test_a_model_that_does_not_fit_is_an_error_that_names_both(model, tmp_path):
    other = SpeechClipPlusModel(SpeechClipPlusConfig.from_preset("parallel-tiny"))
    other.name_or_path = "second/model"
    images = index_of(tmp_path / "images", model)
    with pytest.raises(ValueError, match="the model second/model has other weights .* made by first/model"):
        images.check_model(other)
    audio = index_of(tmp_path / "audio", model, "audio", "cascaded")
    audio.check_model(model)
    with pytest.raises(ValueError, match=r"second/model has no cascaded branch.*first/model"):
        audio.check_model(other)
