"""Archives of the downstream tasks in the layouts that are published, small, and a local server that has them."""

from __future__ import annotations

import http.server
import io
import json
import re
import tarfile
import threading
import zipfile
from pathlib import Path

import mido
import numpy as np
import soundfile

RATE = 8_000


class FileServer:
    """Serves `files` by name, with ETags and byte ranges; the first `breaks` answers end after a third."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files, self.breaks, self.ranges = files, 0, list[str | None]()
        owner = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content, wanted = owner.files.get(self.path[1:]), self.headers.get("Range")
                owner.ranges.append(wanted)
                if content is None:
                    self.send_error(404)
                    return
                start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted else 0
                self.send_response(206 if wanted else 200)
                self.send_header("Content-Type", "application/octet-stream")
                self.send_header("ETag", f'"{self.path}"')
                self.send_header("Content-Length", str(len(content) - start))
                if wanted:
                    self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
                self.end_headers()
                owner.breaks -= 1
                self.wfile.write(content[start:] if owner.breaks < 0 else content[start : start + len(content) // 3])

            def log_message(self, *args) -> None: ...

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/{name}"

    def __enter__(self) -> FileServer:
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()


def wav(seconds: float, *, rate: int = RATE, channels: int = 1, seed: int = 0) -> bytes:
    """A recording of noise."""
    samples = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    out = io.BytesIO()
    soundfile.write(out, samples, rate, subtype="PCM_16", format="WAV")
    return out.getvalue()


def tar(members: dict[str, bytes], *others: tarfile.TarInfo) -> bytes:
    """A .tar.gz of files, and of other members such as links."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as file:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
        for info in others:
            file.addfile(info)
    return out.getvalue()


def zipped(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name, content)
    return out.getvalue()


def prepared(
    task: str, splits: dict[str, int], *, labels: tuple[str, ...] = ("cough", "drawer"), seconds: float = 2.0
) -> dict[str, bytes]:
    """The members of an archive of HEAR: every clip has one event of each label."""
    root = f"hear-2021.0.6/tasks/{task}"
    out = {
        f"{root}/labelvocabulary.csv": ("idx,label\n" + "".join(f"{i},{n}\n" for i, n in enumerate(labels))).encode(),
        f"{root}/task_metadata.json": b"{}",
    }
    for split, count in splits.items():
        rows = [{"label": n, "start": 100.0 * i, "end": 100.0 * i + 300} for i, n in enumerate(labels)]
        clips = {f"{split}_{k}.wav": rows for k in range(count)}
        out[f"{root}/{split}.json"] = json.dumps(clips, indent=True).encode()
        out |= {f"{root}/48000/{split}/{name}": wav(seconds, seed=i) for i, name in enumerate(clips)}
    return out


def midi(*messages: tuple[float, str, int, int], tempo: int = 500_000, ticks: int = 500) -> bytes:
    """A MIDI file of (seconds, "on", "off" or "pedal", pitch or value, velocity), one tick a millisecond."""
    file = mido.MidiFile(ticks_per_beat=ticks)
    file.tracks.append(mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)]))
    track, now = mido.MidiTrack(), 0
    for seconds, kind, value, velocity in sorted(messages, key=lambda message: message[0]):
        tick = round(seconds * 1e6 / tempo * ticks)
        if kind == "pedal":
            track.append(mido.Message("control_change", control=64, value=value, time=tick - now))
        else:
            track.append(mido.Message(f"note_{kind}", note=value, velocity=velocity, time=tick - now))
        now = tick
    file.tracks.append(track)
    out = io.BytesIO()
    file.save(file=out)
    return out.getvalue()


def content(folder: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
