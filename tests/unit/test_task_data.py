"""The data of Table II: made from archives that a local server has, counted, and compared with published numbers."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import misbehaving_server as host
import numpy as np
import pytest
import soundfile
import torch
import yaml
from downstream_sets import write_desed
from task_archives import FileServer, content, midi, prepared, tar, wav, zipped

from framekd import fetch as fetching
from framekd import tasks
from framekd.checkpoints import save_checkpoint
from framekd.checks import problems
from framekd.config import Download, Task, UserError, identity, load, read_sources
from framekd.jobs import DownstreamJob
from framekd.layouts.desed import read_strong, read_weak
from framekd.models import build_model
from framekd.pipeline import downstream
from framekd.pipeline.task_data import prepare
from framekd.plan import Plan
from framekd.sets import hear
from framekd.sets.desed import clip_of
from framekd.units import SAMPLE_RATE

SHARED = Path(__file__).parents[3] / "shared" / "downstream_meta"
real = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real lists are in ../shared/downstream_meta, which is absent"
)
SMALL = {"DC16-T2": {"train": 2, "valid": 1, "test": 1, "classes": 2, "seconds": 2}}
NAME = "hear2021-dcase2016_task2-hear2021-full-48000.tar.gz"


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(fetching, "_pause", lambda state: 0.0)


class Site:
    """A working folder with a configuration, in which the data of one task are prepared."""

    def __init__(self, root: Path, task: str, values: dict) -> None:
        self.root, self.task, self.values = root, task, values
        self.folder = root / "set"
        values.setdefault(task, {})["data"] = str(self.folder)

    def config(self):
        return load({"data_dir": str(self.root / "data"), "downstream": self.values})

    def job(self):
        return Plan(self.config()).task_data_job(SimpleNamespace(task=self.task))

    def run(self, **changes) -> dict:
        out = {
            name: str(self.root / "data" / "tasks" / file) for name, file in (("state", "s.json"), ("counts", "c.tsv"))
        }
        prepare(self.job().model_copy(update=changes), out=out)
        return json.loads(Path(out["state"]).read_text())

    def counts(self) -> list[dict[str, str]]:
        with (self.root / "data" / "tasks" / "c.tsv").open(newline="") as file:
            return list(csv.DictReader(file, delimiter="\t"))

    def refused(self, **changes) -> str:
        """The sentence of a run that fails; nothing of the folder is left."""
        with pytest.raises(UserError) as caught:
            self.run(**changes)
        assert "\n" not in str(caught.value) and not self.folder.exists()
        assert [p.name for p in self.root.iterdir() if p.name.startswith(".")] == []
        return str(caught.value)


def site_of(root: Path, archive: dict | bytes, server: FileServer | None = None, **counts) -> Site:
    """DCASE 2016 Task 2 from an archive of HEAR, at a server or as a file."""
    data = archive if isinstance(archive, bytes) else tar(archive)
    if server is not None:
        server.files[NAME] = data
        source = {"url": server.url(NAME)}
    else:
        (root / "it.tar.gz").write_bytes(data)
        source = {"path": str(root / "it.tar.gz")}
    task = "DC16-T2"
    values = {"fetch": {task: {"prepared": source}}, "counts": {task: {**SMALL[task], **counts}}}
    return Site(root, task, values)


@pytest.fixture(scope="module")
def whole() -> dict[str, bytes]:
    return prepared("dcase2016_task2-hear2021-full", {"train": 2, "valid": 1, "test": 1})


# HEAR's archives -----------------------------------------------------------------------------------------------------


def test_hears_archive_becomes_the_tasks_folder_byte_for_byte_twice_also_over_a_broken_connection(whole, tmp_path):
    made, archive = [], tar(whole)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        with FileServer({}) as server:
            site = site_of(tmp_path / name, archive, server)
            server.breaks = 2 if name == "b" else 0
            state = site.run()
            assert (len(server.ranges), server.ranges[0]) == ((3, None) if name == "b" else (1, None))
        made.append((content(site.folder), state, site.counts()))
    assert made[0] == made[1]
    files, state, counts = made[0]
    assert {name for name in files if not name.startswith(".")} == {
        re.sub(r"^.*-full/", "", name) for name in whole
    } and b"hear2021" in files[".framekd.json"]
    assert state["numbers"] == {"classes": 2, "train": 2, "valid": 1, "test": 1}
    assert state["made_from"][0]["name"] == NAME and len(state["made_from"][0]["sha256"]) == 64
    assert set(state["sha256"]) == {"labelvocabulary.csv", "train.json", "valid.json", "test.json"}
    assert counts[0] == {"split": "train", "class": "", "clips": "2", "events": "4"}
    listed = downstream._listing(site.folder)
    problem = tasks.load("DC16-T2", Task(data=str(site.folder)))
    assert (site.folder / "cache-16k.h5").is_file() and downstream._listing(site.folder) == listed
    assert (len(problem.pools["files"]), problem.classes.names) == (4, ("cough", "drawer"))


def test_a_folder_that_was_made_is_made_anew_and_one_that_was_filled_is_left_alone(whole, tmp_path):
    site = site_of(tmp_path, whole)
    site.run()
    (site.folder / "cache-16k.h5").write_bytes(b"old")
    (tmp_path / ".set.partial" / ".unpacked").mkdir(parents=True)  # of a job that was killed
    (tmp_path / ".set.partial" / ".unpacked" / "labelvocabulary.csv").touch()
    (tmp_path / ".set.partial" / "train.json").touch()
    site.run()
    assert not (tmp_path / ".set.partial").exists() and not (site.folder / "cache-16k.h5").exists()
    (tmp_path / "disk").mkdir()
    site.folder.rename(tmp_path / "disk" / "there")
    site.folder.symlink_to(tmp_path / "disk" / "there")
    site.run()
    assert site.folder.is_symlink() and [p.name for p in (tmp_path / "disk").iterdir()] == ["there"]
    (site.folder / ".framekd.json").unlink()
    before = content(site.folder)
    assert site.job().fetch is None and site.run()["made_from"] == []
    assert content(site.folder) == before
    with pytest.raises(UserError, match="is not a folder that this pipeline made"):
        site.run(fetch=site.config().downstream.fetch.of("DC16-T2"))
    assert content(site.folder) == before


def test_archives_that_are_not_the_published_ones_are_one_sentence(whole, tmp_path):
    site = site_of(tmp_path, tar(whole)[:5000])
    assert "broken, incomplete or no archive" in site.refused()
    for key, length, word in (("sha256", 64, "SHA-256"), ("md5", 32, "MD5")):
        site = site_of(tmp_path, whole)
        site.values["fetch"]["DC16-T2"]["prepared"][key] = "0" * length
        assert re.search(f"{word} [0-9a-f]+, expected 0+", site.refused())
    assert "labelvocabulary.csv, so it is not one task of HEAR" in site_of(tmp_path, {"a/b.txt": b"x"}).refused()
    outside = site_of(tmp_path, {**whole, "hear-2021.0.6/../../evil": b"x"})
    assert "leads out of the folder" in outside.refused() and not (tmp_path.parent / "evil").exists()
    site.values["fetch"]["DC16-T2"]["prepared"] = {"url": "http://127.0.0.1:9/x.tar.gz"}
    assert "put the file there by hand" in site.refused()


def test_a_copy_that_differs_stops_with_counts_and_the_line_that_accepts_it(whole, tmp_path):
    archive = prepared("dcase2016_task2-hear2021-full", {"train": 3, "valid": 1, "test": 1}, seconds=2.5)
    site = site_of(tmp_path, archive)
    said = site.refused()
    assert "train 3 instead of 2" in said and "3 of 3 clips of train do not last 2 s" in said and "it.tar.gz" in said
    line = yaml.safe_load(re.search(r"accept it with (downstream: .*)$", said)[1])
    assert line == {"downstream": {"counts": {"DC16-T2": {"train": 3, "seconds": None}}}}
    site.values["counts"]["DC16-T2"] |= line["downstream"]["counts"]["DC16-T2"]
    assert site.run()["numbers"]["train"] == 3


def filled(tmp_path: Path, whole: dict[str, bytes]) -> Site:
    """A folder that somebody has filled."""
    site = site_of(tmp_path, whole)
    site.run()
    (site.folder / ".framekd.json").unlink()
    return site


def edit(folder: Path, split: str, change) -> None:
    path = folder / f"{split}.json"
    lists = json.loads(path.read_text())
    change(lists)
    path.write_text(json.dumps(lists))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda f: (f / "48000/train/train_1.wav").unlink(), "1 of 2 recordings that train.json lists are absent"),
        (lambda f: edit(f, "train", lambda x: x.pop("train_1.wav")), "1 recordings of train are in no list"),
        (
            lambda f: edit(f, "test", lambda x: x.update({"valid_0.wav": []})),
            "recordings that test.json lists are absent",
        ),
        (lambda f: soundfile.write(f / "48000/test/test_0.wav", np.zeros(7), 8000), "7 samples at 8000 Hz"),
        (lambda f: (f / "48000/test/test_0.wav").write_bytes(b"no"), "test_0.wav is no recording"),
        (
            lambda f: edit(f, "valid", lambda x: x["valid_0.wav"].pop()),
            r"valid has no event of 1 of 2 classes \(drawer\)",
        ),
        (lambda f: (f / "labelvocabulary.csv").unlink(), "labelvocabulary.csv"),
    ],
)
def test_a_filled_folder_with_faults_is_one_sentence(whole, tmp_path, change, words):
    site = filled(tmp_path, whole)
    change(site.folder)
    with pytest.raises(UserError, match=words) as caught:
        site.run()
    assert "\n" not in str(caught.value)


def test_a_fold_may_lack_a_pitch_that_other_folds_have(tmp_path):
    splits = {f"fold{i:02d}": 1 for i in range(3)}
    data = tar(prepared("maestro-v3.0.0-5h", splits, labels=("60", "61")))
    (tmp_path / "it.tar.gz").write_bytes(data)
    counts = {**dict.fromkeys(splits, 1), "fold03": None, "fold04": None, "classes": 2, "seconds": 2}
    values = {"fetch": {"MAESTRO": {"prepared": {"path": str(tmp_path / "it.tar.gz")}}}, "counts": {"MAESTRO": counts}}
    site = Site(tmp_path, "MAESTRO", values)
    site.run()
    assert len(tasks.load("MAESTRO", Task(data=str(site.folder))).runs) == 3
    (site.folder / ".framekd.json").unlink()
    edit(site.folder, "fold01", lambda x: x["fold01_0.wav"].pop())
    assert site.run()["notices"] == ["fold01 has no event of 1 of 2 classes (61)"]
    for fold in ("fold00", "fold02"):
        edit(site.folder, fold, lambda x, fold=fold: x[f"{fold}_0.wav"].pop())
    with pytest.raises(UserError, match=r"fold00 has no event of 1 of 2 classes \(61\)"):
        site.run()


# The data sets, by HEAR's rule ---------------------------------------------------------------------------------------


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr(hear, "SECONDS", 2)
    monkeypatch.setattr(hear, "FOLD_SECONDS", 5)


def test_dcase16_is_made_from_both_of_its_archives(short, tmp_path):
    stems = {"dev": [f"dev_1_ebr_0_nec_{i}_poly_0" for i in range(2)], "eval": [f"test_{i}" for i in range(3)]}
    roots = {"dev": "dcase2016_task2_train_dev/dcase2016_task2_dev", "eval": "dcase2016_task2_test_public"}
    with FileServer({}) as server:
        for kind, root in roots.items():
            members = {"__MACOSX/annotation/._x.txt": b"\0", "dcase2016_task2_train/cough001.wav": wav(0.1)}
            for i, stem in enumerate(stems[kind]):
                members[f"{root}/annotation/{stem}.txt"] = b"0.50\t0.95\tcough\n1.37\t3.72\tphone\n2.00\t2.5\tcough\n"
                members[f"{root}/sound/{stem}.wav"] = wav((1.5, 2.5, 2)[i], rate=44_100)
            server.files[f"{kind}.zip"] = zipped(members)
        fetch = {"take": "original", "original": {k: {"url": server.url(f"{k}.zip"), "md5": None} for k in roots}}
        counts = {"train": 3, "valid": 1, "test": 1, "classes": 2, "seconds": 2}
        site = Site(tmp_path, "DC16-T2", {"fetch": {"DC16-T2": fetch}, "counts": {"DC16-T2": counts}})
        state = site.run()
        first = content(site.folder)
        site.run()
        assert content(site.folder) == first
    assert [about["name"] for about in state["made_from"]] == ["dev.zip", "eval.zip"]
    splits = hear.three_splits(stems["dev"] + stems["eval"])
    lists = {split: json.loads((site.folder / f"{split}.json").read_text()) for split in splits}
    assert {split: sorted(found) for split, found in lists.items()} == {
        split: [f"{stem}.wav" for stem in found] for split, found in splits.items()
    }
    rows = next(iter(lists["train"].values()))
    assert rows == [
        {"label": "cough", "start": 500.0, "end": 950.0},
        {"label": "phone", "start": 1370.0, "end": 2000.0},
    ]
    for path in (site.folder / "16000").rglob("*.wav"):
        info = soundfile.info(str(path))
        assert (info.frames, info.samplerate, info.channels, info.subtype) == (
            2 * SAMPLE_RATE,
            SAMPLE_RATE,
            1,
            "PCM_16",
        )
    assert (site.folder / "labelvocabulary.csv").read_text() == "idx,label\n0,cough\n1,phone\n"


def test_maestro_is_made_from_its_archive(short, tmp_path):
    pieces = [f"20{i:02d}/piece_{i:02d}" for i in range(12)]
    table = "canonical_composer,midi_filename,audio_filename\n" + "".join(f'"B, A",{p}.midi,{p}.wav\n' for p in pieces)
    members = {"maestro-v3.0.0/maestro-v3.0.0.csv": table.encode()}
    for i, piece in enumerate(pieces):
        played = midi((0.5, "on", 60 + i % 2, 64), (1.0, "off", 60 + i % 2, 0), (2.5, "on", 70, 1), (3.0, "off", 70, 0))
        members |= {f"maestro-v3.0.0/{piece}.midi": played, f"maestro-v3.0.0/{piece}.wav": wav(2.5, channels=2, seed=i)}
    (tmp_path / "maestro.zip").write_bytes(zipped(members))
    original = {"maestro": {"path": str(tmp_path / "maestro.zip"), "md5": None}}
    counts = {**{f"fold{i:02d}": 2 for i in range(5)}, "classes": 2, "seconds": 2}
    values = {"fetch": {"MAESTRO": {"take": "original", "original": original}}, "counts": {"MAESTRO": counts}}
    site = Site(tmp_path, "MAESTRO", values)
    state = site.run()
    assert state["numbers"] == {"classes": 2, **{f"fold{i:02d}": 2 for i in range(5)}}
    rows = json.loads((site.folder / "fold00.json").read_text())
    assert all(len(found) == 1 and found[0]["label"] in (60, 61) for found in rows.values())
    assert next(iter(rows.values()))[0] | {"label": 0} == {"label": 0, "start": 500.0, "end": 1000.0}
    assert len(tasks.load("MAESTRO", Task(data=str(site.folder))).runs) == 5
    lost = {name: data for name, data in members.items() if not name.endswith("piece_03.wav")}
    shutil.rmtree(site.folder)
    (tmp_path / "maestro.zip").write_bytes(zipped(lost))
    drawn = any("piece_03" in stem for fold in hear.five_folds(p[5:] for p in pieces).values() for stem in fold)
    if drawn:
        assert "1 of 10 clips lack their recording or labels, such as piece_03" in site.refused()


def fingerprint(splits: dict[str, list[str]]) -> str:
    return hashlib.sha256(json.dumps(splits, sort_keys=True).encode()).hexdigest()[:16]


@real
def test_the_real_annotations_of_dcase16_have_hears_split_and_11_classes_in_each():
    files = sorted(SHARED.glob("dcase16_task2/*/*.txt"))
    rows = {path.stem: hear.read_annotation(path.read_text(), path.name) for path in files}
    splits = hear.three_splits(rows)
    assert {split: len(stems) for split, stems in splits.items()} == {"train": 44, "valid": 14, "test": 14}
    assert fingerprint(splits) == "ea8b37257a3b0ab1"  # of what hearpreprocess 2021.1.1 itself draws
    assert sum(map(len, rows.values())) == sum(len(hear.cut(found)) for found in rows.values())
    for stems in splits.values():
        assert len({label for stem in stems for _, _, label in rows[stem]}) == 11
    config = load({}).downstream.counts["DC16-T2"]
    assert config == {"train": 44, "valid": 14, "test": 14, "classes": 11, "seconds": 120}


@real
def test_the_real_table_of_maestro_gives_five_folds_of_37_pieces():
    pieces = hear.read_pieces((SHARED / "maestro/maestro-v3.0.0.csv").read_text(), "maestro-v3.0.0.csv")
    folds = hear.five_folds(pieces)
    assert len(pieces) == 1276 and {fold: len(stems) for fold, stems in folds.items()} == {
        f"fold{i:02d}": 37 for i in range(5)
    }
    assert len({stem for stems in folds.values() for stem in stems}) == 185
    assert folds == hear.five_folds(reversed(list(pieces)))
    assert fingerprint(folds) == "31776a938fdb192c"  # of what hearpreprocess 2021.1.1 itself draws


@real
def test_the_real_lists_of_desed_have_the_published_numbers():
    weak = read_weak(SHARED / "desed/train/weak.tsv")
    synthetic = read_strong(SHARED / "desed/train/synthetic21_train/soundscapes.tsv")
    validation = read_strong(SHARED / "desed/validation/validation.tsv")
    classes = {name for labels in weak.values() for name in labels}
    judging = read_strong(SHARED / "desed/validation/synthetic21_validation/soundscapes.tsv")
    found = {"weak": len(weak), "synthetic": len(synthetic), "validation": len(validation), "classes": len(classes)}
    found["judging"] = len(judging)
    public = read_strong(SHARED / "desed/validation/ground_truth_public.tsv")
    found["public"] = len(public)
    assert len({clip_of(name, "x").clip_id for name in public}) == 692
    assert found == load({}).downstream.counts["DESED"]
    assert {
        label for rows in (*synthetic.values(), *validation.values(), *public.values()) for _, _, label in rows
    } == classes
    clips = {clip_of(name, "x").clip_id for name in (*weak, *validation)}
    assert len(clips) == len(weak) + len(validation)


# DESED ---------------------------------------------------------------------------------------------------------------


def test_desed_is_made_of_its_archive_the_official_lists_a_folder_and_a_host(tmp_path):
    names = {kind: [f"Y{kind[:4]}{i:07d}_30.000_32.000.wav" for i in range(4)] for kind in ("weak", "vali")}
    root = "dcase_synth"
    synthetic = {
        f"{root}/metadata/train/synthetic21_train/soundscapes.tsv": (
            b"filename\tonset\toffset\tevent_label\n0.wav\t0.1\t0.5\tDog\n1.wav\t0.1\t0.5\tSpeech\n"
        ),
    }
    synthetic[f"{root}/metadata/validation/synthetic21_validation/soundscapes.tsv"] = next(iter(synthetic.values()))
    for i in range(2):
        synthetic[f"{root}/audio/validation/synthetic21_validation/soundscapes/{i}.wav"] = wav(1.0, seed=9 + i)
        synthetic[f"{root}/audio/train/synthetic21_train/soundscapes/{i}.wav"] = wav(1.0, seed=i)
        synthetic[f"{root}/audio/train/synthetic21_train/soundscapes/{i}.jams"] = b"{}"
    weak = "filename\tevent_labels\n" + "".join(f"{name}\tDog,Speech\n" for name in names["weak"])
    strong = "filename\tonset\toffset\tevent_label\n" + "".join(
        f"{name}\t0.0\t1.5\t{('Dog', 'Speech')[i % 2]}\n" for i, name in enumerate(names["vali"])
    )
    folder = tmp_path / "clips"
    folder.mkdir()
    for name in names["weak"]:
        (folder / name).write_bytes(wav(2.0))
    (tmp_path / "video.wav").write_bytes(wav(40, seed=1))
    ids = [name[1:12] for name in names["vali"]]
    files = {"dcase_synth.zip": zipped(synthetic), "weak.tsv": weak.encode(), "validation.tsv": strong.encode()}
    public = [f"Ypubl{i:07d}_30_32.wav" for i in range(2)]
    (tmp_path / "public.tsv").write_text(strong.splitlines()[0] + "".join(
        f"\n{name}\t0.0\t1.5\t{label}" for name, label in zip(public, ("Dog", "Speech"))
    ) + "\n")  # fmt: skip
    for name in public:
        (folder / name).write_bytes(wav(2.0))
    with FileServer(files) as server, host.MediaServer(dict.fromkeys(ids[:3], tmp_path / "video.wav")) as videos:
        fetch = {
            "synthetic": {"url": server.url("dcase_synth.zip")},
            "lists": {kind: {"url": server.url(f"{kind}.tsv")} for kind in ("weak", "validation")},
            "folders": [str(folder)],
        }
        counts = {"weak": 4, "synthetic": 2, "validation": 4, "judging": 2, "classes": 2}
        site = Site(tmp_path, "DESED", {"fetch": {"DESED": fetch}, "counts": {"DESED": counts}})
        download = Download(url=videos.url, pause_seconds=0, retries=1, sections=False)
        said = site.refused(download=download)
        assert "3 of 4 validation clips" in said and said.endswith("write downstream: {min_share: 0.75}")
        asked = dict(videos.requests)
        site.values["min_share"] = 0.75
        site.values["DESED"]["public_evaluation"] = True
        assert site.refused(download=download).startswith("the public evaluation set of DESED has no list; write")
        assert "no official list" in keys(site)[0] and "lists: {public: {path: FILE}}" in keys(site)[0]
        site.values["fetch"]["DESED"]["lists"]["public"] = {"path": str(tmp_path / "public.tsv")}
        site.values["counts"]["DESED"]["public"] = 2
        assert keys(site) == []
        state = site.run(download=download)
        assert videos.requests == asked and set(asked) == set(ids), "what came is kept, and what is gone not asked for"
    assert state["with_audio"] == {"weak": 4, "synthetic": 2, "validation": 3, "judging": 2, "public": 2}
    audio = site.folder / "audio"
    assert sorted(p.name for p in (audio / "validation/validation").iterdir()) == names["vali"][:3]
    assert {soundfile.info(str(p)).frames for p in audio.rglob("*weak*.wav")} == {2 * SAMPLE_RATE}
    assert not list(site.folder.rglob("*.jams"))
    manifest = (tmp_path / "data/tasks/DESED/clips/validation.manifest.tsv").read_text()
    assert "\tgone\t" in manifest and manifest.count("\tok\t") == 3
    problem = tasks.load("DESED", Task(data=str(site.folder)))
    assert {kind: len(pool) for kind, pool in problem.pools.items()} == {"weak": 4, "synthetic": 2, "validation": 3}


def test_the_public_evaluation_set_of_desed_is_scored_beside_the_validation_clips(tmp_path):
    root = write_desed(tmp_path / "set", weak=4, synthetic=4, validation=4)
    values = {"public_evaluation": True}
    counts = {"weak": 4, "synthetic": 4, "validation": 4, "judging": None, "public": 4, "classes": 4}
    site = Site(tmp_path, "DESED", {"DESED": values, "fetch": {"DESED": None}, "counts": {"DESED": counts}})
    [said] = keys(site)
    assert "has no metadata/eval/public.tsv; complete or remove the folder" in said
    listed = root / "metadata/eval/public.tsv"
    listed.parent.mkdir()
    shutil.copyfile(root / "metadata/validation/validation.tsv", listed)
    shutil.copytree(root / "audio/validation/validation", root / "audio/eval/public")
    assert keys(site) == [] and str(listed) in Plan(site.config()).task_lists("DESED")
    assert site.run()["numbers"]["public"] == 4
    site.values["counts"]["DESED"]["public"] = 692
    with pytest.raises(UserError, match=r"public 4 instead of 692; .*counts: {DESED: {public: 4}}"):
        site.run()
    site.values["counts"]["DESED"]["public"] = 4
    (root / "audio/eval/public/validation_0.wav").unlink()
    with pytest.raises(UserError, match=r"3 of 4 public clips, .*min_share: 0\.75"):
        site.run()
    shutil.copytree(root / "audio/validation/validation", root / "audio/eval/public", dirs_exist_ok=True)

    short = {"epochs": 1, "epoch_clips": 4, "batch_size": 4, "learning_rate": 0.01, "warmup_steps": 0}
    values |= {"seeds": [1], "select": "last", "frozen": short, "finetune": short}
    plan = Plan(site.config())
    job = plan.downstream_job(SimpleNamespace(task="DESED", checkpoint="full", model="BEATs"), plan.packs(["BEATs"])[0])
    assert DownstreamJob.model_validate(job.model_dump(mode="json")) == job
    model = build_model("tiny", n_classes=7).init_weights(torch.Generator().manual_seed(3))
    save_checkpoint(tmp_path / "weights", model, classes=list("abcdefg"), provenance={})
    out = tmp_path / "o.csv"
    found = tasks.run("DESED", job.options["BEATs"], "tiny", tmp_path / "weights", checkpoint="full", out_csv=out)
    for metric in ("value", "psds1_without_penalty", "clips"):
        assert found[f"public_{metric}"].tolist() == found[metric].tolist(), "the clips are the same here"
    values.pop("public_evaluation")
    assert str(listed) not in Plan(site.config()).task_lists("DESED") and "public" not in site.run()["numbers"]
    assert not any("public" in key for key in identity(site.job()))


# Before a run --------------------------------------------------------------------------------------------------------


def keys(site: Site, target: str = "results/table2.csv") -> list[str]:
    found = problems(site.config(), read_sources([])[1], targets=[target])
    return [str(p) for p in found if p.key.endswith(f"{site.task}.data") or p.key.startswith("downstream.fetch.")]


def test_missing_folders_and_archives_are_found_before_a_run(whole, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    site = site_of(tmp_path, whole)
    assert keys(site) == []
    (tmp_path / "it.tar.gz").rename(tmp_path / "gone.tar.gz")
    assert keys(site, "results/table1.csv") == []
    for target in ("results/table2.csv", "all", f"{tmp_path}/data/tasks/DC16-T2/state.json"):
        [said] = keys(site, target)
        assert said.startswith("downstream.fetch.DC16-T2.prepared.path: ") and "it.tar.gz does not exist" in said
    site.values["fetch"]["DC16-T2"]["prepared"] = {"url": (tmp_path / "none.tar.gz").as_uri()}
    assert "none.tar.gz does not exist" in keys(site)[0]
    site.values["fetch"]["DC16-T2"] = None
    assert "does not exist or is empty" in keys(site)[0]
    site.folder.mkdir()
    (site.folder / "labelvocabulary.csv").touch()
    assert "has no train.json and 2 other lists; complete or remove the folder" in keys(site)[0]
    for split in ("train", "valid", "test"):
        (site.folder / f"{split}.json").touch()
    assert keys(site) == []
    graph = Plan(site.config())
    assert graph.task_lists("DC16-T2") == [str(site.folder / name) for name in (
        "labelvocabulary.csv", "train.json", "valid.json", "test.json"
    )]  # fmt: skip
    assert graph.task_data("DC16-T2") == [f"{tmp_path}/data/tasks/DC16-T2/state.json"]


def test_a_made_folder_that_is_gone_is_found_before_a_run(whole, tmp_path):
    site = site_of(tmp_path, whole)
    state = tmp_path / "data/tasks/DC16-T2/state.json"
    state.parent.mkdir(parents=True)
    state.touch()
    assert "is gone, but" in keys(site)[0] and str(state) in keys(site)[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"fetch": {"MAESTRO": {"prepared": {"url": "https://x.org/"}}}}, ["no address that ends in a file name"]),
        ({"fetch": {"MAESTRO": {"take": "all"}}}, ["downstream.fetch.MAESTRO.take", "'all'"]),
        ({"fetch": {"DESED": {"lists": {"strong": {"url": "https://x.org/a.tsv"}}}}}, ["lists must have an entry"]),
        ({"MAESTRO": {"public_evaluation": True}}, ["public_evaluation is not a key of downstream.MAESTRO"]),
        ({"counts": {"MAESTRO": {"fold9": 3}}}, ["MAESTRO has no number 'fold9'", "fold00"]),
        ({"counts": {"birds": {"train": 3}}}, ["'birds' is no task of the paper"]),
        ({"min_share": 2}, ["downstream.min_share"]),
    ],
)
def test_mistakes_in_the_configuration_are_one_sentence(values, words):
    with pytest.raises(UserError) as caught:
        load({"downstream": values})
    assert all(word in str(caught.value) for word in words), str(caught.value)
