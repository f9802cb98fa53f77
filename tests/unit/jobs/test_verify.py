"""`scion verify MODEL` on folders that Scion did not make."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from data_pipeline.errors import ModelError, VerifyError
from ray_jobs import verify
from tests.conftest import byte_level, tiny_model, wordpiece
from tests.families.configs import tiny


def check_output(folder: Path) -> str:
    """What the command prints."""
    console = Console(file=io.StringIO(), width=200)
    verify.command([str(folder)], console)
    return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]


def test_a_model_with_its_tokenizer_is_right(source_folder: str) -> None:
    printed = check_output(Path(source_folder))
    assert "failed" not in printed
    assert "packed rows, sdpa attention, tapped head" in printed
    assert "tokenizer fits" in printed


def test_a_tokenizer_with_more_ids_than_the_model_has_rows_does_not_fit(english, tmp_path) -> None:
    tiny_model(wordpiece(english, 500)).save_pretrained(tmp_path)
    wordpiece(english, 800).save_pretrained(tmp_path)
    with pytest.raises(VerifyError, match="tokenizer fits"):
        check_output(tmp_path)


def test_a_masked_language_model_needs_a_mask_token(english, tmp_path) -> None:
    tokenizer = byte_level(english)
    tiny_model(tokenizer).save_pretrained(tmp_path)
    tokenizer.mask_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(VerifyError, match="tokenizer fits"):
        check_output(tmp_path)


def test_an_architecture_that_cannot_be_trained_fails(english, tmp_path) -> None:
    tokenizer = wordpiece(english)
    tiny("convbert", len(tokenizer), pad_token_id=0).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(VerifyError, match=r"1 of 6 checks failed: forward\."):
        check_output(tmp_path)


def test_a_folder_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match="/nonexistent: there is no such folder"):
        check_output(Path("/nonexistent"))
