"""A hub of models on this machine: what huggingface_hub asks of the real one, as far as uploads and
downloads of models go. Large files go by Git LFS's protocol.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = 500  # bytes from which a file goes by LFS
TOKEN = "hf_stand_in"


@dataclass
class Repository:
    """branches: of each, the files by name. commits: the message of each commit."""

    private: bool
    branches: dict[str, dict[str, bytes]] = field(default_factory=lambda: {"main": {}})
    commits: list[str] = field(default_factory=list)

    def id_of(self, branch: str) -> str:
        """Of the newest commit of a branch."""
        return sha(f"{branch}, {len(self.commits)}".encode())

    def files(self, revision: str) -> dict[str, bytes]:
        """Those of a branch, or of its newest commit."""
        ids = {self.id_of(branch): files for branch, files in self.branches.items()}
        return (self.branches | ids)[revision]


@dataclass
class Hub:
    """account: what whoami answers. refuse: {regex of "METHOD path": status}. objects: of LFS."""

    account: dict[str, Any]
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    refuse: dict[str, int] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


def sha(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        pass

    def answer(self, value: Any = None, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Length", headers.pop("length", str(len(body))))
        for name, header in headers.items():
            self.send_header(name.replace("_", "-"), header)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def handle_one(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        asked = f"{self.command} {path}"
        self.hub.asked.append(asked)
        status = [s for pattern, s in self.hub.refuse.items() if re.match(pattern, asked)]
        if not status and self.headers.get("authorization") != f"Bearer {TOKEN}":
            status = [401] if not path.startswith("/lfs/") else []
        if status:
            self.answer({"error": "refused by the stand-in"}, status[0])
            return
        for pattern, method in ROUTES.items():
            if found := re.fullmatch(pattern, asked):
                try:
                    method(self, *found.groups())
                except KeyError:
                    code = {"X_Error_Code": "RepoNotFound"}
                    self.answer({"error": "not found"}, 404, **code)
                return
        self.answer({"error": f"no route {asked}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = handle_one

    def whoami(self) -> None:
        self.answer(self.hub.account)

    def create(self) -> None:
        asked = json.loads(self.body)
        owner = asked.get("organization") or self.hub.account["name"]
        name = f"{owner}/{asked['name']}"
        known = name in self.hub.repositories
        if not known:
            self.hub.repositories[name] = Repository(asked.get("visibility") == "private")
        self.answer({"url": f"{self.hub.url}/{name}"}, 409 if known else 200)

    def info(self, name: str, revision: str = "main") -> None:
        repository = self.hub.repositories[name]
        files = repository.files(revision)
        found = {"id": name, "private": repository.private, "sha": repository.id_of(revision)}
        self.answer(found | {"siblings": [{"rfilename": each} for each in files]})

    def tree(self, name: str, revision: str) -> None:
        files = self.hub.repositories[name].files(revision)
        self.answer(
            [
                {"type": "file", "path": each, "oid": sha(content), "size": len(content)}
                for each, content in files.items()
            ]
        )

    def branch(self, name: str, branch: str) -> None:
        branches = self.hub.repositories[name].branches
        known = branch in branches
        branches.setdefault(branch, dict(branches["main"]))
        self.answer({}, 409 if known else 200)

    def preupload(self, name: str, revision: str) -> None:
        assert revision in self.hub.repositories[name].branches
        files = [
            {
                "path": each["path"],
                "uploadMode": "lfs" if each["size"] > LARGE else "regular",
                "shouldIgnore": False,
            }
            for each in json.loads(self.body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, name: str) -> None:
        objects = []
        for each in json.loads(self.body)["objects"]:
            if each["oid"] not in self.hub.objects:
                href = f"{self.hub.url}/lfs/{each['oid']}"
                each["actions"] = {"upload": {"href": href}}
            objects.append(each)
        self.answer({"transfer": "basic", "objects": objects})

    def put(self, oid: str) -> None:
        assert hashlib.sha256(self.body).hexdigest() == oid
        self.hub.objects[oid] = self.body
        self.answer({})

    def commit(self, name: str, revision: str) -> None:
        repository = self.hub.repositories[name]
        files = repository.branches[revision]
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                repository.commits.append(value["summary"])
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            else:
                assert line["key"] == "deletedFile"
                del files[value["path"]]
        made = repository.id_of(revision)
        url = f"{self.hub.url}/{name}/commit/{made}"
        self.answer({"success": True, "commitOid": made, "commitUrl": url})

    def resolve(self, name: str, revision: str, file: str) -> None:
        content = self.hub.repositories[name].files(revision)[file]
        tag = {"ETag": f'"{sha(content)}"', "X_Repo_Commit": revision}
        self.answer(content, length=str(len(content)), **tag)


MODEL = r"([\w.-]+/[\w.-]+)"
ROUTES = {
    "GET /api/whoami-v2": Handler.whoami,
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": lambda handler: handler.answer({"errors": [], "warnings": []}),
    f"GET /api/models/{MODEL}": Handler.info,
    f"GET /api/models/{MODEL}/revision/(.+)": Handler.info,
    f"GET /api/models/{MODEL}/tree/([^/]+)": Handler.tree,
    f"POST /api/models/{MODEL}/branch/(.+)": Handler.branch,
    f"POST /api/models/{MODEL}/preupload/(.+)": Handler.preupload,
    f"POST /api/models/{MODEL}/commit/(.+)": Handler.commit,
    rf"POST /{MODEL}\.git/info/lfs/objects/batch": Handler.batch,
    "PUT /lfs/(.+)": Handler.put,
    f"(?:GET|HEAD) /{MODEL}/resolve/([^/]+)/(.+)": Handler.resolve,
}


@contextlib.contextmanager
def hub(account: dict[str, Any]) -> Iterator[Hub]:
    """Serves an empty hub on a free port of this machine."""
    state = Hub(account)
    made = type("Handler", (Handler,), {"hub": state})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), made) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield state
        server.shutdown()
