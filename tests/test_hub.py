"""Publishing to a Hub on this machine, and loading what was published in new processes with empty caches."""

import json

ROUNDTRIP = """
import json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
)

folder, cache, token = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
api = HfApi()
assert api.whoami()["name"] == "ann"
api.create_repo("ann/things", private=True)
first = api.upload_folder(repo_id="ann/things", folder_path=folder, commit_message="First")
api.create_tag("ann/things", tag="v1")
api.create_branch("ann/things", branch="try")
(folder / "note.txt").write_text("changed")
(folder / "gone.txt").unlink()
second = api.upload_folder(repo_id="ann/things", folder_path=folder, delete_patterns="gone.txt", revision="try")
pull_request = api.upload_file(
    path_or_fileobj=b"new", path_in_repo="new.txt", repo_id="ann/things", create_pr=True
)

def refused(error, call, *arguments, **options):
    try:
        call(*arguments, **options)
    except error as raised:
        return getattr(raised.response, "status_code", None)
    raise AssertionError(f"{call} went well")

def contents(**options):
    local = Path(snapshot_download("ann/things", cache_dir=cache, **options))
    found = {path.relative_to(local).as_posix(): path for path in local.rglob("*") if path.is_file()}
    return {name: path.read_bytes().hex() for name, path in sorted(found.items()) if name != ".gitattributes"}

print(json.dumps({
    "main": contents(),
    "try": contents(revision="try"),
    "v1": contents(revision="v1"),
    "commit": contents(revision=first.oid),
    "one file": Path(hf_hub_download("ann/things", "a/deep.txt", cache_dir=cache)).read_text(),
    "tree": sorted(item.path for item in api.list_repo_tree("ann/things", recursive=True)),
    "top": sorted(item.path for item in api.list_repo_tree("ann/things")),
    "large": [item.lfs is not None for item in api.get_paths_info("ann/things", ["weights.safetensors", "note.txt"])],
    "titles": [commit.title for commit in api.list_repo_commits("ann/things", revision="try")],
    "branches": sorted(ref.name for ref in api.list_repo_refs("ann/things").branches),
    "pull request": pull_request.pr_url,
    "private": api.model_info("ann/things").private,
    "refused": [
        refused(EntryNotFoundError, hf_hub_download, "ann/things", "no.txt", cache_dir=cache),
        refused(RevisionNotFoundError, hf_hub_download, "ann/things", "note.txt", revision="no", cache_dir=cache),
        refused(RepositoryNotFoundError, api.model_info, "ann/nothing"),
        refused(RepositoryNotFoundError, api.model_info, "ann/things", token=False),
        refused(RepositoryNotFoundError, api.model_info, "ann/things", token=token),
        refused(HfHubHTTPError, api.create_repo, "ann/things"),
        refused(HfHubHTTPError, api.create_tag, "ann/things", tag="v1"),
        refused(HfHubHTTPError, api.upload_file, path_or_fileobj=b"x", path_in_repo="x", repo_id="ann/things",
                parent_commit=pull_request.oid),
    ],
}))
"""


def test_the_real_client_stores_and_fetches_files_branches_tags_and_pull_requests(hub, tmp_path):
    folder = tmp_path / "folder"
    (folder / "a").mkdir(parents=True)
    weights = bytes(range(256)) * 400
    (folder / "weights.safetensors").write_bytes(weights)
    (folder / "note.txt").write_text("first")
    (folder / "gone.txt").write_text("gone")
    (folder / "a" / "deep.txt").write_text("deep")
    for number in range(60):
        (folder / "a" / f"{number}.txt").write_text(str(number))

    hub.fail("lfs_put", status=503)
    hub.cut("lfs_verify")
    hub.cut("resolve", nth=5)
    done = hub.run_python(ROUNDTRIP, folder, tmp_path / "cache", hub.other_token, home=tmp_path / "home")
    found = json.loads(done.stdout)

    many = [f"a/{number}.txt" for number in range(60)]
    assert sorted(found["main"]) == sorted(["a/deep.txt", *many, "gone.txt", "note.txt", "weights.safetensors"])
    assert found["main"] == found["v1"] == found["commit"]
    assert bytes.fromhex(found["main"]["weights.safetensors"]) == weights
    assert bytes.fromhex(found["try"]["note.txt"]) == b"changed" and "gone.txt" not in found["try"]
    assert found["one file"] == "deep"
    assert found["tree"] == sorted([".gitattributes", "a", *found["main"]])
    assert found["top"] == [".gitattributes", "a", "gone.txt", "note.txt", "weights.safetensors"]
    assert found["large"] == [True, False]
    assert found["titles"] == ["Upload folder using huggingface_hub", "First", "initial commit"]
    assert found["branches"] == ["main", "try"]
    assert found["pull request"].endswith("/ann/things/discussions/1")
    assert found["private"] is True
    assert found["refused"] == [404, 404, 404, 401, 404, 409, 409, 412]
    assert hub.count("lfs_put") == 1 and [commit.title for commit in hub.history("ann/things")][0] == "First"
