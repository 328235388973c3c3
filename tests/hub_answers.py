"""The answers of the Hub that tests run, one method for each address; see `hub_api`."""

import base64
import hashlib
import json
import re
from urllib.parse import parse_qs

import yaml


class RefusedError(Exception):
    """An answer that is an error."""

    def __init__(self, status, message, code=None):
        self.status, self.message, self.code = status, message, code


def _oid(content):
    """The name that git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(path):
    return path.endswith((".safetensors", ".parquet"))


class Answers:
    """What is answered; who asks and with what query is the handler's to say."""

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
        if wanted.get("type") == "dataset":
            repo_id = f"datasets/{repo_id}"
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
            "id": repo_id.removeprefix("datasets/"),
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
        if self.query.get("recursive", [""])[0].lower() in ("true", "1"):
            return [self.entry(name, content) for name, content in sorted(inside.items())]
        start = len(path) + 1 if path else 0
        folders = {name[: name.index("/", start)] for name in inside if "/" in name[start:]}
        return [
            *({"type": "directory", "path": name, "oid": _oid(b"")} for name in sorted(folders)),
            *(self.entry(n, c) for n, c in sorted(inside.items()) if "/" not in n[start:]),
        ]

    def paths(self, body, repo_id, revision):
        repo = self.repo(repo_id)
        files = repo.commits[self.revision_of(repo, revision)]
        asked = json.loads(body)["paths"] if body[:1] == b"{" else parse_qs(body.decode())["paths"]
        return [self.entry(name, files[name]) for name in asked if name in files]

    def entry(self, name, content):
        large = {"lfs": self.pointer(content)} if _is_large(name) else {}
        return {"type": "file", "path": name, "size": len(content), "oid": _oid(content), **large}

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
