"""A run on an image tree is the same run, however the tree's path is typed."""

import os

import pytest

from engine.config.choices import one_path
from tests.helpers.runs import config

HERE = "/home/me/desk"
SPELLINGS = {
    "pics": ["pics", "pics/", "./pics", "pics//", ".//pics/.", "././pics", f"{HERE}/pics",
             f"{HERE}//pics/", f"/{HERE}/pics", f"{HERE}/./pics/.", "../desk/pics",
             f"{HERE}/../desk/pics", "~/desk/pics", "~//desk/./pics/", "../../me/desk/pics",
             "/../home/me/desk/pics", "/home/me/../me/desk/pics"],
    "a/b": ["a/b", "a//b", "a/./b/", f"{HERE}/a/b"],
    ".": [".", "./", HERE, f"{HERE}/", "../desk", "~/desk"],
    "/home/me/pics": ["../pics", "./../pics", "~/pics", "/home/me/pics/", "/home/me/desk/../pics"],
    "/home/me": ["..", "../", "~", "~/", "/home/me"],
    "/": ["/", "//", "/.", "/..", "../../..", "../../../../.."],
    "/home/me/desktop": ["../desktop", "/home/me/desktop/"],
    # Any folder that does not contain the working directory may be a link.
    "pics/../other": ["pics/../other", f"{HERE}/pics/..//other/"],
    "/data/current/../tree": ["/data/current/../tree", "/data/./current/..//tree/"],
    "/home/me/link/../pics": ["../link/../pics", "~/link/../pics"],
    "pi cs": ["pi cs", "pi cs/"],
    "...": ["...", ".../"],
    ".hidden": [".hidden", "./.hidden"],
    "a/~": ["a/~", "./a/~"],
    "é": ["é", "./é/"],
}  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: HERE)
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize(
    ("typed", "expected"), [(typed, one) for one, several in SPELLINGS.items() for typed in several]
)
def test_a_path_has_one_spelling(here, typed, expected):
    assert one_path(typed) == expected
    assert one_path(expected) == expected


@pytest.mark.parametrize(
    ("left", "right"), [("pics", "Pics"), ("pics", "pics "), ("pics", "pics2"), ("é", "e\u0301")]
)
def test_different_paths_stay_different(here, left, right):
    assert one_path(left) != one_path(right)


def test_an_unknown_home_is_kept_as_typed(here):
    assert one_path("~nobody-here/pics") == "~nobody-here/pics"


def test_from_the_root_everything_lies_inside(monkeypatch):
    monkeypatch.setattr(os, "getcwd", lambda: "/")
    assert one_path("/data/tree") == one_path("data/tree") == "data/tree"


def test_a_home_that_is_not_utf8_gives_a_choice_that_can_be_written(here, monkeypatch):
    monkeypatch.setenv("HOME", "/home/caf\udce9")
    assert one_path("~/pics") == r"/home/caf\xe9/pics"


def test_links_are_not_resolved(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pics").mkdir()
    (tmp_path / "link").symlink_to("pics")
    assert one_path("link") == "link" and one_path(f"{tmp_path}/link/") == "link"


def test_the_choice_is_in_one_spelling_and_the_configuration_as_typed(here):
    made = config("data=image_folder", "data.root=.//pics/")
    assert made.choices()["data.root"] == "pics"
    assert made.choices(as_typed=True)["data.root"] == made.data.root == ".//pics/"
    assert made.to_dict()["data"]["root"] == ".//pics/"
    plain = config("data=image_folder", "data.root=pics")
    assert made.run_name() == plain.run_name() == plain.run_name(as_typed=True)
    assert made.run_name(as_typed=True) != plain.run_name()


@pytest.mark.parametrize("key", ["optimizer.weight_decay", "optimizer.dampening"])
def test_zero_is_one_choice_whatever_its_sign(key):
    assert config(f"{key}=-0.0").run_name() == config(f"{key}=0").run_name()
