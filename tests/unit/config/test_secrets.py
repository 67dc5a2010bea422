"""What is masked in a text, and what is not: tests/laws/test_secrets.py looks for it in runs."""

import pytest

from flame_accel.config.secrets import mask_secrets

TOKEN = "hf_" + "Zq7" * 11


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"login with {TOKEN}.", "login with [secret]."),
        ("s3://me:pa55@host/a", "s3://[secret]@host/a"),
        ("https://h/x?Date=7&X-Signature=abc and y", "https://h/x?[secret] and y"),
        ("https://h/x?page=2", "https://h/x?page=2"),
        ("shelf_of_books_of_mine_1234", "shelf_of_books_of_mine_1234"),
        ("hf_short", "hf_short"),
        ("me@host.example: 3:4@5", "me@host.example: 3:4@5"),
    ],
)
def test_secrets_are_masked_and_other_texts_are_not(text: str, masked: str):
    assert mask_secrets(text) == masked
    assert mask_secrets(masked) == masked


def test_tokens_of_the_environment_are_masked_unless_they_are_words(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    monkeypatch.setenv("HF_TOKEN", "token")
    assert mask_secrets("key 0123456789abcdef, token") == "key [secret], token"
