"""A small Hub on this machine that speaks the real endpoints to the real `huggingface_hub`.

Everything is kept in memory: repositories of models, data sets and Spaces with commits, branches, tags and pull
requests, large files by their sha256. Xet, the Hub's other storage, cannot be served: clients switch it off
(`HF_HUB_DISABLE_XET=1`). It can be told to fail:

    hub.fail("commit", nth=2, status=500)    # the second commit from now on is answered with a 500
"""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

PREFIXES = {"model": "", "dataset": "datasets/", "space": "spaces/"}
LARGE = 10_000_000  # bytes from which a file is stored as a large one, whatever its name
LARGE_NAMES = ("*.safetensors", "*.bin", "*.pt", "*.pth", "*.parquet", "*.arrow", "*.npy", "*.wav", "*.png", "*.jpg")
GITATTRIBUTES = "".join(f"{name} filter=lfs diff=lfs merge=lfs -text\n" for name in LARGE_NAMES).encode()


@dataclass(frozen=True)
class File:
    """A file of a commit: its content, and how it is stored."""

    content: bytes
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def git_oid(self) -> str:
        stored = self.content
        if self.is_large:
            stored = (
                f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(stored)}\n".encode()
            )
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.git_oid


@dataclass(frozen=True)
class Commit:
    oid: str
    parents: tuple[str, ...]
    files: dict[str, File]
    title: str
    message: str
    author: str
    date: datetime


