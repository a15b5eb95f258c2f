"""Where audio and labels come from."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import field_validator, model_validator

from framekd.config.base import Block, Seed, field

LABEL_FILES = {
    "balanced_train": "balanced_train_segments.csv",
    "unbalanced_train": "unbalanced_train_segments.csv",
    "eval": "eval_segments.csv",
    "class_labels": "class_labels_indices.csv",
    "train_strong": "audioset_train_strong.tsv",
    "eval_strong": "audioset_eval_strong.tsv",
    "mid_to_display_name": "mid_to_display_name.tsv",
}
"""Names of AudioSet's published label files."""

GROUPS = ("strong", "eval", "weak")
"""Clips by need: AudioSet Strong's training clips, its evaluation clips, and the other clips of AudioSet Weak."""


class Download(Block):
    """Fetching what no local source has."""

    enabled: bool = field(True, "fetch clips that no folder or HDF5 file has")
    url: str = field("https://www.youtube.com/watch?v={ytid}", "page of a clip; {ytid} is its YouTube id")
    shards: dict[str, int] = field(
        {"strong": 40, "eval": 8, "weak": 200},
        "jobs that a group's clips are spread over, by a hash of their id",
        inert=True,  # the table of clips names the shard of each, and is remade
    )
    workers: int = field(2, "downloads at once within a job", inert=True, ge=1, le=32)
    sections: bool = field(True, "fetch only the needed span where the host allows it")
    pause_seconds: float = field(3.0, "least pause of a worker between two downloads", inert=True, ge=0)
    retries: int = field(3, "attempts at a clip within one run, for errors that pass", inert=True, ge=1)
    timeout_seconds: float = field(30.0, "longest silence of a connection", inert=True, gt=0)
    max_rate_limits: int = field(3, "rate-limit answers in a row after which a job stops", inert=True, ge=1)
    cookies: str | None = field(None, "path of a cookies file of your own (its content is never logged)")
    proxy: str | None = field(None, "proxy address, without name and password")
    javascript: Literal["deno", "node", "bun", "quickjs"] = field(
        "deno", "JavaScript runtime that YouTube's page runs in; only deno confines what it runs", inert=True
    )

    @field_validator("proxy")
    @classmethod
    def _no_secret(cls, value: str | None) -> str | None:
        if value and "@" in value:
            raise ValueError(
                "a proxy with a name or password would be kept in records and logs; "
                "set it as https_proxy and http_proxy in the environment, and write proxy: null"
            )
        return value

    @field_validator("shards", mode="before")
    @classmethod
    def _per_group(cls, value: Any) -> Any:
        whole = isinstance(value, dict) and set(value) == set(GROUPS)
        if not whole or not all(type(n) is int and 1 <= n <= 2000 for n in value.values()):
            raise ValueError(
                f"expected a number from 1 to 2000 for each of {', '.join(GROUPS)}, but it is {value!r}; "
                "write shards: {strong: 40, eval: 8, weak: 200}"
            )
        return value


class Extra(Block):
    """Own recordings that join AudioSet Strong's training set."""

    labels: str = field(
        "", "table of their events: filename, onset, offset, event_label (docs/own-data.md)", min_length=1
    )
    audio: str = field("", "folder of the recordings", min_length=1)

    @model_validator(mode="after")
    def _both(self) -> Extra:
        if not self.labels or not self.audio:
            raise ValueError("expected a table and a folder; write extra: {labels: mine.tsv, audio: recordings}")
        return self


