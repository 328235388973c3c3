"""The answers of the Hub that tests run: the HTTP API of models, as huggingface_hub calls it."""

import base64
import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

REPO = r"/api/models/(?P<repo_id>[^/]+/[^/]+)"
ROUTES = (
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate"),
    ("POST", r"/api/repos/create", "create"),
    ("GET", rf"{REPO}(?:/revision/(?P<revision>[^/]+))?", "info"),
    ("GET", rf"{REPO}/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("GET", rf"{REPO}/refs", "refs"),
    ("POST", rf"{REPO}/branch/(?P<name>[^/]+)", "branch"),
    ("POST", rf"{REPO}/tag/(?P<revision>[^/]+)", "tag"),
    ("POST", rf"{REPO}/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", rf"{REPO}/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "batch"),
    ("PUT", r"/objects/(?P<oid>\w+)", "put"),
    ("POST", r"/objects/(?P<oid>\w+)/verify", "verify"),
    ("GET", r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
)


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status, message, code=None):
        self.status, self.message, self.code = status, message, code


def _oid(content):
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(path):
    return path.endswith(".safetensors")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        address = urlsplit(self.path)
        self.query = parse_qs(address.query)
        self.hub.requests.append((self.command, self.path))
        fault = self.hub.fault(self.command, self.path)
        if fault is not None and fault.status is None:
            self.rfile.read(min(int(self.headers.get("Content-Length") or 0), 100))
            self.close_connection = True
            return
        body = self.body()
        try:
            if fault is not None:
                raise RefusedError(fault.status, fault.message)
            method = "GET" if self.command == "HEAD" else self.command
            for verb, pattern, name in ROUTES:
                found = re.fullmatch(pattern, address.path)
                if verb == method and found:
                    values = {
                        key: value and unquote(value) for key, value in found.groupdict().items()
                    }
                    with self.hub.lock:
                        answer = getattr(self, name)(body, **values)
                    break
            else:
                raise RefusedError(404, f"no such address: {address.path}")
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message}
            if refused.code:
                headers["X-Error-Code"] = refused.code
            self.reply(refused.status, json.dumps({"error": refused.message}).encode(), headers)
            return
        if not isinstance(answer, tuple):
            answer = (200, answer)
        status, content, *headers = answer
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), [{"Content-Type": "application/json"}]
        self.reply(status, content, *headers)

    do_POST = do_PUT = do_HEAD = do_GET  # noqa: N815 - as http.server calls them

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def reply(self, status, content, headers=()):
        self.send_response(status)
        for key, value in dict(headers).items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    # Who asks, and what for.

    def user(self):
        """The user of the token and what it may do; nobody without one."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if token and token not in self.hub.tokens:
            raise RefusedError(401, "Invalid credentials in Authorization header")
        return self.hub.tokens.get(token, (None, None))

    def writer(self, repo_id=None):
        user, right = self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        owner = repo_id.split("/")[0] if repo_id else user
        if right != "write" or owner != user:
            raise RefusedError(403, f"You don't have the rights to write to {owner}")
        return user

    def repo(self, repo_id):
        user, _ = self.user()
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and repo_id.split("/")[0] != user):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def revision_of(self, repo, revision):
        oid = repo.find(revision)
        if oid is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid

    # The answers.

    def whoami(self, _):
        user, right = self.user()
        if user is None:
            raise RefusedError(401, "Invalid username or password.")
        token = {"accessToken": {"role": right, "displayName": "test"}}
        return {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": token}

    def validate(self, body):
        content = json.loads(body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        try:
            data = yaml.safe_load(found[1]) if found else None
        except yaml.YAMLError as error:
            return 400, {"errors": [{"message": str(error)}], "warnings": []}
        warnings = [] if data else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def create(self, body):
        wanted = json.loads(body)
        user, _ = self.user()
        repo_id = f"{wanted.get('organization') or user}/{wanted['name']}"
        self.writer(repo_id)
        answer = {"url": f"{self.hub.url}/{repo_id}", "name": repo_id, "id": repo_id}
        if repo_id in self.hub.repos:
            return 409, {**answer, "error": "You already created this model repo"}
        repo = self.hub.repos[repo_id] = self.new_repo(wanted.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return answer

    def info(self, _, repo_id, revision):
        repo = self.repo(repo_id)
        oid = self.revision_of(repo, revision or "main")
        names = [{"rfilename": name} for name in sorted(repo.commits[oid])]
        return {
            "_id": _oid(repo_id.encode())[:24],
            "id": repo_id,
            "modelId": repo_id,
            "sha": oid,
            "private": repo.private,
            "gated": False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": names,
            "library_name": "transformers",
        }

    def tree(self, _, repo_id, revision, path):
        repo = self.repo(repo_id)
        files = repo.commits[self.revision_of(repo, revision)]
        inside = {n: c for n, c in files.items() if not path or n.startswith(f"{path}/")}
        if path and not inside:
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound")
        return [
            {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
            | ({"lfs": self.pointer(content)} if _is_large(name) else {})
            for name, content in sorted(inside.items())
        ]

    def pointer(self, content):
        digest = hashlib.sha256(content).hexdigest()
        return {"oid": digest, "size": len(content), "pointerSize": 130}

    def refs(self, _, repo_id):
        repo = self.repo(repo_id)
        branches = [
            {"name": name, "ref": f"refs/heads/{name}", "targetCommit": oid}
            for name, oid in repo.refs.items()
            if not name.startswith("refs/")
        ]
        tags = [
            {"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid}
            for name, oid in repo.tags.items()
        ]
        return {"branches": branches, "tags": tags, "converts": []}

    def branch(self, body, repo_id, name):
        repo = self.repo(repo_id)
        self.writer(repo_id)
        if name in repo.refs:
            raise RefusedError(409, f"Reference {name} already exists")
        start = (json.loads(body or b"{}") or {}).get("startingPoint", "main")
        repo.refs[name] = self.revision_of(repo, start)
        return {}

    def tag(self, body, repo_id, revision):
        repo = self.repo(repo_id)
        self.writer(repo_id)
        repo.tags[json.loads(body)["tag"]] = self.revision_of(repo, revision)
        return {}

    def pushed_to(self, repo_id):
        """The repository, if the user may push to it or, asking for that, open a pull request."""
        repo = self.repo(repo_id)
        opens = self.query.get("create_pr") == ["1"]
        self.writer(None if opens else repo_id)
        return repo, opens

    def preupload(self, body, repo_id, revision):
        repo, _ = self.pushed_to(repo_id)
        files = repo.commits[self.revision_of(repo, revision)]

        def of(name):
            large, content = _is_large(name), files.get(name)
            digest = hashlib.sha256(content).hexdigest() if large and content else None
            oid = digest if large or content is None else _oid(content)
            mode = "lfs" if large else "regular"
            return {"path": name, "uploadMode": mode, "shouldIgnore": False, "oid": oid}

        return {"files": [of(file["path"]) for file in json.loads(body)["files"]]}

    def batch(self, body, repo_id):
        self.repo(repo_id)
        self.writer()
        objects = []
        for entry in json.loads(body)["objects"]:
            place = f"{self.hub.url}/objects/{entry['oid']}"
            if entry["oid"] not in self.hub.objects:
                entry["actions"] = {
                    "upload": {"href": place, "header": {}},
                    "verify": {"href": f"{place}/verify", "header": {}},
                }
            objects.append(entry)
        return {"transfer": "basic", "objects": objects}

    def put(self, body, oid):
        if hashlib.sha256(body).hexdigest() != oid:
            raise RefusedError(400, "the content is not what was announced")
        self.hub.objects[oid] = body
        return b""

    def verify(self, body, oid):
        if len(self.hub.objects.get(oid, b"")) != json.loads(body)["size"]:
            raise RefusedError(400, "the object is not whole")
        return {}

    def commit(self, body, repo_id, revision):
        repo, opens = self.pushed_to(repo_id)
        files = dict(repo.commits[self.revision_of(repo, revision)])
        header, *changes = map(json.loads, body.splitlines())
        parent = header["value"].get("parentCommit")
        if parent is not None and parent != repo.find(revision):
            raise RefusedError(412, "A commit has happened since. Please refresh and try again.")
        for change in changes:
            value = change["value"]
            if change["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif change["key"] == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise RefusedError(400, f"the object of {value['path']} was not uploaded")
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif files.pop(value["path"], None) is None:
                raise RefusedError(404, "A file with this name doesn't exist", "EntryNotFound")
        repo.pull_requests += opens
        ref = f"refs/pr/{repo.pull_requests}" if opens else revision
        oid = repo.commit(ref, files, header["value"]["summary"])
        answer = {"commitOid": oid, "commitUrl": f"{self.hub.url}/{repo_id}/commit/{oid}"}
        if opens:
            answer["pullRequestUrl"] = f"{self.hub.url}/{repo_id}/discussions/{repo.pull_requests}"
        return answer

    def resolve(self, _, repo_id, revision, path):
        repo = self.repo(repo_id)
        oid = self.revision_of(repo, revision)
        content = repo.commits[oid].get(path)
        if content is None:
            message = json.dumps({"error": "Entry not found"}).encode()
            headers = {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"}
            return 404, message, {**headers, "X-Repo-Commit": oid}
        headers = {"X-Repo-Commit": oid, "ETag": f'"{_oid(content)}"', "Accept-Ranges": "bytes"}
        if _is_large(path):
            headers["X-Linked-ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
            headers["X-Linked-Size"] = str(len(content))
        return 200, content, headers
