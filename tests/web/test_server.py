"""The running server: who gets in, what it refuses, and what it says when things go wrong."""

from __future__ import annotations

import json
import shutil
import socket
from urllib.parse import quote

import pytest

from hilm.errors import MissingExtra, NotAStore, UsageError
from hilm.store import Store
from hilm.web import server
from hilm.web.access import UPLOAD, add_user
from tests.tiny import bert_like, file_bytes, stored, write_model
from tests.web.conftest import SIZES, ask, call, send, serving

TENSOR = "encoder.layer.0.attention.self.query.weight"


def test_pages_answer_and_say_nothing_of_this_machine(served, house):
    for path in ("/", "/search", "/lineage", "/diff", "/parity", "/jobs", "/model?name=base", "/config"):
        answer = ask(served, path)
        assert answer.status == 200
        for secret in (str(house), "site-packages", "/tmp/", "/home/"):
            assert secret not in answer.body.decode()
    policy = ask(served).headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy


def test_events_show_the_store(served, house):
    (library,) = call(served, "library", "", "largest first")
    assert ">base<" in library
    assert str(house) not in library
    (found,) = call(served, "library", "tune", "name")
    assert ">tuned<" in found
    assert ">base<" not in found
    (relatives,) = call(served, "search", "tuned", "hybrid", 5)
    assert "fine-tune" in relatives
    assert "independent" in relatives
    (tree,) = call(served, "lineage", "base")
    assert "<svg" in tree
    (difference,) = call(served, "diff", "base", "tuned")
    assert TENSOR in difference


@pytest.mark.parametrize(
    "name",
    ["../../etc/passwd", "/etc/passwd", "..", "base/../base", "\0", "<script>alert(1)</script>", "%2e%2e"],
)
def test_names_are_no_paths(served, name, house):
    for path in (f"/film?model={quote(name)}", f"/values?model={quote(name)}&tensor={TENSOR}",
                 f"/picture?model=base&tensor={quote(name)}"):  # fmt: skip
        answer = ask(served, path)
        assert (answer.status, answer.body) == (404, b"there is nothing of that name")
    for text in (*call(served, "search", name, "hybrid", 5), *call(served, "diff", name, "base"),
                 *call(served, "lineage", name)):  # fmt: skip
        assert 'class="notice"' in text
        assert "<script" not in text
    folder = str(house / "late")  # a checkpoint, but nothing that the store knows
    assert 'class="notice"' in call(served, "search", folder, "hybrid", 5)[0]


@pytest.mark.parametrize(
    "path",
    [
        "/../../etc/passwd",
        "/static/../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=../../pyproject.toml",
    ],
)
def test_no_file_of_the_machine_is_served(served, path):
    assert b"root:" not in ask(served, path).body
    assert ask(served, path).status in {400, 403, 404}


def test_films_pictures_and_values(served, house):
    film = ask(served, "/film?model=base", Range="bytes=4-7")
    assert (film.status, film.headers["Content-Type"], film.body) == (206, "video/mp4", b"ftyp")
    assert ask(served, "/film?model=stranger").status == 404
    assert ask(served, f"/picture?model=base&tensor={TENSOR}&side=128").body.startswith(b"\x89PNG")
    assert len(ask(served, f"/values?model=stranger&tensor={TENSOR}").body) == 8 * 32 * 32
    assert ask(served, f"/picture?model=base&tensor={TENSOR}&side=x").status == 422


def test_another_host_name_is_refused(served):
    assert ask(served, Host="evil.example").status == 403


def test_hostile_names_of_models_and_tensors_are_text(tmp_path):
    evil = "<img src=x onerror=alert(1)>${1+1}{{x}}"
    tensors = {f"encoder.{evil}.weight": stored(bert_like(1, **SIZES)[TENSOR])}
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors").write_bytes(file_bytes(tensors))
    store = Store(tmp_path / "store")
    assert not store.index([tmp_path / "m"], jobs=1, name="m")["failed"]
    row = store.catalog.models()[0]
    store.catalog.commit({"models": [row | {"name": evil, "ref_key": bytes(32), "notes": [evil]}]})
    with serving(tmp_path / "store") as address:
        pages = [*call(address, "library", evil, "name"), *call(address, "search", "m", "hybrid", 5),
                 *call(address, "search", evil, "hybrid", 5), *call(address, "lineage", "")]  # fmt: skip
        assert ask(address, f"/picture?model=m&tensor={quote(next(iter(tensors)))}").status == 200
    assert any("&lt;img" in page for page in pages)
    assert not any("<img src=x" in page for page in pages)


