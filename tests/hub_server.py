"""A small Hub over HTTP for the unmodified huggingface_hub client: commits, large files, faults, a log.

Repositories live in memory, each a chain of commits. Weight files are large (LFS): they are sent to and from
another host name, with signed URLs, as on the real Hub; or by the Xet client: ``HubServer(xet=FOLDER)``, in
the process of the client (xet_store.py).

    with HubServer() as hub:
        hub.add("org/model", {"config.json": b"{}"})
        hub.fail(r"/resolve/.*", kind="cut")
        subprocess.run(…, env=os.environ | hub.environment(home))

The fixture ``local_hub`` of conftest.py lets the test's own process use one: hub.reach(monkeypatch, home).
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import threading
import time
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, quote, unquote, urlsplit

from tests.servers import Quiet
from tests.xet_store import XetStore

GOOD = "hf_goodTokenOfTheTests0001"
READ = "hf_readTokenOfTheTests0002"
ROLES = {GOOD: "write", READ: "read"}
LARGE = {".safetensors", ".bin", ".pt", ".gguf", ".onnx", ".data", ".parquet", ".mp4"}
PAGE = 50
KINDS = "(models|datasets|spaces)"
ERRORS = {"RepoNotFound": 404, "RevisionNotFound": 404, "EntryNotFound": 404, "GatedRepo": 403}


def sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def git_id(body: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def is_large(path: str, body: bytes) -> bool:
    return bool(body) and PurePosixPath(path).suffix in LARGE


def pointer(body: bytes) -> bytes:
    head = "version https://git-lfs.github.com/spec/v1"
    return f"{head}\noid sha256:{sha256(body)}\nsize {len(body)}\n".encode()


@dataclass
class Fault:
    """What requests meet: a status, or an answer spoilt in a certain way.

    ``kind``: status | cut (half the body) | flip (one bit) | reset | delay | length (too long) |
    whole (200 to a range) | spoil (one bit of what is sent) | applied (done, but answered with ``status``).
    """

    path: str
    kind: str = "status"
    status: int = 500
    method: str = ""
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.2


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    range: str
    role: str
    size: int  # of what was sent
    status: int


@dataclass(frozen=True)
class Reply:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


class Refused(Exception):
    """Ends a request with the reply that it holds."""


@dataclass
class Repository:
    """``commits``: (id, files, message), the oldest first; ``refs``: branch or tag → commit id."""

    private: bool = False
    gated: bool = False
    card: dict | None = None
    commits: list[tuple[str, dict[str, bytes], str]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], message: str, branch: str = "main") -> str:
        tree = json.dumps([[name, git_id(body)] for name, body in sorted(files.items())])
        oid = hashlib.sha1(f"{len(self.commits)} {message} {tree}".encode()).hexdigest()
        self.commits.append((oid, files, message))
        self.refs[branch] = oid
        return oid

    def at(self, revision: str) -> tuple[str, dict[str, bytes]]:
        """Commit id and files of a branch, tag or commit."""
        oid = self.refs.get(unquote(revision), unquote(revision))
        for known, files, _ in self.commits:
            if known == oid:
                return known, files
        raise Refused(error("RevisionNotFound"))

    @property
    def files(self) -> dict[str, bytes]:
        return self.at("main")[1]


class HubServer:
    """``repositories``: (type, id) → Repository, type being models, datasets or spaces."""

    def __init__(self, xet: Path | None = None) -> None:
        self.xet = XetStore(xet) if xet else None
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.moved: dict[tuple[str, str], str] = {}  # former id → id
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.log: list[Request] = []
        self.lock = threading.RLock()
        self.owner = "someone"
        server = self

        class Handler(_Handler):
            hub = server

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.02})

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def add(
        self, repo_id: str, files: dict[str, bytes] | Path, kind: str = "models", **options
    ) -> Repository:
        """A repository with one commit; ``files`` may be a folder."""
        if isinstance(files, Path):
            found = sorted(path for path in files.rglob("*") if path.is_file())
            files = {path.relative_to(files).as_posix(): path.read_bytes() for path in found}
        repository = self.repositories[kind, repo_id] = Repository(**options)
        repository.commit(dict(files), "first")
        return repository

    def fail(self, path: str, **fault) -> None:
        self.faults.append(Fault(path, **fault))

    def environment(self, home: Path, token: str = "") -> dict[str, str]:
        """Variables under which a child process sees this Hub and no other."""
        return {
            "HF_ENDPOINT": self.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "0" if self.xet else "1", "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TRANSFORMERS_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "no_proxy": "127.0.0.1,localhost",
        }  # fmt: skip

    def reach(self, monkeypatch, home: Path, token: str = "") -> None:
        """Let this process use this Hub and no other; the client has read its variables long ago."""
        for name, value in self.environment(home, token).items():
            monkeypatch.setenv(name, value)
        for name in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        known = {"ENDPOINT": self.endpoint,
                 "HUGGINGFACE_CO_URL_TEMPLATE": self.endpoint + "/{repo_id}/resolve/{revision}/{filename}",
                 "HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": self.xet is None, "HF_HOME": str(home),
                 "HF_HUB_CACHE": str(home / "hub"), "HF_TOKEN_PATH": str(home / "token"),
                 "HF_STORED_TOKENS_PATH": str(home / "stored_tokens")}  # fmt: skip
        for name, value in known.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)

    def writes(self) -> list[Request]:
        """Requests that upload or change something."""
        harmless = re.compile(r"/preupload/|/paths-info/|/validate-yaml")
        return [r for r in self.log if r.method not in {"GET", "HEAD"} and not harmless.search(r.path)]

    def cdn(self, place: str) -> str:
        return f"http://localhost:{self.port}{place}?signature={len(self.log)}"

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method in {"", method} and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None

    def answer(self, method: str, path: str, query: dict, body: bytes, role: str) -> Reply:
        for verb, pattern, action in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and verb == method.replace("HEAD", "GET"):
                with self.lock:
                    try:
                        return action(self, query, body, role, *match.groups())
                    except Refused as refusal:
                        return refusal.args[0]
        return Reply(404)

    def find(self, kind, repo_id, role, prefix="", suffix="", *, write=False) -> Repository:
        """The repository asked for; one that moved is at the address of its new name."""
        if former := self.moved.get((kind, repo_id)):
            raise Refused(Reply(307, b"", {"Location": f"{prefix}{quote(former)}{suffix}"}))
        repository = self.repositories.get((kind, repo_id))
        if repository is None or (repository.private and role not in {"write", "read"}):
            raise Refused(error("RepoNotFound", 404 if role else 401))
        if write and role != "write":
            raise Refused(Reply(403 if role else 401, b'{"error": "no permission to write"}'))
        return repository

    def whoami(self, query, body, role):
        user = {"type": "user", "name": self.owner, "fullname": "Some One", "orgs": [{"name": "org"}]}
        token = {"type": "access_token", "accessToken": {"displayName": "t", "role": role}}
        return reply({**user, "auth": token}) if role else error("", 401)

    def create(self, query, body, role):
        asked = json.loads(body)
        owner = asked.get("organization") or self.owner
        key = (asked.get("type", "model") + "s", f"{owner}/{asked['name']}")
        if role != "write" or owner not in {self.owner, "org"}:
            return Reply(403 if role else 401, b'{"error": "no permission to create"}')
        known = key in self.repositories
        if not known:
            repository = self.repositories[key] = Repository(private=asked.get("visibility") == "private")
            repository.commit({".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return Reply(409 if known else 200, json.dumps({"url": f"{self.endpoint}/{key[1]}"}).encode())

    def validate(self, query, body, role):
        return reply({"errors": [], "warnings": []})

    def preupload(self, query, body, role, kind, repo_id, revision):
        repository = self.find(kind, repo_id, role, write=True)
        _, present = repository.at(revision)
        files = []
        for file in json.loads(body)["files"]:
            old, large = present.get(file["path"]), PurePosixPath(file["path"]).suffix in LARGE
            oid = None if old is None else sha256(old) if is_large(file["path"], old) else git_id(old)
            mode = "lfs" if large else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return reply({"files": files})

    def batch(self, query, body, role, kind, repo_id):
        self.find(kind or "models", repo_id, role, write=True)
        objects = []
        for entry in json.loads(body)["objects"]:
            upload = {"upload": {"href": self.cdn(f"/lfs/{entry['oid']}")}}
            verify = {"verify": {"href": f"{self.endpoint}/{repo_id}/lfs-verify"}}
            objects.append(entry if entry["oid"] in self.objects else entry | {"actions": upload | verify})
        return reply({"transfer": "basic", "objects": objects})

    def store(self, query, body, role, oid):
        if sha256(body) != oid:
            return Reply(400, b"the checksum is wrong")
        self.objects[oid] = body
        return Reply(200)

    def verify(self, query, body, role, _):
        asked = json.loads(body)
        return Reply(200 if len(self.objects.get(asked["oid"], b"")) == asked["size"] else 404)

    def xet_token(self, query, body, role, kind, repo_id, need):
        self.find(kind, repo_id, role, write=need == "write")
        document, headers = self.xet.sign_in()
        return replace(reply(document), headers=headers)

    def has(self, oid: str, size: int) -> bool:
        """Whether a large file was uploaded; one that came by Xet is read, so that all ways lead to it."""
        if self.xet and oid not in self.objects and (found := self.xet.hashes().get(oid)):
            self.objects[oid] = self.xet.read(found, size)
        return oid in self.objects

    def commit(self, query, body, role, kind, repo_id, revision):
        repository = self.find(kind, repo_id, role, write=True)
        head, files = repository.at(revision)
        files = dict(files)
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in {None, head}:
            return Reply(412, b'{"error": "the head has moved"}')
        for line in lines[1:]:
            value = line["value"]
            match line["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile" if not self.has(value["oid"], value["size"]):
                    return Reply(400, b'{"error": "a large file was not uploaded"}')
                case "lfsFile":
                    files[value["path"]] = self.objects[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        oid = repository.commit(files, lines[0]["value"]["summary"], unquote(revision))
        return reply({"commitUrl": f"{self.endpoint}/{repo_id}/commit/{oid}", "commitOid": oid})

    def search(self, query, body, role, kind):
        author = query.get("author", [""])[0]
        ids = sorted(
            i for k, i in self.repositories if k == kind and i.startswith(f"{author}/" if author else "")
        )
        start, size = int(query.get("cursor", ["0"])[0]), int(query.get("limit", [PAGE])[0])
        size, more = min(size, PAGE), {}
        if start + size < len(ids):
            after = f"{self.endpoint}/api/{kind}?author={author}&cursor={start + size}&limit={size}"
            more = {"Link": f'<{after}>; rel="next"'}
        return replace(reply([{"id": i, "modelId": i} for i in ids[start : start + size]]), headers=more)

    def information(self, query, body, role, kind, repo_id, revision="main"):
        repository = self.find(kind, repo_id, role, f"/api/{kind}/")
        found = repository.at(revision or "main")
        siblings = [
            {"rfilename": e["path"], "size": e["size"], "blobId": e["oid"]}
            | ({"lfs": {**e["lfs"], "sha256": e["lfs"]["oid"]}} if "lfs" in e else {})
            for e in map(described, found[1].items())
        ]
        about = {"id": repo_id, "sha": found[0], "siblings": siblings, "private": repository.private}
        return reply(about | {"cardData": repository.card, "tags": [], "gated": repository.gated})

    def tree(self, query, body, role, kind, repo_id, revision, _, under):
        found = self.find(kind, repo_id, role, f"/api/{kind}/").at(revision)
        start, recursive = unquote(under or ""), query.get("recursive", ["false"])[0].lower() == "true"
        entries = [
            described(i) for i in sorted(found[1].items()) if i[0].startswith(f"{start}/" if start else "")
        ]
        folders = sorted(
            {str(p) for e in entries for p in PurePosixPath(e["path"]).parents if str(p) not in {".", start}}
        )
        entries += [
            {"type": "directory", "path": p, "oid": sha256(p.encode())[:40], "size": 0} for p in folders
        ]
        if not recursive:
            entries = [e for e in entries if str(PurePosixPath(e["path"]).parent) == (start or ".")]
        return reply(entries) if entries or not start else error("EntryNotFound")

    def paths(self, query, body, role, kind, repo_id, revision):
        found = self.find(kind, repo_id, role, f"/api/{kind}/").at(revision)
        text = body.decode()
        wanted = json.loads(text)["paths"] if text.startswith("{") else parse_qs(text)["paths"]
        wanted = [wanted] if isinstance(wanted, str) else wanted
        return reply([described(i) for i in found[1].items() if i[0] in wanted])

    def resolve(self, query, body, role, kind, repo_id, revision, path):
        prefix, suffix = f"/{kind}/" if kind else "/", f"/resolve/{revision}/{path}"
        repository = self.find(kind or "models", repo_id, role, prefix, suffix)
        at, path = repository.at(revision), unquote(path)
        if repository.gated:
            return error("GatedRepo", 403 if role else 401)
        headers = {"X-Repo-Commit": at[0], "Accept-Ranges": "bytes"}
        if path not in at[1]:
            return Reply(
                404, headers=headers | {"X-Error-Code": "EntryNotFound", "X-Error-Message": "no such file"}
            )
        content = at[1][path]
        if not is_large(path, content):
            return Reply(200, content, headers | {"ETag": f'"{git_id(content)}"'})
        self.objects[sha256(content)] = content
        linked = {"X-Linked-Etag": f'"{sha256(content)}"', "X-Linked-Size": str(len(content))}
        if self.xet and (found := self.xet.hashes().get(sha256(content))):
            token = f"{self.endpoint}/api/{kind or 'models'}/{repo_id}/xet-read-token/{revision}"
            linked |= {
                "X-Xet-Hash": found,
                "X-Xet-Refresh-Route": token,
                "Link": f'<{token}>; rel="xet-auth"',
            }
        return Reply(302, b"", headers | linked | {"Location": self.cdn(f"/lfs/{sha256(content)}")})

    def download(self, query, body, role, oid):
        found = self.objects.get(oid)
        return (
            Reply(404) if found is None else Reply(200, found, {"ETag": f'"{oid}"', "Accept-Ranges": "bytes"})
        )


def reply(document: object) -> Reply:
    return Reply(200, json.dumps(document).encode(), {"Content-Type": "application/json"})


def error(code: str, status: int = 0) -> Reply:
    headers = {"X-Error-Code": code, "X-Error-Message": code or "Invalid credentials"}
    return Reply(status or ERRORS[code], b'{"error": "refused"}', headers)


def described(item: tuple[str, bytes]) -> dict:
    """A file as the tree lists it."""
    path, body = item
    entry = {"type": "file", "path": path, "size": len(body), "oid": git_id(body)}
    if not is_large(path, body):
        return entry
    note = pointer(body)
    lfs = {"oid": sha256(body), "size": len(body), "pointerSize": len(note)}
    return entry | {"oid": git_id(note), "lfs": lfs}


ID = r"([\w.-]+/[\w.-]+|[\w.-]+)"
ROUTES = [
    ("GET", "/api/whoami-v2", HubServer.whoami),
    ("POST", "/api/repos/create", HubServer.create),
    ("POST", "/api/validate-yaml", HubServer.validate),
    ("POST", f"/api/{KINDS}/{ID}/preupload/(.+)", HubServer.preupload),
    ("POST", f"/(?:{KINDS}/)?{ID}.git/info/lfs/objects/batch", HubServer.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", HubServer.store),
    ("GET", "/lfs/([0-9a-f]{64})", HubServer.download),
    ("POST", f"/{ID}/lfs-verify", HubServer.verify),
    ("GET", f"/api/{KINDS}/{ID}/xet-(read|write)-token/.+", HubServer.xet_token),
    ("POST", f"/api/{KINDS}/{ID}/commit/(.+)", HubServer.commit),
    ("POST", f"/api/{KINDS}/{ID}/paths-info/(.+)", HubServer.paths),
    ("GET", f"/api/{KINDS}/{ID}/tree/([^/]+)(/(.+))?", HubServer.tree),
    ("GET", f"/api/{KINDS}/{ID}/revision/(.+)", HubServer.information),
    ("GET", f"/api/{KINDS}/{ID}", HubServer.information),
    ("GET", f"/api/{KINDS}", HubServer.search),
    ("GET", f"/(?:(datasets|spaces)/)?{ID}/resolve/([^/]+)/(.+)", HubServer.resolve),
]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer

    def log_message(self, *_):
        pass

    def do_GET(self):
        parts = urlsplit(self.path)
        body = self.received()
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        role = ROLES.get(token, "")
        fault = self.hub.take_fault(self.command, parts.path) or Fault("", kind="")
        if fault.kind == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            self.connection.close()
            answer = Reply(0)
        else:
            time.sleep(fault.seconds if fault.kind == "delay" else 0)
            body = body[:-1] + bytes([body[-1] ^ 1]) if fault.kind == "spoil" and body else body
            refused = fault.kind == "status" or (token and not role)
            if not refused:
                answer = self.hub.answer(self.command, parts.path, parse_qs(parts.query), body, role)
            if refused or fault.kind == "applied":
                status = fault.status if fault.kind else 401
                answer = Reply(status, b'{"error": "fault"}', fault.headers)
        span, asked = self.headers.get("Range", ""), role or ("bad" if token else "")
        self.hub.log.append(Request(self.command, self.path, span, asked, len(body), answer.status))
        if answer.status:
            self.send(answer, fault.kind, span)

    do_HEAD = do_POST = do_PUT = do_GET  # noqa: N815 - as http.server calls them

    def received(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def send(self, answer: Reply, kind: str, span: str) -> None:
        status, body, headers = answer.status, answer.body, dict(answer.headers)
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", span)
        if match and status == 200 and "Accept-Ranges" in headers and kind != "whole":
            size = len(body)
            start = int(match[1]) if match[1] else max(size - int(match[2]), 0)
            stop = min(int(match[2] or size) + 1, size) if match[1] else size
            status, body = (206, body[start:stop]) if start < size else (416, b"")
            place = f"{start}-{stop - 1}" if body else "*"
            headers["Content-Range"] = f"bytes {place}/{size}"
        if kind == "flip" and body:
            body = body[:-1] + bytes([body[-1] ^ 1])
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) + (7 if kind == "length" else 0)))
        self.end_headers()
        spoilt = kind in {"cut", "length"}
        if self.command != "HEAD":
            self.wfile.write(body[: len(body) // 2] if kind == "cut" else body)
        self.close_connection = self.close_connection or spoilt
