"""Folders to the Hub: what is refused, what is sent, and what an interruption leaves."""

import json
import pickle
import shutil
import zipfile

import numpy as np
import pytest
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors.numpy import save_file

from speechclip_plus.atomic_files import MANIFEST, finished_folder
from speechclip_plus.configuration.publication import GENERATED
from speechclip_plus.hub_cards.push import prepared_folder, push_folder
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


def refusal(folder, repo_type="model", **options):
    with pytest.raises(ValueError) as refused, prepared_folder(folder, "ann/x", repo_type, **options):
        pass
    return str(refused.value)


def prepared_files(folder, **options):
    with prepared_folder(folder, "ann/x", **options) as prepared:
        return contents(prepared)


@pytest.mark.parametrize("name", ["optimizer.pt", "sub/weights.bin", "a.CKPT"])
def test_pickles_are_known_by_their_names(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"anything")
    assert refusal(folder).startswith(f"{name} is a pickle")


@pytest.mark.parametrize("name", ["innocent.json", "innocent.zip", "objects.npy"])
def test_pickles_are_known_by_what_is_in_them(folder, name):
    np.save(folder / "numbers.npy", np.zeros(3))
    assert "numbers.npy" in prepared_files(folder)
    if name == "innocent.json":
        (folder / name).write_bytes(pickle.dumps({"a": 1}))
    elif name == "innocent.zip":
        with zipfile.ZipFile(folder / name, "w") as file:
            file.writestr("archive/data.pkl", pickle.dumps([1]))
    else:
        np.save(folder / name, np.array([{}], dtype=object), allow_pickle=True)
    assert refusal(folder).startswith(f"{name} is a pickle")


@pytest.mark.parametrize(
    "secret",
    [
        f"hf_{'a' * 34}",
        "-----BEGIN OPENSSH PRIVATE KEY-----",
        "aws = AKIAABCDEFGHIJKLMNOP",
        "WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567",
        '{"HF_TOKEN": "abcdefghijklmnopqrstuvwxyz"}',
        "ghp_" + "a1" * 18,
        "sk-" + "a1" * 20,
    ],
)
def test_secrets_are_found_and_not_repeated(folder, secret):
    (folder / "train.py").write_text(f"first\n# {secret}\n")
    found = refusal(folder)
    assert found.startswith("train.py, line 2, holds a") and secret[:24] not in found


@pytest.mark.parametrize(
    "name", [".env", "a/.env.local", "id_rsa", "server.pem", ".netrc", "credentials.json", "x/id_ed25519.pub"]
)
def test_files_that_are_made_for_secrets_are_refused_by_name(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("nothing")
    assert refusal(folder).startswith(f"{name} holds secrets")


def test_folders_of_this_machine_are_refused_but_addresses_and_what_others_have_too_are_not(folder, tmp_path):
    fine = "https://huggingface.co/a/b, [x](/docs/page), /usr/share/tuxpaint/stamps, </div>, a/b/c, 1/2/3, s3://x/y/z"
    (folder / "README.md").write_text(f"{CARD}\n{fine}\n")
    (folder / "tokenizer.json").write_text(json.dumps({"vocab": {"/home/a": 1}}))
    assert prepared_files(folder) == contents(folder)
    for path in (f"{tmp_path}/cache", "~/corpora/flickr8k", "C:\\Users\\ann\\x", "/home/somebody/corpus"):
        (folder / "README.md").write_text(f"{CARD}\n{fine}\nsee {path} here\n")
        assert refusal(folder).startswith(f"README.md names {path}, a folder of this machine")


def test_links_out_of_the_folder_are_refused_and_links_in_it_are_not(folder, tmp_path):
    (folder / "again.md").symlink_to(folder / "README.md")
    assert "again.md" in prepared_files(folder)
    (tmp_path / "elsewhere.txt").write_text("x")
    (folder / "out.txt").symlink_to(tmp_path / "elsewhere.txt")
    assert refusal(folder).startswith("out.txt is a link out of the folder")
    (folder / "out.txt").unlink()
    (folder / "all").symlink_to(tmp_path)
    assert refusal(folder).startswith("all is a link out of the folder")


def test_what_belongs_to_tools_is_left_out_and_what_the_user_says(folder):
    before = contents(folder)
    for name in (".git/config", "__pycache__/a.pyc", ".cache/x", "checkpoint-10/optimizer.pt", "checkpoint-10/deep/x"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    assert prepared_files(folder, ignore_patterns=["checkpoint-*"]) == before
    assert refusal(folder).startswith("checkpoint-10/optimizer.pt is a pickle")


def test_a_folder_that_is_not_there_or_empty_is_an_error(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds nothing"):
        push_folder(tmp_path / "empty", "ann/x")
    with pytest.raises(ValueError, match="not there"):
        push_folder(tmp_path / "no", "ann/x")


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
    assert push_folder(folder, "ann/model").oid == pushed.oid  # nothing changed: no commit
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
    (folder / "optimizer.pt").write_bytes(b"x")
    assert cli.main(["push", str(folder), "ann/model"]) == 1
    assert capsys.readouterr().err.startswith("error: optimizer.pt is a pickle")
    assert cli.main(["push", str(folder), "ann/model", "--exclude", "optimizer.pt"]) == 0


@pytest.mark.parametrize("name", ["a/b/c", "bad name!", "ann/..", ""])
def test_what_cannot_be_a_repositorys_name_is_said_before_anything_is_looked_at(name, tmp_path, capsys):
    assert cli.main(["push", str(tmp_path / "not_there"), name, "--dry-run"]) == 1
    assert "epo id must" in capsys.readouterr().err


# ---- cards


def test_a_generated_card_never_replaces_one_that_somebody_made_their_own(on_hub, folder):
    generated = f"{CARD}\n{GENERATED}\n"
    (folder / "README.md").write_text(generated)
    push_folder(folder, "ann/model")
    (folder / "README.md").write_text(generated + "newer")
    push_folder(folder, "ann/model")
    assert published(on_hub, "ann/model")["README.md"].decode() == generated + "newer"
    on_hub.commit_as_other("ann/model", {"README.md": CARD.encode() + b"Their words.\n"})
    write_weights(folder, 1)
    push_folder(folder, "ann/model")
    files = published(on_hub, "ann/model")
    assert files["README.md"].decode() == f"{CARD}Their words.\n" and "model.safetensors" in files
    (folder / "README.md").write_text(f"{CARD}My words.\n")
    push_folder(folder, "ann/model")
    assert published(on_hub, "ann/model")["README.md"].decode() == f"{CARD}My words.\n"


def test_the_list_by_which_a_folder_is_known_again_stays_here(folder, tmp_path):
    with finished_folder(tmp_path / "run") as work:
        shutil.copytree(folder, work, dirs_exist_ok=True)
    assert (tmp_path / "run" / MANIFEST).is_file()
    with prepared_folder(tmp_path / "run", "ann/model") as prepared:
        assert (prepared / "config.json").is_file() and not (prepared / MANIFEST).exists()
