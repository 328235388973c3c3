"""A Hub in memory, for tests: the HTTP API as huggingface_hub and others speak it, on 127.0.0.1.

It serves what is needed to create repositories, push commits (regular and LFS files), open pull
requests and download, with tokens, private repositories and failures on demand. Data sets are
repositories whose id begins with `datasets/`.
"""

import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import ThreadingHTTPServer

from tests.hub_api import Handler


@dataclass
class Repo:
    """One repository: commits as whole trees, and the branches, tags and pull requests on them."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    pull_requests: int = 0

    def commit(self, ref, files, message):
        """Puts a new tree on a branch, and returns its name."""
        seed = json.dumps([ref, message, len(self.messages), sorted(files)])
        oid = hashlib.sha1(seed.encode()).hexdigest()
        self.commits[oid] = files
        self.refs[ref] = oid
        self.messages.append(message)
        return oid

    def find(self, revision):
        """The commit of a branch, tag, pull request or commit; nothing if there is none."""
        if revision in self.commits:
            return revision
        return self.refs.get(revision) or self.tags.get(revision)

    def files(self, revision="main"):
        return self.commits[self.find(revision)]


@dataclass
class Fault:
    """What goes wrong with the next requests to addresses that match."""

    method: str
    pattern: str
    status: int | None  # nothing: the connection is dropped in the middle of the body
    times: int
    message: str = "Internal error, as ordered"
    delay: float = 0.0  # seconds before the answer; with the status 200 nothing else goes wrong


class HubServer:
    """A context manager: the server runs in a thread until the end of the block.

    `tokens` maps a token to its user, or to `(user, "read")` where it may not write.
    """

    def __init__(self, tokens):
        self.tokens = {
            token: user if isinstance(user, tuple) else (user, "write")
            for token, user in tokens.items()
        }
        self.repos: dict[str, Repo] = {}
        self.objects: dict[str, bytes] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.lock = threading.RLock()

    def __enter__(self):
        handler = type("Handler", (Handler,), {"hub": self, "new_repo": Repo})
        self.http = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"
        self.thread = threading.Thread(target=self.http.serve_forever, args=(0.05,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.http.shutdown()
        self.http.server_close()
        self.thread.join()

    def fail(self, method, pattern, status=500, times=1, message=Fault.message):
        """The next so many requests that match are answered with an error."""
        self.faults.append(Fault(method, pattern, status, times, message))

    def drop(self, method, pattern, times=1):
        """The connection of the next so many requests that match ends in the middle."""
        self.faults.append(Fault(method, pattern, None, times))

    def slow(self, method, pattern, seconds, times=1):
        """The next so many requests that match are answered late."""
        self.faults.append(Fault(method, pattern, 200, times, delay=seconds))

    def add(self, repo_id, files, private=False):
        """Adds a repository that somebody pushed earlier, or a commit to its main branch."""
        repo = self.repos.setdefault(repo_id, Repo(private))
        return repo.commit("main", dict(files), f"commit {len(repo.messages)}")

    def sent(self, method, pattern):
        """The addresses of the requests that match, in order."""
        return [path for verb, path in self.requests if verb == method and re.search(pattern, path)]

    def fault(self, method, path):
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.pattern, path):
                    fault.times -= 1
                    return fault
        return None