@dataclass
class Repository:
    kind: str
    id: str
    private: bool
    commits: dict[str, Commit] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    pull_requests: dict[str, str] = field(default_factory=dict)
    large: dict[str, bytes] = field(default_factory=dict)  # by sha256: what was uploaded, committed or not

    @property
    def owner(self) -> str:
        return self.id.split("/")[0]

    def resolve(self, revision: str) -> str | None:
        for names in (self.branches, self.tags, self.pull_requests):
            if revision in names:
                return names[revision]
        return revision if revision in self.commits else None

    def add_commit(
        self, parent: str | None, files: dict[str, File], title: str, message: str = "", author: str = "system"
    ) -> str:
        number = len(self.commits)
        stored = json.dumps([parent, title, message, author, number, {k: f.git_oid for k, f in files.items()}])
        oid = hashlib.sha1(stored.encode()).hexdigest()
        # A second apart, so that their order is seen.
        date = datetime(2025, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        self.commits[oid] = Commit(oid, (parent,) if parent else (), files, title, message, author, date)
        return oid

    def history(self, oid: str | None) -> list[Commit]:
        found = []
        while oid is not None:
            found.append(self.commits[oid])
            oid = found[-1].parents[0] if found[-1].parents else None
        return found


@dataclass(frozen=True)
class Request:
    kind: str
    method: str
    path: str
    status: int


@dataclass
class _Fault:
    kind: str
    countdown: int  # requests of the kind that go well before it
    times: int
    status: int


class LoopbackHub:
    """The server. `token` is that of the user `owner`, `other_token` that of another one.

    Attributes:
        requests: all that was asked, in order; `kind` is the endpoint's name, as used by `fail` and `count`.
        endpoint: the address, for `HF_ENDPOINT`.
    """

    owner, token = "ann", "hf_" + "a" * 34
    other, other_token = "bob", "hf_" + "b" * 34

    def __init__(self) -> None:
        self.users = {self.token: self.owner, self.other_token: self.other}
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.requests: list[Request] = []
        self.lock = threading.RLock()
        self._faults: list[_Fault] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> "LoopbackHub":
        self._thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()

    # ---- what a test asks and tells

    def environment(self, home: Path, token: str | None = token) -> dict[str, str]:
        """Environment of a process that knows this Hub alone, and has nothing in its cache under `home`."""
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "HF_EVALUATE_OFFLINE", "HF_TOKEN")
        caches = ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_MODULES_CACHE", "HF_EVALUATE_CACHE", "HF_ASSETS_CACHE")
        environment = {name: value for name, value in os.environ.items() if name not in names + caches}
        environment |= {
            "HF_HOME": str(home),
            "HF_ENDPOINT": self.endpoint,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }
        return environment | ({"HF_TOKEN": token} if token else {})

    def run_python(
        self, code: str, *arguments: object, home: Path, token: str | None = token, **variables: str
    ) -> subprocess.CompletedProcess:
        """Run Python code in a new process with this Hub; `variables` are added to its environment.

        Returns what it printed; an exit code other than 0 is an AssertionError that shows it.
        """
        done = subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=self.environment(home, token) | variables,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def fail(self, kind: str, nth: int = 1, times: int = 1, status: int = 500) -> None:
        """Answer the `nth` request of a kind from now on, and as many as `times`, with an error."""
        self._faults.append(_Fault(kind, nth - 1, times, status))

    def heal(self) -> None:
        """Take back what `fail` said."""
        self._faults.clear()

    def count(self, kind: str, since: int = 0) -> int:
        """How many requests of a kind were answered with success, from the request numbered `since` on."""
        return sum(request.kind == kind and request.status < 300 for request in self.requests[since:])

    def repository(self, repo_id: str, kind: str = "model") -> Repository:
        return self.repositories[kind, repo_id]

    def files(self, repo_id: str, kind: str = "model", revision: str = "main") -> dict[str, bytes]:
        """Contents by path, as a revision has them."""
        repository = self.repository(repo_id, kind)
        return {path: file.content for path, file in repository.commits[repository.resolve(revision)].files.items()}

    def history(self, repo_id: str, kind: str = "model", revision: str = "main") -> list[Commit]:
        """Commits of a revision, the last one first."""
        repository = self.repository(repo_id, kind)
        return repository.history(repository.resolve(revision))

    def commit_as_other(self, repo_id: str, files: dict[str, bytes | None], kind: str = "model") -> str:
        """Commit files (None: deleted) to the main branch, as somebody else would."""
        with self.lock:
            repository = self.repository(repo_id, kind)
            tree = dict(repository.commits[repository.branches["main"]].files)
            for path, content in files.items():
                if content is None:
                    del tree[path]
                else:
                    tree[path] = File(content, _is_large(path, len(content), content))
            oid = repository.add_commit(repository.branches["main"], tree, "Somebody else's", author=self.other)
            repository.branches["main"] = oid
            return oid

    # ---- what the handler asks

    def fault(self, kind: str) -> _Fault | None:
        with self.lock:
            for fault in self._faults:
                if fault.kind == kind:
                    fault.countdown -= 1
                    if fault.countdown < 0 and fault.times > 0:
                        fault.times -= 1
                        return fault
            return None


