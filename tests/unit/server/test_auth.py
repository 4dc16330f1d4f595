"""Keys: what they may do, and that nothing opens a path by accident."""

from __future__ import annotations

import pytest

from adapter_store.errors import InputError
from server.auth import check, needed_scope, parse_keys
from server.errors import AuthenticationError


def test_keys_with_and_without_scopes():
    everything, ask = parse_keys(" sk-all-of-it , sk-ask-only:ask ,")
    assert everything.scopes == {"ask", "teach", "operate"}
    assert ask.scopes == {"ask"}
    assert b"sk-all" not in everything.digest


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "sk-good-key:fly",
        "sk-good-key,bad",
        "sk-good-key:",
        "sk-good-key:+",
        "sk-good-key-é",
        "sk-good-key\udcff",
        "sk-good\x7fkey",
        "sk-good-key :ask",
    ],
)
def test_unusable_keys_are_refused_without_being_shown(text: str):
    with pytest.raises(InputError) as caught:
        parse_keys(text)
    assert "sk-good-key" not in caught.value.message


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("POST", "/v1/chat/completions", "ask"),
        ("GET", "/v1/models/strata@v1", "ask"),
        ("POST", "/v1/tasks/x/batches", "teach"),
        ("POST", "/v1/datasets:validate", "teach"),
        ("POST", "/v1/feedback", "teach"),
        ("POST", "/v1/feedback/x/send", "teach"),
        ("DELETE", "/v1/files/file-1", "teach"),
        ("GET", "/v1/adapters/strata/versions", "ask"),
        ("GET", "/v1/adapters/strata/versions/v1/lora", "operate"),
        ("POST", "/v1/routing:export", "operate"),
        ("POST", "/v1/tasks/x/lora", "teach"),
        ("PUT", "/v1/adapters/strata/aliases/stable", "operate"),
        ("POST", "/V1/CHAT/completions", "operate"),
        ("GET", "//v1/models", "operate"),
        ("GET", "/anything/else", "operate"),
    ],
)
def test_scopes_of_paths(method: str, path: str, scope: str):
    assert needed_scope(method, path) == scope


def test_the_right_key_passes_and_all_others_do_not():
    keys = parse_keys("sk-all-of-it,sk-ask-only:ask")
    check("Bearer sk-all-of-it", keys, "operate")
    check("bearer sk-ask-only", keys, "ask")
    for wrong in (
        "",
        "Bearer",
        "Bearer ",
        "sk-all-of-it",
        "Basic sk-all-of-it",
        "Bearer sk-all-of-i",
        "Bearer é",
    ):
        with pytest.raises(AuthenticationError) as caught:
            check(wrong, keys, "ask")
        assert caught.value.status == 401
    with pytest.raises(AuthenticationError) as caught:
        check("Bearer sk-ask-only", keys, "teach")
    assert caught.value.status == 403
