"""AudioSet's label files: local copies, or fetched from where they are published."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

import tenacity

from framekd import config
from framekd.config import LABEL_FILES, UserError
from framekd.manifest import write_atomically


def _passing(error: BaseException) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        return error.code >= 500 or error.code == 429
    return isinstance(error, OSError) and not isinstance(getattr(error, "reason", None), FileNotFoundError)


@tenacity.retry(
    retry=tenacity.retry_if_exception(_passing),
    stop=tenacity.stop_after_attempt(4),
    wait=tenacity.wait_exponential(multiplier=0.5, max=30),
    reraise=True,
)
def _fetch(url: str, path: Path, *, timeout: float) -> None:
    with urllib.request.urlopen(url, timeout=timeout) as answer, path.open("wb") as file:
        if answer.headers.get_content_type() == "text/html":
            raise ValueError("a web page came instead of the file")
        shutil.copyfileobj(answer, file)
        length = answer.headers.get("Content-Length")
        if length is not None and file.tell() != int(length):
            raise OSError(f"{file.tell()} of {length} bytes came")


def _local_copy(directory: Path, name: str, url: str) -> Path:
    names = [LABEL_FILES[name], Path(urllib.parse.urlsplit(url).path).name]
    for candidate in names:
        if candidate and (directory / candidate).is_file():
            return directory / candidate
    raise UserError(f"{directory}: no {names[0]} in audioset.labels_dir; put it there or write labels_dir: null")


def fetch_labels(
    audioset: config.AudioSet,
    directory: str | Path,
    *,
    paths: Mapping[str, str | Path] | None = None,
    timeout: float = 60.0,
) -> dict[str, Path]:
    """Bring every label file into `directory` (or to `paths`, by name), each written whole or not at all.

    From audioset.labels_dir, else from audioset.labels_url (http, https or file). What came is recorded with its
    SHA-256 in sources.json beside the files. Returns {name: path}; UserError says which file and what to do.
    """
    directory = Path(directory)
    out: dict[str, Path] = {}
    record = {}
    for name, published in LABEL_FILES.items():
        path = Path(paths[name]) if paths is not None else directory / published
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        url = audioset.labels_url.get(name, "")
        try:
            if audioset.labels_dir is not None:
                source = _local_copy(Path(audioset.labels_dir), name, url)
                shutil.copyfile(source, aside)
            else:
                _fetch(url, aside, timeout=timeout)
            data = aside.read_bytes()
            if not data.strip():
                raise ValueError("the file is empty")
            aside.replace(path)
        except (OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(
                f"audioset.labels_url.{name}: {url or 'no address'}: {error}; "
                "fetch the file by hand and write audioset: {labels_dir: FOLDER}"
            ) from None
        finally:
            aside.unlink(missing_ok=True)
        out[name] = path
        record[path.name] = {
            "source": "local copy" if audioset.labels_dir is not None else url,
            "sha256": hashlib.sha256(data).hexdigest(),
            "bytes": len(data),
        }
    write_atomically(next(iter(out.values())).parent / "sources.json", [json.dumps(record, indent=1)])
    return out
