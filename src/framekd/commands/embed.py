"""`framekd embed`: frame embeddings of recordings."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from framekd.errors import UserError


def add(commands: Any) -> None:
    """Add the command's arguments."""
    out = commands.add_parser("embed", help="write frame embeddings of recordings")
    out.set_defaults(run=embed)
    out.add_argument("files", nargs="+", metavar="FILE", help="recordings, and folders of recordings")
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
    files = _files(given.files)
    from framekd.inference import chosen_device
    from framekd.published import open_model

    model, spec = open_model(given.model, device=chosen_device(given.device))
    about = {"model": spec["model"], "weights_sha256": str(spec.get("weights_sha256", ""))}
    if single:
        return _one_file(model, files, out, about)
    return _folder(model, files, out, given.format or "h5", about)


def _files(given: list[str]) -> dict[str, Path]:
    """Recordings by the name that their embeddings get; of those in a folder, the path below it."""
    from framekd.audio import EXTENSIONS

    out: dict[str, Path] = {}
    for text in given:
        root = Path(text)
        if not root.exists():
            raise UserError(f"{root}: no such file or folder")
        found = [root] if not root.is_dir() else sorted(p for p in root.rglob("*") if p.suffix.lower() in EXTENSIONS)
        if not found:
            raise UserError(f"{root}: has no audio; known endings are {', '.join(EXTENSIONS)}")
        for path in found:
            name = path.relative_to(root).as_posix() if root.is_dir() else path.name
            if out.setdefault(name, path) != path:
                raise UserError(f"{path} and {out[name]} would both be written as {name}; give them in two calls")
    return out


def _report(error: Exception, path: Path) -> None:
    text = str(error)
    print(f"framekd: {text if text.startswith(str(path)) else f'{path}: {text}'}", file=sys.stderr)


def _one_file(model: Any, files: dict[str, Path], out: Path, about: dict[str, str]) -> int:
    import h5py

    from framekd.audio import DecodeError
    from framekd.embeddings import embed as frames
    from framekd.embeddings import write_group
    from framekd.files import replacing

    failed = 0
    with replacing(out) as aside:
        with h5py.File(aside, "w") as file:
            file.attrs.update(about)
            for name, path in files.items():
                try:
                    count = write_group(file.create_group(name), frames(model, path), model.embed_dim)
                    print(f"{path}: {count} frames", file=sys.stderr)
                except (DecodeError, FileNotFoundError) as error:
                    del file[name]
                    _report(error, path)
                    failed += 1
        if failed == len(files):
            raise UserError(f"none of {len(files)} files could be read; {out} is not written")
    return int(failed > 0)


def _folder(model: Any, files: dict[str, Path], out: Path, form: str, about: dict[str, str]) -> int:
    import h5py

    from framekd.audio import DecodeError
    from framekd.embeddings import embed as frames
    from framekd.embeddings import write_group, write_npy
    from framekd.files import replacing

    failed = 0
    for name, path in files.items():
        target = out / f"{name}.{form}"
        try:
            if form == "npy":
                count = write_npy(target, frames(model, path), model.embed_dim)
            else:
                with replacing(target) as aside, h5py.File(aside, "w") as file:
                    file.attrs.update(about)
                    count = write_group(file, frames(model, path), model.embed_dim)
            print(f"{path}: {count} frames -> {target}", file=sys.stderr)
        except (DecodeError, FileNotFoundError) as error:
            _report(error, path)
            failed += 1
    return int(failed > 0)
