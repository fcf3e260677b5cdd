"""What is published of a folder, what is refused, and what becomes of a push when the server or others interfere."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import save_file

from speechclip_plus.hub_cards.push import push_folder
from speechclip_plus.hub_cards.push_checks import NotPublishableError, check_publishable
from speechclip_plus_cli import main as cli

CARD = "---\nlicense: mit\n---\n\n# A model\n"


@pytest.fixture
def folder(tmp_path):
    """A model's folder, of three files of weights."""
    root = tmp_path / "model"
    root.mkdir()
    write_weights(root, 3)
    (root / "config.json").write_text('{"model_type": "bert"}')
    (root / "README.md").write_text(CARD)
    return root


def write_weights(root, parts, seed=0):
    for file in root.glob("model*"):
        file.unlink()
    weights = {f"weight{number}": np.full((50, 40), number + seed, np.float32) for number in range(parts)}
    if parts == 1:
        save_file(weights, root / "model.safetensors")
        return
    names = {name: f"model-{number + 1:05d}-of-{parts:05d}.safetensors" for number, name in enumerate(weights)}
    for name, file in names.items():
        save_file({name: weights[name]}, root / file)
    (root / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def published(hub, repo_id, **where):
    return {name: content for name, content in hub.files(repo_id, **where).items() if name != ".gitattributes"}


# ---- what is refused


def findings(folder, repo_type="model", **options):
    with pytest.raises(NotPublishableError) as refused:
        check_publishable(folder, repo_type, **options)
    return refused.value.findings


def test_one_error_lists_everything_that_must_not_be_published(folder):
    for name in ("optimizer.pt", "weights.bin"):
        (folder / name).write_bytes(b"anything")
    (folder / ".env").write_text("A=1")
    (folder / "notes.txt").write_text(f"first\nuse hf_{'a' * 34} here")
    (folder / "sub").mkdir()
    (folder / "sub" / "settings.json").write_text(json.dumps({"data": ["/home/somebody/corpus"]}))
    found = findings(folder)
    assert [finding.split(":")[0] for finding in found] == [
        ".env",
        "notes.txt",
        "optimizer.pt",
        "weights.bin",
        "sub/settings.json",
    ]
    assert "line 2 holds a Hugging Face token (hf_aaa...)" in found[1]
    assert "a training's state" in found[2] and "by its name a pickle" in found[3]
    assert "/home/somebody/corpus" in found[4]
    with pytest.raises(ValueError, match=r"(?s)cannot be published, nothing was sent:.*\.env.*settings\.json"):
        check_publishable(folder)


def test_pickles_are_known_by_what_is_in_them(folder):
    (folder / "innocent.json").write_bytes(pickle.dumps({"a": 1}))
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("archive/data.pkl", pickle.dumps([1]))
    (folder / "innocent.zip").write_bytes(archive.getvalue())
    np.save(folder / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save(folder / "numbers.npy", np.zeros(3))
    assert [finding.split(":")[0] for finding in findings(folder)] == ["innocent.json", "innocent.zip", "objects.npy"]


@pytest.mark.parametrize(
    "secret",
    [
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "aws = AKIAABCDEFGHIJKLMNOP",
        "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
        '{"HF_TOKEN": "abcdefghijklmnopqrstuvwxyz"}',
        "ghp_" + "a1" * 18,
        "sk-" + "a1" * 20,
    ],
)
def test_secrets_are_found_and_not_repeated(folder, secret):
    (folder / "train.py").write_text(f"# {secret}\n")
    (found,) = findings(folder)
    assert found.startswith("train.py: line 1 holds a") and secret[:24] not in found


@pytest.mark.parametrize(
    "name", [".env", "a/.env.local", "id_rsa", "server.pem", ".netrc", "credentials.json", "x/id_ed25519.pub"]
)
def test_files_that_are_made_for_secrets_are_refused_by_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("nothing")
    assert len(findings(folder)) == 1


def test_folders_of_this_machine_are_named_but_addresses_and_what_others_have_too_are_not(folder, tmp_path):
    fine = "https://huggingface.co/a/b, [x](/docs/page), /usr/share/tuxpaint/stamps, </div>, a/b/c, 1/2/3, s3://x/y/z"
    (folder / "README.md").write_text(f"{CARD}\n{fine}\n")
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": {"/home/a": 1}}))
    assert set(check_publishable(folder).files) == set(contents(folder))
    (folder / "README.md").write_text(
        f"{CARD}\n{fine}\n`{tmp_path}/cache` and ~/corpora/flickr8k and C:\\Users\\ann\\x\n"
    )
    (found,) = findings(folder)
    for expected in (f"{tmp_path}/cache", "~/corpora/flickr8k", "C:\\Users\\ann\\x"):
        assert expected in found
    for unexpected in ("docs", "usr", "div"):
        assert unexpected not in found


def test_damaged_or_incomplete_weights_are_refused(folder):
    part = folder / "model-00002-of-00003.safetensors"
    part.write_bytes(part.read_bytes()[:-100])
    (folder / "model-00003-of-00003.safetensors").unlink()
    found = findings(folder)
    assert found[0].startswith("model-00002-of-00003.safetensors: damaged or cut short")
    assert found[1].startswith("model.safetensors.index.json: names model-00003-of-00003.safetensors, not there")


def test_weights_need_a_configuration_and_the_other_way_round(folder):
    (folder / "config.json").unlink()
    assert "config.json: not there" in findings(folder)[0]
    for file in folder.glob("model*"):
        file.unlink()
    assert check_publishable(folder).files  # a card alone
    (folder / "config.json").write_text('{"model_type": "bert"}')
    assert "no weights" in findings(folder)[0]


def test_links_out_of_the_folder_are_refused_and_links_in_it_are_not(folder, tmp_path):
    (tmp_path / "elsewhere.txt").write_text("x")
    (folder / "out.txt").symlink_to(tmp_path / "elsewhere.txt")
    (folder / "all").symlink_to(tmp_path)
    (folder / "nothing.txt").symlink_to(folder / "gone.txt")
    (folder / "again.md").symlink_to(folder / "README.md")
    assert [finding.split(",")[0] for finding in findings(folder)] == [
        f"all: a link to {tmp_path}",
        "nothing.txt: a link to nothing; remove it.",
        f"out.txt: a link to {tmp_path / 'elsewhere.txt'}",
    ]


def test_large_files_that_no_model_loads_are_refused_except_in_data_sets(folder):
    with (folder / "recordings.tar").open("wb") as stream:
        stream.truncate(200_000_000)
    assert findings(folder)[0].startswith("recordings.tar: 200 MB that no model loads")
    assert "recordings.tar" in check_publishable(folder, "dataset").files


def test_metadata_that_the_hub_would_not_take_are_refused(folder):
    (folder / "README.md").write_text("---\nlicense: [mit\n---\n")
    assert "README.md: its metadata is not valid" in findings(folder)[0]
    (folder / "README.md").write_text("---\nbase_model: /home/ann/hubert\n---\n")
    assert any("base_model is a folder of this machine" in finding for finding in findings(folder))


def test_what_belongs_to_tools_is_left_out_and_what_the_user_says(folder):
    for name in (".git/config", "__pycache__/a.pyc", ".cache/x", "checkpoint-10/optimizer.pt", "checkpoint-10/deep/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    publication = check_publishable(folder, ignore_patterns=["checkpoint-*"])
    assert len(publication.left_out) == 5 and not set(publication.left_out) & set(publication.files)
    assert len(findings(folder)) == 1
    assert check_publishable(folder, training_state=["checkpoint-10"]).files["checkpoint-10/optimizer.pt"]


def test_a_folder_that_is_not_there_or_empty_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing"):
        check_publishable(tmp_path / "empty")
    with pytest.raises(ValueError, match="not there"):
        check_publishable(tmp_path / "no")
    with pytest.raises(ValueError, match="repo_type='models': choose one of model, dataset, space"):
        push_folder(tmp_path, "ann/x", repo_type="models")


# ---- what becomes of a push


def test_a_push_is_one_commit_and_leaves_the_folder_alone(on_hub, folder, tmp_path):
    before, times = contents(folder), {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    pushed = push_folder(folder, "model", private=True, tag="v1", commit_message="The first")
    assert pushed.repo_url == f"{on_hub.endpoint}/ann/model"
    assert (
        published(on_hub, "ann/model") == published(on_hub, "ann/model", revision="v1") == before == contents(folder)
    )
    assert times == {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert [commit.title for commit in on_hub.history("ann/model")] == ["The first", "initial commit"]
    assert on_hub.repository("ann/model").private
    local = snapshot_download("ann/model", revision="v1", cache_dir=tmp_path / "cache")
    assert {name: open(f"{local}/{name}", "rb").read() for name in before} == before
    assert push_folder(folder, "ann/model", tag="v1").oid == pushed.oid  # nothing changed: no commit, the same tag
    assert len(on_hub.history("ann/model")) == 2


def test_old_weights_under_other_names_go_in_the_same_commit_and_other_files_stay(on_hub, folder):
    push_folder(folder, "ann/model")
    on_hub.commit_as_other("ann/model", {"theirs.txt": b"theirs", "sub/model.safetensors": b"theirs"})
    write_weights(folder, 1)
    push_folder(folder, "ann/model")
    assert set(published(on_hub, "ann/model")) == {*contents(folder), "theirs.txt", "sub/model.safetensors"}
    write_weights(folder, 2)
    push_folder(folder, "ann/model")
    assert set(published(on_hub, "ann/model")) == {*contents(folder), "theirs.txt", "sub/model.safetensors"}
    assert len(on_hub.history("ann/model")) == 5


@pytest.mark.parametrize("kind", ["create_repo", "info", "preupload", "lfs_batch", "lfs_put", "lfs_verify", "commit"])
@pytest.mark.parametrize("how", ["answers 503", "is cut"])
def test_failures_of_the_server_are_waited_for(on_hub, folder, kind, how):
    on_hub.fail(kind, times=2, status=503) if how == "answers 503" else on_hub.cut(kind, times=2)
    push_folder(folder, "ann/model", tag="v1")
    assert published(on_hub, "ann/model", revision="v1") == contents(folder)
    assert len(on_hub.history("ann/model")) == 2


def test_a_commit_whose_answer_is_lost_is_not_made_twice(on_hub, folder):
    on_hub.fail("commit_answer")
    pushed = push_folder(folder, "ann/model", tag="v1")
    assert len(on_hub.history("ann/model")) == 2
    assert on_hub.repository("ann/model").tags == {"v1": pushed.oid}
    assert published(on_hub, "ann/model") == contents(folder)


def test_a_server_that_stays_broken_leaves_the_repository_as_it_was(on_hub, folder):
    push_folder(folder, "ann/model")
    before = published(on_hub, "ann/model")
    write_weights(folder, 3, seed=7)
    (folder / "README.md").write_text(CARD + "new")
    local = contents(folder)
    for kind in ("preupload", "lfs_put", "commit"):
        on_hub.fail(kind, times=1000)
        with pytest.raises((HfHubHTTPError, RuntimeError)):
            push_folder(folder, "ann/model")
        on_hub.heal()
        assert published(on_hub, "ann/model") == before and contents(folder) == local
    push_folder(folder, "ann/model")
    assert published(on_hub, "ann/model") == local and len(on_hub.history("ann/model")) == 3


def test_what_arrived_before_an_interruption_is_not_sent_again(on_hub, folder):
    on_hub.fail("lfs_put", nth=3, times=1000, status=403)  # two of three files arrive
    with pytest.raises(RuntimeError, match="Error while uploading"):
        push_folder(folder, "ann/model")
    assert on_hub.count("lfs_put") == 2 and set(on_hub.files("ann/model")) == {".gitattributes"}
    on_hub.heal()
    start = len(on_hub.requests)
    push_folder(folder, "ann/model")
    assert on_hub.count("lfs_put", since=start) == 1
    assert published(on_hub, "ann/model") == contents(folder)


def test_a_commit_of_somebody_else_meanwhile_stays(on_hub, folder):
    push_folder(folder, "ann/model")
    write_weights(folder, 3, seed=7)
    on_hub.before("commit", lambda: on_hub.commit_as_other("ann/model", {"theirs.txt": b"theirs"}))
    push_folder(folder, "ann/model")
    assert published(on_hub, "ann/model") == {**contents(folder), "theirs.txt": b"theirs"}
    assert [commit.author for commit in on_hub.history("ann/model")] == ["ann", "bob", "ann", "system"]


@pytest.mark.parametrize("theirs", [b"their card", None])
def test_what_both_changed_meanwhile_is_not_overwritten(on_hub, folder, theirs):
    push_folder(folder, "ann/model")
    (folder / "README.md").write_text(CARD + "mine")
    on_hub.before("commit", lambda: on_hub.commit_as_other("ann/model", {"README.md": theirs}))
    with pytest.raises(ValueError, match="somebody else changed README.md in ann/model"):
        push_folder(folder, "ann/model")
    assert published(on_hub, "ann/model").get("README.md") == theirs
    push_folder(folder, "ann/model", revision="mine")  # as the error says
    assert published(on_hub, "ann/model", revision="mine")["README.md"].decode() == CARD + "mine"


def test_branches_are_made_tags_are_not_moved_and_pull_requests_are_opened(on_hub, folder):
    push_folder(folder, "ann/model", tag="v1")
    first = published(on_hub, "ann/model")
    write_weights(folder, 3, seed=7)
    with pytest.raises(ValueError, match="has a tag 'v1' already"):
        push_folder(folder, "ann/model", tag="v1")
    push_folder(folder, "ann/model", revision="next", tag="v2")
    pull_request = push_folder(folder, "ann/model", create_pr=True)
    assert published(on_hub, "ann/model") == first
    for revision in ("next", "v2", "refs/pr/1"):
        assert published(on_hub, "ann/model", revision=revision) == contents(folder)
    assert pull_request.pr_url.endswith("/discussions/1")
    with pytest.raises(ValueError, match="leave revision and tag out"):
        push_folder(folder, "ann/model", create_pr=True, tag="v3")


def test_a_private_push_does_not_go_to_a_public_repository(on_hub, folder):
    push_folder(folder, "ann/model")
    (folder / "README.md").write_text(CARD + "secret")
    with pytest.raises(ValueError, match="exists and is public"):
        push_folder(folder, "ann/model", private=True)
    assert published(on_hub, "ann/model")["README.md"].decode() == CARD


def test_a_refused_token_is_explained(on_hub, folder, monkeypatch):
    with pytest.raises(PermissionError, match=r"does not let you write to bob/model \(403\).*hf auth login"):
        push_folder(folder, "bob/model")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(PermissionError, match=r"ann/model \(401\)"):
        push_folder(folder, "ann/model")


def test_metadata_are_checked_by_the_hub_before_anything_is_made(on_hub, folder):
    (folder / "README.md").write_text("---\nlicense: other\n---\n")
    with pytest.raises(ValueError, match="license_name"):
        push_folder(folder, "ann/model")
    assert not on_hub.repositories


def test_the_command_lists_what_it_sends_and_prints_the_address(on_hub, folder, capsys):
    assert cli.main(["push", str(folder), "ann/model", "--dry-run"]) == 0
    assert not on_hub.repositories and "nothing was sent" in capsys.readouterr().out
    command = ["push", str(folder), "ann/model", "--private", "--tag", "v1", "--message", "First"]
    assert cli.main(command) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["README.md", "32", "B"]
    assert out[-2].startswith("6 files, ") and out[-1] == f"{on_hub.endpoint}/ann/model"
    assert on_hub.history("ann/model")[0].title == "First"
    (folder / "trainer_state.json").write_text("{}")
    os.symlink("/", folder / "root")
    assert cli.main(["push", str(folder), "ann/model"]) == 1
    err = capsys.readouterr().err.splitlines()
    assert len(err) == 3 and "root: a link to /" in err[1] and "trainer_state.json: a training's state" in err[2]
    assert cli.main(["push", str(folder), "ann/model", "--exclude", "root", "--exclude", "trainer_state.json"]) == 0


@pytest.mark.parametrize("name", ["a/b/c", "bad name!", "ann/..", ""])
def test_what_cannot_be_a_repositorys_name_is_said_before_anything_is_looked_at(name, tmp_path, capsys):
    assert cli.main(["push", str(tmp_path), name, "--dry-run"]) == 1
    assert "is no name of a repository: give OWNER/NAME" in capsys.readouterr().err
