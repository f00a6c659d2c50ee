from __future__ import annotations

import hashlib
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import hilm
from hilm import errors
from hilm.ship import plan_push, pull, push
from hilm.weights.retry import PAUSES
from tests.hub_server import GOOD, READ, HubServer
from tests.servers import forget_connections
from tests.ship.cards import CONFIG, TENSORS, adapter, good
from tests.tiny import write_model
from tests.xet_store import XetStore


def digests(folder):
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        and not path.relative_to(folder).parts[0].startswith(".")
        and path.name != "pull.json"
    }


def reel(folder):
    good(folder, "someone/it")
    hilm.Store(folder.parent / "store").encode([str(folder)], name="it")
    film = hilm.Store(folder.parent / "store").reel("it")
    (folder / "it.reel.mp4").write_bytes(film.read_bytes())
    return folder


@pytest.mark.parametrize(
    "make",
    [lambda f: good(f, "someone/it", shards=3), reel, lambda f: adapter(f, "someone/it")],
    ids=["shards", "reel", "adapter"],
)
def test_what_is_pushed_comes_back(online, tmp_path, make):
    folder = make(tmp_path / "it")
    done = push(folder, "someone/it")
    back = pull("someone/it", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(folder)
    assert done["commit"] == back["commit"]
    assert {f["name"] for f in back["files"]} == {*digests(folder), ".gitattributes"}
    uploads = len(online.writes())
    again = push(folder, "someone/it")
    assert (again["pushed"], again["bytes"], len(online.writes())) == (0, 0, uploads)
    assert again["commit"] == done["commit"]


def test_xet_carries_it_both_ways(online, tmp_path, monkeypatch):
    """The unmodified client with hf-xet: chunks go to its store and come from it, none by LFS."""
    online.xet = XetStore(tmp_path / "chunks")
    online.reach(monkeypatch, tmp_path / "home", GOOD)
    weights = np.random.default_rng(1).normal(size=(400, 500)).astype(np.float32)
    folder = good(tmp_path / "it", "someone/it", shards=3, tensors=TENSORS | {"lm_head.weight": weights})
    done = push(folder, "someone/it")
    back = pull("someone/it", tmp_path / "back")
    assert digests(tmp_path / "back") == digests(folder)
    assert done["commit"] == back["commit"]
    assert len(online.xet.hashes()) == 3
    paths = [request.path for request in online.log]
    assert not any("/lfs/" in path or "info/lfs" in path for path in paths)
    assert {kind for kind in ("read", "write") if any(f"xet-{kind}-token" in path for path in paths)} == {
        "read",
        "write",
    }
    assert (push(folder, "someone/it")["pushed"], GOOD in repr(online.log)) == (0, False)


def test_a_change_sends_only_what_changed(online, tmp_path):
    folder = good(tmp_path / "it", "someone/it", shards=3)
    push(folder, "someone/it")
    (folder / "config.json").write_text(json.dumps(CONFIG | {"note": 1}))
    plan = plan_push(folder, "someone/it")
    assert plan.sent == ["config.json"]
    assert plan.remote_only == [".gitattributes"]
    before = len(online.repositories["models", "someone/it"].commits)
    assert push(folder, "someone/it")["pushed"] == 1
    assert len(online.repositories["models", "someone/it"].commits) == before + 1
    assert not any(r.method == "PUT" for r in online.log[-6:])


def test_a_plan_sends_nothing(online, tmp_path):
    plan = plan_push(good(tmp_path / "it", "someone/it"), "someone/it").describe()
    assert not online.writes()
    assert {f["state"] for f in plan["files"]} == {"add"}
    assert plan["bytes"] == sum(f["size"] for f in plan["files"])
    assert plan["card"].startswith("---\n")


def test_new_repositories_are_private_unless_asked(online, tmp_path):
    folder = good(tmp_path / "it", "someone/a")
    push(folder, "someone/a")
    assert online.repositories["models", "someone/a"].private
    with pytest.raises(errors.UsageError, match="must be checked"):
        push(folder, "someone/b", private=False, check_card=False)
    folder = good(tmp_path / "b", "someone/b")
    push(folder, "someone/b", private=False)
    assert not online.repositories["models", "someone/b"].private
    with pytest.raises(errors.UsageError, match="is public"):
        push(folder, "someone/b", private=True)
    with pytest.raises(errors.UsageError, match="is public"):
        push(folder, "someone/b", check_card=False)


def test_a_card_with_errors_is_refused_unless_forced(online, tmp_path):
    folder = good(tmp_path / "it", "someone/it")
    card = folder / "README.md"
    card.write_text(card.read_text().replace("apache-2.0", "mine"))
    with pytest.raises(errors.InputError, match="C02"):
        push(folder, "someone/it")
    assert not online.writes()
    assert push(folder, "someone/it", force=True)["pushed"] == 3
    (folder / "notes.txt").write_text("AKIA0123456789ABCDEF")
    with pytest.raises(errors.InputError, match="C14"):
        push(folder, "someone/it", force=True)


@pytest.mark.parametrize("waived", [{"check_card": False}, {"force": True}])
def test_secrets_are_never_waived(online, tmp_path, waived):
    folder = good(tmp_path / "it", "someone/it")
    with (folder / "README.md").open("a") as card:
        card.write("\n[More Information Needed]\n")
    push(folder, "someone/it", **waived)
    (folder / "notes.txt").write_text("AKIA0123456789ABCDEF")
    with pytest.raises(errors.InputError, match="C14"):
        push(folder, "someone/it", **waived)


def test_a_missing_card_is_written(online, tmp_path):
    folder = write_model(tmp_path / "it", TENSORS, config=CONFIG)
    push(folder, "someone/it")
    text = online.repositories["models", "someone/it"].files["README.md"].decode()
    assert 'from_pretrained("someone/it")' in text
    assert "512 parameters" in text
    assert not (folder / "README.md").exists()


BAD = {
    "no token": ("someone/it", "", errors.AuthRequired, "needs a token"),
    "wrong token": ("someone/it", "hf_wrongTokenOfSomebody", errors.AuthRequired, "401"),
    "reads only": ("someone/it", READ, errors.AuthRequired, "permission"),
    "other owner": ("stranger/it", GOOD, errors.AuthRequired, "permission"),
    "name": ("someone/i t", GOOD, errors.UsageError, "no name"),
    "no owner": ("it", GOOD, errors.UsageError, "no name"),
    "blank token": ("someone/it", "a b", errors.UsageError, "token"),
}


@pytest.mark.parametrize(("repo_id", "token", "kind", "says"), BAD.values(), ids=BAD)
def test_what_cannot_be_pushed(online, tmp_path, monkeypatch, repo_id, token, kind, says):
    monkeypatch.setenv("HF_TOKEN", token)
    folder = good(tmp_path / "it", repo_id)
    with pytest.raises(kind, match=says) as caught:
        push(folder, repo_id)
    assert not online.repositories
    assert not token or token not in repr(caught.value) + caught.value.hint


def test_offline_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(errors.OfflineError):
        push(good(tmp_path / "it"), "org/model", token=GOOD)
    with pytest.raises(errors.OfflineError):
        pull("org/model")


def test_nobody_answers(tmp_path, monkeypatch, online):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(errors.NetworkError):
        push(good(tmp_path / "it", "someone/it"), "someone/it")


def test_a_commit_that_was_applied_is_not_repeated(online, tmp_path):
    online.fail("/commit/", kind="applied", status=500)
    push(good(tmp_path / "it", "someone/it"), "someone/it")
    assert [message for *_, message in online.repositories["models", "someone/it"].commits] == [
        "initial commit", "Upload with hilm"
    ]  # fmt: skip


def test_a_head_that_moved_is_planned_again(online, tmp_path):
    online.fail("/commit/", status=412)
    folder = good(tmp_path / "it", "someone/it")
    push(folder, "someone/it")
    assert digests(folder).keys() < online.repositories["models", "someone/it"].files.keys()


def test_what_changed_on_the_way_is_noticed(online, tmp_path, monkeypatch):
    honest = HubServer.commit

    def spoil(server, query, body, *rest):
        told = honest(server, query, body, *rest)
        repository = server.repositories["models", "someone/it"]
        repository.files["config.json"] = b"other"
        return told

    routes = [
        (v, p, spoil if a is honest else a) for v, p, a in __import__("tests.hub_server").hub_server.ROUTES
    ]
    monkeypatch.setattr("tests.hub_server.ROUTES", routes)
    with pytest.raises(errors.ChecksumMismatch, match=r"config\.json"):
        push(good(tmp_path / "it", "someone/it"), "someone/it")


PATHS = [
    "/commit/",
    "/preupload/",
    "objects/batch",
    "/lfs/",
    "lfs-verify",
    "/revision/",
    "repos/create",
    "validate",
]
FAULTS = st.lists(
    st.builds(
        dict,
        path=st.sampled_from(PATHS),
        kind=st.sampled_from(["status", "status", "status", "cut", "reset", "applied", "length", "spoil"]),
        status=st.sampled_from([500, 503, 429, 403, 408, 412]),
        times=st.integers(1, 3),
    ),
    max_size=5,
)


def survive(tmp_path_factory, faults):
    """Push under faults: complete, or a clear error, and complete when repeated; never a half revision."""
    home = tmp_path_factory.mktemp("faults")
    with pytest.MonkeyPatch.context() as patch, HubServer() as server:
        server.reach(patch, home / "home", GOOD)
        folder = good(home / "it", "someone/it", shards=3)
        for fault in faults:
            server.fail(**fault)
        try:
            push(folder, "someone/it")
        except errors.HilmError as error:
            assert error.exit_code in {1, 2, 5}  # noqa: PT017 - an error is one of two good ends
            server.faults.clear()
            PAUSES._until.clear()
            push(folder, "someone/it")
        (repository,) = server.repositories.values()
        wanted = {name: (folder / name).read_bytes() for name in digests(folder)}
        first, *later = [files for _, files, _ in repository.commits]
        assert set(first) == {".gitattributes"}
        assert [files for files in later if files != first] == [first | wanted]
    forget_connections()


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=FAULTS)
def test_pushes_survive_faults(tmp_path_factory, brisk, faults):
    survive(tmp_path_factory, faults)


@pytest.mark.slow
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(faults=FAULTS)
def test_two_hundred_pushes_survive_faults(tmp_path_factory, brisk, faults):
    survive(tmp_path_factory, faults)


def test_nan_is_not_published(online, tmp_path):
    folder = good(tmp_path / "it", "someone/it")
    write_model(folder, TENSORS | {"lm_head.weight": np.full((2, 2), np.nan, np.float32)}, config=CONFIG)
    with pytest.raises(errors.InputError, match="C17"):
        push(folder, "someone/it")
