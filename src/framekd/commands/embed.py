"""`framekd embed`: frame embeddings of recordings."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from framekd.commands.recordings import Recording, collect, on_disk, sentence_about
from framekd.errors import UserError, printable


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("embed", help="write frame embeddings of recordings")
    out.set_defaults(run=embed)
    out.add_argument(
        "files", nargs="+", metavar="FILE", help="files, folders, patterns such as 'a/**/*.mp3'; - is standard input"
    )
    out.add_argument("--model", required=True, help="a published model or a checkpoint folder")
    out.add_argument("--out", required=True, help="one file for all (.h5), or a folder with a file per recording")
    out.add_argument("--format", choices=("h5", "npy"), help="of the files in a folder (h5)")
    out.add_argument("--device", default="auto", help="auto (the GPU if there is one), cpu, cuda, cuda:1 (auto)")


def embed(given: argparse.Namespace) -> int:
    """Write embeddings. A file that cannot be read is reported and skipped, and the exit code is 1."""
    out = Path(given.out)
    single = out.suffix in (".h5", ".hdf5")
    if single and given.format == "npy":
        raise UserError(f"--format npy writes a file per recording: name a folder, not {out}")
    if out.is_file() and not single:
        raise UserError(f"--out {out} is a file; name a folder, or a file that ends in .h5")
    if out.is_dir() and single:
        raise UserError(f"--out {out} is a folder; name a file, or a folder that does not end in {out.suffix}")
    recordings, problems = collect(given.files, "")
    for sentence in problems:
        print(f"framekd: {sentence}", file=sys.stderr)
    if not recordings:
        return 1
    from framekd.inference import chosen_device
    from framekd.published import open_model

    model, spec = open_model(given.model, device=chosen_device(given.device))
    about = {"model": spec["model"], "weights_sha256": str(spec.get("weights_sha256", ""))}
    if single:
        failed = _one_file(model, recordings, out, about)
    else:
        failed = _folder(model, recordings, out, given.format or "h5", about)
    return int(failed + len(problems) > 0)


def _one_file(model: Any, recordings: Sequence[Recording], out: Path, about: dict[str, str]) -> int:
    """Write a group per recording; returns how many could not be read."""
    import h5py

    from framekd.audio import DecodeError
    from framekd.embeddings import embed as frames
    from framekd.embeddings import write_group
    from framekd.files import replacing

    failed = 0
    with replacing(out) as aside:
        with h5py.File(aside, "w") as file:
            file.attrs.update(about)
            for recording in recordings:
                name = recording.stem.as_posix()
                with on_disk(recording) as path:
                    try:
                        count = write_group(file.create_group(name), frames(model, path), model.embed_dim)
                        print(f"{recording.name}: {count} frames", file=sys.stderr)
                    except (DecodeError, FileNotFoundError) as error:
                        del file[name]
                        print(f"framekd: {sentence_about(recording, path, error)}", file=sys.stderr)
                        failed += 1
        if failed == len(recordings):
            raise UserError(f"none of {failed} files could be read; {out} is not written")
    return failed


def _folder(model: Any, recordings: Sequence[Recording], out: Path, form: str, about: dict[str, str]) -> int:
    """Write a file per recording; returns how many could not be read."""
    import h5py

    from framekd.audio import DecodeError
    from framekd.embeddings import embed as frames
    from framekd.embeddings import write_group, write_npy
    from framekd.files import replacing

    failed = 0
    for recording in recordings:
        target = out / f"{recording.stem.as_posix()}.{form}"
        with on_disk(recording) as path:
            try:
                if form == "npy":
                    count = write_npy(target, frames(model, path), model.embed_dim)
                else:
                    with replacing(target) as aside, h5py.File(aside, "w") as file:
                        file.attrs.update(about)
                        count = write_group(file, frames(model, path), model.embed_dim)
                print(f"{recording.name}: {count} frames -> {printable(str(target))}", file=sys.stderr)
            except (DecodeError, FileNotFoundError) as error:
                print(f"framekd: {sentence_about(recording, path, error)}", file=sys.stderr)
                failed += 1
    return failed