class _Refused(Exception):
    def __init__(self, status: int, code: str | None, message: str, headers: dict | None = None, **body) -> None:
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+)"
_API = rf"^/api/(?P<kind>model|dataset|space)s/{_REPO}"
_FILE = rf"^/(?P<prefix>datasets/|spaces/)?{_REPO}"
ROUTES = [
    ("GET", "whoami", r"^/api/whoami-v2$"),
    ("POST", "create_repo", r"^/api/repos/create$"),
    ("POST", "validate_yaml", r"^/api/validate-yaml$"),
    ("GET", "info", _API + r"(?:/revision/(?P<revision>[^/]+))?$"),
    ("POST", "preupload", _API + r"/preupload/(?P<revision>[^/]+)$"),
    ("POST", "commit", _API + r"/commit/(?P<revision>[^/]+)$"),
    ("POST", "paths_info", _API + r"/paths-info/(?P<revision>[^/]+)$"),
    ("GET", "tree", _API + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?$"),
    ("GET", "refs", _API + r"/refs$"),
    ("POST", "create_branch", _API + r"/branch/(?P<name>[^/]+)$"),
    ("POST", "create_tag", _API + r"/tag/(?P<revision>[^/]+)$"),
    ("POST", "lfs_batch", _FILE + r"\.git/info/lfs/objects/batch$"),
    ("PUT", "lfs_put", _FILE + r"/lfs/(?P<oid>[0-9a-f]{64})$"),
    ("POST", "lfs_verify", _FILE + r"/lfs/verify$"),
    ("GET", "resolve", _FILE + r"/resolve/(?P<revision>[^/]+)/(?P<path>.+)$"),
]


def _handler(hub: LoopbackHub) -> type[BaseHTTPRequestHandler]:
    class Handler(_Handler):
        pass

    Handler.hub = hub
    return Handler


class _Handler(BaseHTTPRequestHandler):
    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_DELETE = do_GET

    def _serve(self) -> None:
        address = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        method = "GET" if self.command == "HEAD" else self.command
        kind, match = next(
            ((kind, m) for m_, kind, pattern in ROUTES if m_ == method and (m := re.match(pattern, address.path))),
            ("unknown", None),
        )
        self.kind, self.consumed, self.status = kind, False, 0
        try:
            fault = self.hub.fault(kind)
            if fault is not None:
                raise _Refused(fault.status, None, "The server failed, as it was told to.")
            if match is None:
                raise _Refused(404, None, f"There is no endpoint {method} {address.path}")
            arguments = {name: unquote(value) for name, value in match.groupdict().items() if value is not None}
            getattr(self, f"_{kind}")(**arguments)
        except _Refused as refused:
            self._answer(refused.body, refused.status, refused.headers)
        self.hub.requests.append(Request(kind, self.command, address.path, self.status))

    # ---- reading and answering

    def _body(self) -> bytes:
        self.consumed = True
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            parts = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _json(self) -> dict:
        return json.loads(self._body() or b"{}")

    def _answer(self, content, status: int = 200, headers: dict[str, str] | None = None) -> None:
        if not self.consumed:
            self._body()
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.status = status
        self.send_response(status)
        names = {name.lower() for name in headers or {}}
        if "content-type" not in names:
            self.send_header("Content-Type", "application/json")
        if "content-length" not in names:
            self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    # ---- who may do what

    def _user(self) -> str | None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ").strip()
        if given and given not in self.hub.users:
            raise _Refused(401, None, "Invalid credentials in Authorization header")
        return self.hub.users.get(given)

    def _repository(self, kind: str, repo: str, write: bool = False) -> Repository:
        user = self._user()
        found = self.hub.repositories.get((kind, repo))
        if found is None or (found.private and user != found.owner):
            raise _Refused(404 if user else 401, "RepoNotFound", "Repository not found")
        if write and user is None:
            raise _Refused(401, None, "Invalid username or password.")
        if write and user != found.owner:
            raise _Refused(403, None, f"You don't have the rights to write to {repo}")
        return found

    def _commit_of(self, repository: Repository, revision: str | None) -> Commit:
        oid = repository.resolve(revision or "main")
        if oid is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return repository.commits[oid]

    # ---- endpoints

    def _whoami(self) -> None:
        user = self._user()
        if user is None:
            raise _Refused(401, None, "Invalid username or password.")
        token = {"displayName": "test", "role": "write"}
        self._answer({"type": "user", "name": user, "fullname": user, "orgs": [], "auth": {"accessToken": token}})

    def _create_repo(self) -> None:
        body, user = self._json(), self._user()
        if user is None:
            raise _Refused(401, None, "Invalid username or password.")
        owner = body.get("organization") or user
        if owner != user:
            raise _Refused(403, None, f"You don't have the rights to create a repository under {owner}")
        kind, repo_id = body.get("type") or "model", f"{owner}/{body['name']}"
        url = f"{self.hub.endpoint}/{PREFIXES[kind]}{repo_id}"
        with self.hub.lock:
            if (kind, repo_id) in self.hub.repositories:
                raise _Refused(409, None, f"You already created this {kind} repo", url=url)
            repository = Repository(kind, repo_id, private=body.get("visibility") == "private")
            files = {".gitattributes": File(GITATTRIBUTES, False)}
            repository.branches["main"] = repository.add_commit(None, files, "initial commit")
            self.hub.repositories[kind, repo_id] = repository
        self._answer({"url": url, "name": repo_id})

    def _validate_yaml(self) -> None:
        body = self._json()
        errors, warnings = metadata_findings(body["content"])
        answer = {"errors": [{"message": e} for e in errors], "warnings": [{"message": w} for w in warnings]}
        self._answer(answer, 400 if errors else 200)

    def _info(self, kind: str, repo: str, revision: str | None = None) -> None:
        repository = self._repository(kind, repo)
        commit = self._commit_of(repository, revision)
        siblings = [{"rfilename": path} for path in sorted(commit.files)]
        if self.query.get("blobs"):
            siblings = [
                {"rfilename": path, "size": len(file.content), "blobId": file.git_oid}
                | ({"lfs": _large_info(file)} if file.is_large else {})
                for path, file in sorted(commit.files.items())
            ]
        card = commit.files.get("README.md")
        card_data = _front_matter(card.content.decode()) if card else None
        self._answer(
            {
                "_id": repository.id,
                "id": repository.id,
                "author": repository.owner,
                "sha": commit.oid,
                "private": repository.private,
                "gated": False,
                "disabled": False,
                "lastModified": _date(commit.date),
                "createdAt": _date(repository.history(commit.oid)[-1].date),
                "tags": list((card_data or {}).get("tags") or []),
                "cardData": card_data,
                "downloads": 0,
                "likes": 0,
                "siblings": siblings,
            }
        )

    def _preupload(self, kind: str, repo: str, revision: str) -> None:
        repository = self._repository(kind, repo, write=True)
        commit = self._commit_of(repository, revision)
        answers = []
        for item in self._json()["files"]:
            is_large = _is_large(item["path"], item["size"], base64.b64decode(item["sample"]))
            known = commit.files.get(item["path"])
            answers.append(
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if is_large else "regular",
                    "shouldIgnore": False,
                    **({"oid": known.etag} if known else {}),
                }
            )
        self._answer({"files": answers})

    def _commit(self, kind: str, repo: str, revision: str) -> None:
        repository = self._repository(kind, repo, write=True)
        lines = [json.loads(line) for line in self._body().splitlines() if line.strip()]
        header, operations = lines[0]["value"], lines[1:]
        with self.hub.lock:
            head = self._commit_of(repository, revision)
            parent = header.get("parentCommit")
            if parent is not None and parent != head.oid:
                raise _Refused(412, None, "A commit has happened since. Please refresh and try again.")
            if revision not in repository.branches and not (
                revision in repository.pull_requests or self.query.get("create_pr")
            ):
                raise _Refused(400, None, f"{revision} is no branch")
            files = self._changed(repository, dict(head.files), operations)
            oid = repository.add_commit(
                head.oid, files, header["summary"], header.get("description", ""), self._user() or ""
            )
            answer = {"success": True, "commitOid": oid, "hookOutput": ""}
            url = f"{self.hub.endpoint}/{PREFIXES[kind]}{repo}"
            if self.query.get("create_pr"):
                number = len(repository.pull_requests) + 1
                repository.pull_requests[f"refs/pr/{number}"] = oid
                answer["pullRequestUrl"] = f"{url}/discussions/{number}"
            elif revision in repository.pull_requests:
                repository.pull_requests[revision] = oid
            else:
                repository.branches[revision] = oid
        self._answer({**answer, "commitUrl": f"{url}/commit/{oid}"})

    def _changed(self, repository: Repository, files: dict[str, File], operations: list[dict]) -> dict[str, File]:
        for operation in operations:
            value = operation["value"]
            path = value["path"]
            if operation["key"] == "file":
                files[path] = File(base64.b64decode(value["content"]), False)
            elif operation["key"] == "lfsFile":
                if value["oid"] not in repository.large:
                    raise _Refused(400, None, f"LFS pointer pointed to a file that does not exist: {path}")
                files[path] = File(repository.large[value["oid"]], True)
            elif operation["key"] == "deletedFile":
                if path not in files:
                    raise _Refused(404, "EntryNotFound", f"A file with this name doesn't exist: {path}")
                del files[path]
            else:
                raise _Refused(400, None, f"Unknown operation {operation['key']}")
        if "README.md" in files:
            errors, _ = metadata_findings(files["README.md"].content.decode())
            if errors:
                raise _Refused(400, None, f"Invalid metadata in README.md: {'; '.join(errors)}")
        return files

    def _paths_info(self, kind: str, repo: str, revision: str) -> None:
        commit = self._commit_of(self._repository(kind, repo), revision)
        wanted = parse_qs(self._body().decode()).get("paths", [])
        entries = []
        for path in wanted:
            path = path.rstrip("/")
            if path in commit.files:
                entries.append(_entry(path, commit.files[path], commit))
            elif any(name.startswith(path + "/") for name in commit.files):
                entries.append(_folder(path))
        self._answer(entries)

    def _tree(self, kind: str, repo: str, revision: str, path: str = "") -> None:
        commit = self._commit_of(self._repository(kind, repo), revision)
        start = f"{path.rstrip('/')}/" if path else ""
        inside = sorted(name for name in commit.files if name.startswith(start))
        if start and not inside:
            raise _Refused(404, "EntryNotFound", f"{path} does not exist on {revision}")
        folders = {parent for name in inside for parent in _parents(name) if parent.startswith(start)}
        if self.query.get("recursive", "").lower() != "true":
            inside = [name for name in inside if "/" not in name[len(start) :]]
            folders = {name for name in folders if "/" not in name[len(start) :]}
        files = [_entry(name, commit.files[name], commit) for name in inside]
        self._answer([_folder(name) for name in sorted(folders)] + files)

    def _refs(self, kind: str, repo: str) -> None:
        repository = self._repository(kind, repo)

        def listed(names: dict[str, str], start: str) -> list[dict]:
            return [{"name": name, "ref": start + name, "targetCommit": oid} for name, oid in names.items()]

        self._answer(
            {
                "branches": listed(repository.branches, "refs/heads/"),
                "tags": listed(repository.tags, "refs/tags/"),
                "converts": [],
                "pullRequests": listed(repository.pull_requests, ""),
            }
        )

    def _create_branch(self, kind: str, repo: str, name: str) -> None:
        repository, body = self._repository(kind, repo, write=True), self._json()
        with self.hub.lock:
            if name in repository.branches:
                raise _Refused(409, None, "Reference already exists")
            repository.branches[name] = self._commit_of(repository, body.get("startingPoint")).oid
        self._answer({})

    def _create_tag(self, kind: str, repo: str, revision: str) -> None:
        repository, body = self._repository(kind, repo, write=True), self._json()
        with self.hub.lock:
            if body["tag"] in repository.tags:
                raise _Refused(409, None, "Tag reference exists already")
            repository.tags[body["tag"]] = self._commit_of(repository, revision).oid
        self._answer({})

    def _lfs_batch(self, repo: str, prefix: str = "") -> None:
        repository = self._repository(_kind(prefix), repo, write=True)
        url = f"{self.hub.endpoint}/{prefix}{repo}/lfs"
        objects = []
        for item in self._json()["objects"]:
            action = {"upload": {"href": f"{url}/{item['oid']}"}, "verify": {"href": f"{url}/verify"}}
            known = item["oid"] in repository.large
            objects.append({"oid": item["oid"], "size": item["size"], **({} if known else {"actions": action})})
        self._answer({"transfer": "basic", "objects": objects})

    def _lfs_put(self, repo: str, oid: str, prefix: str = "") -> None:
        # As with the real storage the address itself is the permission, without a token.
        repository = self.hub.repositories[_kind(prefix), repo]
        content = self._body()
        if hashlib.sha256(content).hexdigest() != oid:
            raise _Refused(400, None, "The content has another sha256 than was announced.")
        repository.large[oid] = content
        self._answer(b"")

    def _lfs_verify(self, repo: str, prefix: str = "") -> None:
        repository, body = self._repository(_kind(prefix), repo, write=True), self._json()
        if len(repository.large.get(body["oid"], b"")) != body["size"]:
            raise _Refused(400, None, "The file did not arrive.")
        self._answer({})

    def _resolve(self, repo: str, revision: str, path: str, prefix: str = "") -> None:
        repository = self._repository(_kind(prefix), repo)
        commit = self._commit_of(repository, revision)
        if path not in commit.files:
            raise _Refused(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit.oid})
        file = commit.files[path]
        headers = {
            "X-Repo-Commit": commit.oid,
            "ETag": f'"{file.git_oid}"',
            "Content-Type": "application/octet-stream",
        }
        if file.is_large:
            headers |= {"X-Linked-Etag": f'"{file.sha256}"', "X-Linked-Size": str(len(file.content))}
        self._answer(file.content, headers=headers)