class AudioSet(Block):
    """AudioSet's labels and audio."""

    labels_url: dict[str, str] = field(
        {
            "balanced_train": "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/balanced_train_segments.csv",
            "unbalanced_train": "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/unbalanced_train_segments.csv",
            "eval": "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/eval_segments.csv",
            "class_labels": "https://storage.googleapis.com/us_audioset/youtube_corpus/v1/csv/class_labels_indices.csv",
            "train_strong": "https://storage.googleapis.com/us_audioset/youtube_corpus/strong/audioset_train_strong.tsv",
            "eval_strong": "https://storage.googleapis.com/us_audioset/youtube_corpus/strong/audioset_eval_strong.tsv",
            "mid_to_display_name": "https://storage.googleapis.com/us_audioset/youtube_corpus/strong/mid_to_display_name.tsv",
        },
        "addresses of the published label files",
    )
    labels_sha256: dict[str, str] = field(
        {}, "expected SHA-256 of label files, by the same names; of the others, what came is recorded", inert=True
    )
    labels_dir: str | None = field(None, "folder with local copies of the label files; null fetches them")
    folders: list[str] = field([], "folders of audio that are looked through before any download")
    hdf5: list[str] = field(
        [], "HDF5 files of mp3 bytes (PaSST's layout) or shards of another run, or folders of them; before any download"
    )
    expected_classes: tuple[int, int, int] | None = field(
        (447, 416, 407), "strong classes of train, eval and both (Sec. 3.1); null is whatever the files have"
    )
    weak_splits: list[str] = field(["balanced_train", "unbalanced_train"], "weak splits that Step 2 trains on")
    weak: bool = field(True, "acquire AudioSet Weak for Step 2; false takes published Step 2 checkpoints of all models")
    encoding: Literal["pcm", "flac"] = field("pcm", "audio in the store: 16-bit PCM (fastest) or FLAC (half the size)")
    min_share: float = field(
        0.9, "share of each published list's clips that must be there before they are used", ge=0, le=1
    )
    download: Download = field(Download, "downloading")
    extra: Extra | None = field(
        None, "own recordings and classes beside AudioSet Strong's training clips: {labels: mine.tsv, audio: FOLDER}"
    )

    @field_validator("labels_url", "labels_sha256")
    @classmethod
    def _known_files(cls, value: dict[str, str]) -> dict[str, str]:
        if unknown := [name for name in value if name not in LABEL_FILES]:
            raise ValueError(f"{unknown[0]!r} is no label file; the names are {', '.join(LABEL_FILES)}")
        return value

    @field_validator("weak_splits")
    @classmethod
    def _known_splits(cls, value: list[str]) -> list[str]:
        names = ("balanced_train", "unbalanced_train")
        if not value or len(set(value)) != len(value) or set(value) - set(names):
            raise ValueError(
                f"expected one or both of {', '.join(names)}, each once; write weak_splits: [{', '.join(names)}]"
            )
        return value


class MiniatureDesed(Block):
    """Clips of the miniature DESED."""

    weak: int = field(60, "clips for training with weak labels", ge=10)
    synthetic: int = field(100, "clips for training with strong labels", ge=10)
    judging: int = field(12, "synthetic clips on which learning rates are judged", ge=10)
    validation: int = field(60, "clips for testing", ge=10)


class Miniature(Block):
    """The embedded data set that stands in for AudioSet and the downstream sets in the demo."""

    seed: int = field(0, "seed of the scenes", **Seed)
    strong_train: int = field(240, "training clips with strong labels", ge=20)
    weak_only_train: int = field(120, "further training clips with weak labels only", ge=0)
    heard: int = field(100, "evaluation clips: new mixtures of sources that are in the training clips", ge=20)
    unheard: int = field(100, "evaluation clips: mixtures of sources that are in no training clip", ge=20)
    missing: float = field(0.02, "share of clips whose media are gone", ge=0, le=0.5)
    broken: float = field(0.01, "share of clips whose media are damaged", ge=0, le=0.5)
    desed: MiniatureDesed = field(MiniatureDesed(), "clips of the miniature DESED")
    dcase16_files: int = field(10, "120-second files of the miniature DCASE 2016 Task 2", ge=5)
    maestro_files: int = field(9, "120-second files of the miniature MAESTRO", ge=3)
    maestro_folds: int = field(3, "folds of the miniature MAESTRO", ge=3)
