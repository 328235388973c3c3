"""The HTTP API of the Hub that tests run: which address asks for what, by whom."""

import json
import re
import time
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_answers import Answers, RefusedError

REPO = r"/api/(?P<kind>models|datasets)/(?P<repo_id>[^/]+/[^/]+)"
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
    ("POST", rf"{REPO}/paths-info/(?P<revision>[^/]+)", "paths"),
    (
        "POST",
        r"(?:/(?P<kind>datasets))?/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch",
        "batch",
    ),
    ("PUT", r"/objects/(?P<oid>\w+)", "put"),
    ("POST", r"/objects/(?P<oid>\w+)/verify", "verify"),
    (
        "GET",
        r"(?:/(?P<kind>datasets))?/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)",
        "resolve",
    ),
)


class Handler(Answers, BaseHTTPRequestHandler):
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
            if fault is not None and fault.delay:
                time.sleep(fault.delay)
            elif fault is not None:
                raise RefusedError(fault.status, fault.message)
            method = "GET" if self.command == "HEAD" else self.command
            for verb, pattern, name in ROUTES:
                found = re.fullmatch(pattern, address.path)
                if verb == method and found:
                    values = {
                        key: value and unquote(value) for key, value in found.groupdict().items()
                    }
                    if values.pop("kind", None) == "datasets":
                        values["repo_id"] = f"datasets/{values['repo_id']}"
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
        owner = repo_id.split("/")[-2] if repo_id else user
        if right != "write" or owner != user:
            raise RefusedError(403, f"You don't have the rights to write to {owner}")
        return user

    def repo(self, repo_id):
        user, _ = self.user()
        repo = self.hub.repos.get(repo_id)
        if repo is None or (repo.private and repo_id.split("/")[-2] != user):
            raise RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        return repo

    def revision_of(self, repo, revision):
        oid = repo.find(revision)
        if oid is None:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return oid
