from __future__ import annotations

import pytest

from hilm.ship.references import ABSOLUTE, SECRET, is_repository
from tests.hub_server import GOOD


@pytest.mark.parametrize("name", ["org/model", "o/m", "a_b/c.d-e", "0/1", f"o/{'x' * 96}"])
def test_names_of_repositories(name):
    assert is_repository(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "gpt2",
        "a/b/c",
        "a--b/c",
        "a/b..c",
        "-a/b",
        "a/b.",
        "a/ b",
        "../b",
        "/a/b",
        f"o/{'x' * 97}",
        3,
        None,
    ],
)
def test_what_is_no_name(name):
    assert not is_repository(name)


def test_the_owner_can_be_waived():
    assert is_repository("gpt2", owner=False)


@pytest.mark.parametrize(
    "text", [GOOD, "AKIA0123456789ABCDEF", f"ghp_{'a' * 36}", "-----BEGIN OPENSSH PRIVATE KEY-----"]
)
def test_secrets(text):
    assert SECRET.search(f"key: {text}.")


@pytest.mark.parametrize(
    "text", ["hf_hub_download(", "sk-learn", "sha256:" + "a" * 64, "-----BEGIN CERTIFICATE-----"]
)
def test_what_is_no_secret(text):
    assert not SECRET.search(text)


@pytest.mark.parametrize("text", ["/home/me/x", "in /mnt/models.", "C:\\Users\\me", "file:///etc/hosts"])
def test_paths_of_one_machine(text):
    assert ABSOLUTE.search(text)


@pytest.mark.parametrize(
    "text", ["https://host/home/x", "./data/x", "org/model", "a/b", "1/2", "docs/home/x"]
)
def test_what_is_no_path_of_one_machine(text):
    assert not ABSOLUTE.search(text)
