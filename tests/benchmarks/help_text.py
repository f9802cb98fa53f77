"""Real text in eight languages: Debian's LibreOffice help, fetched once. It may be redistributed, but is too much to ship."""

import tempfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data_pipeline.sources import libreoffice_help as source

LANGUAGES = ("de", "el", "es", "fr", "ja", "ru", "tr", "zh-cn")


def documents(cache: Path) -> list[Path]:
    """A Parquet file (id, lang, text) a language below `cache`, one document for each file of the help.

    Raises:
        DataError: a package cannot be fetched.
    """
    cache.mkdir(parents=True, exist_ok=True)
    paths = [cache / f"{language}.parquet" for language in LANGUAGES]
    for language, path in zip(LANGUAGES, paths, strict=True):
        if not path.exists():
            with tempfile.TemporaryDirectory(prefix="scion-") as folder:
                root, _ = source.unpack(language, None, Path(folder))
                pq.write_table(_read(source.language_folder(root, language), language), path)
    return paths


def _read(folder: Path, language: str) -> pa.Table:
    files = sorted(folder.rglob("*.html"))
    texts = ["\n".join(source.read_paragraphs(file.read_bytes()).values()) for file in files]
    rows = [
        {"id": file.relative_to(folder).as_posix(), "lang": language, "text": text}
        for file, text in zip(files, texts, strict=True)
        if text
    ]
    return pa.Table.from_pylist(rows)