def test_without_the_password_there_is_nothing(house, tmp_path):
    add_user(tmp_path / "people", "ada", "secret")
    with serving(house / "store", "--auth-file", str(tmp_path / "people")) as address:
        paths = (
            "/",
            "/config",
            "/gradio_api/info",
            "/search",
            f"/values?model=base&tensor={TENSOR}",
            "/film?model=base",
        )
        assert {ask(address, path).status for path in paths} == {401}
        assert ask(address, "/gradio_api/call/library", data=b'{"data": ["", "name"]}').status == 401
        assert ask(address, user="ada:wrong").status == 401
        assert {ask(address, path, user="ada:secret").status for path in paths} == {200}
        assert ">base<" in call(address, "library", "", "name", user="ada:secret")[0]


def test_a_read_only_server_has_nothing_that_writes(house):
    with serving(house / "store", "--read-only") as address:
        config = json.loads(ask(address, "/config").body)
        named = {event["api_name"] for event in config["dependencies"]}
        assert "search" in named
        assert "add" not in named
        assert "/jobs" not in ask(address).body.decode()
        assert ask(address, "/gradio_api/call/add", data=b'{"data": ["x", "archive"]}').status in {
            404,
            422,
            500,
        }


def test_uploads_are_searched_with_or_refused(served, house):
    _, sent = send(served, "mine.safetensors", (house / "late" / "model.safetensors").read_bytes())
    assert "Relatives of mine" in call(served, "search_file", sent)[0]
    for content in (b"no checkpoint", b"", (1 << 60).to_bytes(8, "little"), b"\x80\x04pickle"):
        _, sent = send(served, "bad.safetensors", content)
        (text,) = call(served, "search_file", sent)
        assert 'class="notice"' in text
        assert "/tmp" not in text
    for size in (UPLOAD + 1, 4 * UPLOAD):
        assert send(served, "huge.safetensors", bytes(size))[0] in {413, "cut"}


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b'{"stages": 3}', b'{"stages": [[1]]}', b"[" * 100_000]
)
def test_reports_that_are_none_are_refused(served, content):
    _, sent = send(served, "report.json", content)
    assert "no parity report" in call(served, "parity_file", sent)[0]


def test_a_report_is_shown(served):
    stage = {"input": "<b>", "stage": "layer.1", "mode": "local", "precision": "float32", "status": "fail",
             "ratio": 3.0, "bar": 1.5}  # fmt: skip
    _, sent = send(served, "r.json", json.dumps({"verdict": "fail", "stages": [stage]}).encode())
    (text,) = call(served, "parity_file", sent)
    assert "layer.1" in text
    assert "&lt;b&gt;" in text


def test_a_store_that_disappears_and_comes_back(house, tmp_path):
    shutil.copytree(house / "store", tmp_path / "store")
    with serving(tmp_path / "store") as address:
        assert ">base<" in call(address, "library", "", "name")[0]
        shutil.move(tmp_path / "store", tmp_path / "away")
        assert "Nothing is in this store yet" in call(address, "library", "", "name")[0]
        assert 'class="notice"' in call(address, "search", "base", "hybrid", 5)[0]
        assert ask(address, f"/picture?model=base&tensor={TENSOR}").status == 404
        shutil.move(tmp_path / "away", tmp_path / "store")
        assert ">base<" in call(address, "library", "", "name")[0]


def test_two_servers_of_one_store_see_each_others_models(house, tmp_path):
    late, other = house / "late", write_model(tmp_path / "other", bert_like(9, **SIZES))
    with serving(tmp_path / "store") as one, serving(tmp_path / "store") as two:
        for address, path in ((one, late), (two, other)):
            call(address, "add", str(path), "index")
        for address in (one, two):
            for name in ("late", "other"):
                while f">{name}<" not in call(address, "library", "", "name")[0]:
                    pass


def test_other_machines_need_a_password(tmp_path):
    with pytest.raises(UsageError, match="without a password"):
        server.serve(tmp_path / "store", host="0.0.0.0")


def test_what_cannot_be_served(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(NotAStore):
        server.serve(tmp_path / "file")
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(UsageError, match="cannot listen"):
        server.serve(tmp_path / "store", port=taken.getsockname()[1])
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    with pytest.raises(MissingExtra):
        server.serve(tmp_path / "store")
