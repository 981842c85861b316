"""A Hugging Face hub on this machine, for the real downloads of huggingface_hub: repositories are folders OWNER/NAME/REVISION."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants


class LoopbackHub:
    def __init__(self, root: Path) -> None:
        self.root = root
        self.downloaded: list[str] = []  # paths in their repository
        self.num_requests = 0

    def add(self, hub_id: str, files: Path, *, folder: str = "", revision: str = "main") -> str:
        """Put the files of a folder into a repository; its commit, which follows from all its files."""
        shutil.copytree(files, self.root / hub_id / revision / folder, dirs_exist_ok=True)
        return commit(self.root / hub_id / revision)

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and content of `GET path`."""
        match path.partition("?")[0].strip("/").split("/"):
            case ["api", "models", owner, name, "revision", revision]:
                if not (self.root / owner / name).is_dir():
                    return 404, {"X-Error-Code": "RepoNotFound"}, b""
                if (files := self.files(owner, name, revision)) is None:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b""
                siblings = [{"rfilename": str(file.relative_to(files))} for file in all_files(files)]
                return 200, {}, json.dumps({"id": f"{owner}/{name}", "sha": commit(files), "siblings": siblings}).encode()
            case ["api", "models", owner, name, "tree", revision] if files := self.files(owner, name, revision):
                listed = [
                    {"type": "file", "path": str(file.relative_to(files)), "size": file.stat().st_size, "oid": digest(file)}
                    for file in all_files(files)
                ]
                return 200, {}, json.dumps(listed).encode()
            case [owner, name, "resolve", revision, *parts] if files := self.files(owner, name, revision):
                file = files.joinpath(*parts)
                return 200, {"ETag": f'"{digest(file)}"', "X-Repo-Commit": commit(files)}, file.read_bytes()
        return 404, {}, b""

    def files(self, owner: str, name: str, revision: str) -> Path | None:
        """The files of a branch, a tag or a commit."""
        found = [folder for folder in (self.root / owner / name).iterdir() if revision in (folder.name, commit(folder))]
        return found[0] if found else None


def all_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def digest(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


def commit(folder: Path) -> str:
    return hashlib.sha1(json.dumps([(str(file.relative_to(folder)), digest(file)) for file in all_files(folder)]).encode()).hexdigest()


@contextmanager
def serve(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackHub]:
    """The hub in `root`/hub, which huggingface_hub asks, with an empty cache in `root`/cache."""
    hub = LoopbackHub(root / "hub")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.num_requests += 1
            status, headers, content = hub.answer(self.path)
            if self.command == "GET" and "/resolve/" in self.path and status == 200:
                hub.downloaded.append("/".join(self.path.strip("/").split("/")[4:]))
            self.send_response(status)
            for key, value in (headers | {"Content-Length": str(len(content))}).items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    )
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(root / "cache"))
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