def _kind(prefix: str) -> str:
    return next(kind for kind, start in PREFIXES.items() if start == prefix)


def _is_large(path: str, size: int, sample: bytes) -> bool:
    return size > LARGE or b"\0" in sample[:512] or any(fnmatch(path.split("/")[-1], name) for name in LARGE_NAMES)


def _date(date: datetime) -> str:
    return date.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _parents(path: str) -> list[str]:
    parts = path.split("/")[:-1]
    return ["/".join(parts[: number + 1]) for number in range(len(parts))]


def _large_info(file: File) -> dict:
    pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{file.sha256}\nsize {len(file.content)}\n"
    return {"oid": file.sha256, "sha256": file.sha256, "size": len(file.content), "pointerSize": len(pointer)}


def _entry(path: str, file: File, commit: Commit) -> dict:
    return {
        "type": "file",
        "path": path,
        "size": len(file.content),
        "oid": file.git_oid,
        **({"lfs": _large_info(file)} if file.is_large else {}),
        "lastCommit": {"id": commit.oid, "title": commit.title, "date": _date(commit.date)},
    }


def _folder(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def _front_matter(content: str) -> dict | None:
    match = re.match(r"\s*---[ \t]*\r?\n(.*?)\r?\n---", content, re.DOTALL)
    return None if match is None else yaml.safe_load(match[1])


def metadata_findings(content: str) -> tuple[list[str], list[str]]:
    """Errors and warnings of a README's metadata, by those of the Hub's rules that are documented."""
    try:
        data = _front_matter(content)
    except yaml.YAMLError as error:
        return [f"bad YAML: {error}"], []
    if data is None:
        return [], ["empty or missing yaml metadata in repo card"]
    if not isinstance(data, dict):
        return ["the metadata must be a mapping"], []
    errors = []
    for name in ("base_model", "datasets"):
        values = data.get(name) or []
        for value in values if isinstance(values, list) else [values]:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(value)):
                errors.append(f'"{name}" with value "{value}" is not valid. Use an id from the Hub.')
    if data.get("license") == "other" and not data.get("license_name"):
        errors.append('"license_name" is required when "license" is "other"')
    for result in [result for model in data.get("model-index") or [] for result in model["results"]]:
        if not result["task"].get("type") or not {"type", "name"} <= set(result["dataset"]):
            errors.append("\"model-index\" needs the task's type, and the dataset's type and name")
        if any(not {"type", "value"} <= set(metric) for metric in result["metrics"]):
            errors.append('"model-index" needs each metric\'s type and value')
    return errors, []
