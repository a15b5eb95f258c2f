"""Published files of the downstream tasks: fetched once, or taken where they lie, with their sums compared."""

from __future__ import annotations

import hashlib
from pathlib import Path

from framekd.config import Archive, UserError
from framekd.fetch import check_sum, fetch

MOST_BYTES = 1 << 38
"""Size above which a file is refused; MAESTRO has 0.1 TB."""


def obtain(archive: Archive, folder: str | Path, *, progress: bool = False) -> tuple[Path, dict[str, str]]:
    """A published file, and what the record of the task says about it: its name and SHA-256.

    Args:
        archive: where it is.
        folder: where a fetched file is kept. One that is there already, put there by hand say, is not fetched.
    Raises:
        UserError: it cannot be had, or is not the expected one.
    """
    if archive.path:
        path = Path(archive.path)
        if not path.is_file():
            raise UserError(f"{path} does not exist; correct the path, or write path: null with a url")
        digest = check_sum(path, archive.sha256, "correct the path, or the configured sum")
    else:
        path = fetch(
            archive.url, Path(folder) / archive.name, sha256=archive.sha256, max_bytes=MOST_BYTES, progress=progress
        )
        digest = path.with_name(path.name + ".sha256").read_text().split()[0]
    if archive.md5:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != archive.md5.lower():
            remedy = "correct the path" if archive.path else f"remove it and {path.name}.sha256 to fetch it again"
            raise UserError(f"{path} has MD5 {found}, expected {archive.md5.lower()}: {remedy}, or correct the sum.")
    return path, {"name": path.name, "sha256": digest}
