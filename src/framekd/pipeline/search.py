"""Choosing a learning rate: one training per rate of the grid, each judged on clips that it has not seen."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from framekd.config import Search
from framekd.data import ClipSet
from framekd.files import write_json
from framekd.jobs import ChooseJob, SearchJob, Step2Job, TrainJob
from framekd.models import FrameModel
from framekd.pipeline.evaluate import score
from framekd.pipeline.kept import give_back, keep, key
from framekd.pipeline.train import (
    Inputs,
    clip_soft_labels,
    label_loss,
    split,
    strong_clips,
    train_one,
    train_one_weak,
    weak_clips,
)
from framekd.pipeline.watch import weak_map
from framekd.rates import choice, choose
from framekd.train import Diverged, Fit, is_main, launch


def try_rate(job: SearchJob, *, inputs: Inputs, out: str, processes: int = 1) -> None:
    """Train at the rate of ``job.train`` and write how good it is to `out`; a run that diverges has no value.

    Args:
        job: what is trained, and how it is judged.
        inputs: as :func:`framekd.pipeline.train.train_strong`, with eval_strong where evaluation clips judge, or (Step
            2) as :func:`framekd.pipeline.train.train_weak`.
        out: JSON with the rate, its value, the number of judging clips and the history.
        processes: how many train the model together.
    """
    name = key(job, inputs)
    if not give_back([out], name):
        launch(_try_rate, job, dict(inputs), Path(out), name, processes=processes)


def _try_rate(job: SearchJob, inputs: Inputs, out: Path, name: str) -> None:
    search, train = job.search, job.train
    clips = weak_clips(inputs) if isinstance(train, Step2Job) else strong_clips(inputs)
    if isinstance(search, Search) and search.judged_on == "eval":
        judges = strong_clips(inputs, "eval")
    else:
        clips, judges = split(clips, search.share, seed=search.seed, purpose="search clips")
    rate = train.recipes[job.model].rate(job.model)
    known = {"learning_rate": rate, "criterion": search.criterion, "clips": len(judges)}

    def finish(model: FrameModel, result: Fit) -> None:
        value = judge(model, judges, job)
        sentence = None if value is not None else "the weights are not finite after the last step"
        about = {"value": value, "diverged": sentence, **result.provenance, "history": result.history}
        write_json(out, known | about)
        keep([out], name)

    start = Path(inputs["weights"][0]).parent
    try:
        if isinstance(train, TrainJob):
            of_strong = train.recipes[job.model]
            train_one(
                train, of_strong, clips, inputs, start=start, seed=search.seed, directory=out.parent, finish=finish
            )
        else:
            of_weak = train.recipes[job.model]
            soft = clip_soft_labels(inputs, clips) if of_weak.distillation_weight > 0 else None
            train_one_weak(train, of_weak, clips, soft, start=start, directory=out.parent, finish=finish)
    except Diverged as error:
        if is_main():
            resume = out.parent / ".resume"
            history = [json.loads(line) for line in (resume / "history.jsonl").read_text().splitlines()]
            write_json(out, known | {"value": None, "diverged": str(error).split(";")[0], "history": history})
            shutil.rmtree(resume)
            print(f"framekd: {error}")


def judge(model: FrameModel, clips: ClipSet, job: SearchJob) -> float | None:
    """PSDS1, mAP or the loss on labels of `model` on `clips`; None if its weights are not finite."""
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        return None
    if job.search.criterion == "loss":
        kind: Literal["strong", "weak"] = "weak" if isinstance(job.train, Step2Job) else "strong"
        value = label_loss(model, clips, batch_size=job.batch_size, kind=kind)
    elif job.search.criterion == "map":
        value = weak_map(model, clips, batch_size=job.batch_size).value
    else:
        assert job.median_seconds is not None
        found, _ = score([model], clips, median_seconds=job.median_seconds, batch_size=job.batch_size)
        value = found[0].at(0.0)
    return value if math.isfinite(value) else None


def choose_rate(job: ChooseJob, *, results: Sequence[str], rate: str, candidates: str) -> None:
    """Write the best of the tried rates to `rate`, and the figures of all of them to `candidates`.

    They are two files, so that a longer grid with the same winner does not change the one that trainings read.
    """
    search = job.search
    found = [json.loads(Path(path).read_text()) for path in results]
    best = choose(found, criterion=search.criterion)
    on_eval = isinstance(search, Search) and search.judged_on == "eval"
    which = "evaluation clips" if on_eval else "training clips held out"
    what = "lowest loss" if search.criterion == "loss" else f"highest {search.criterion}"
    how = f"{what} on {best['clips']} {which}, seed {search.seed}; of equal rates the lower"
    write_json(rate, {"learning_rate": best["learning_rate"]})
    write_json(candidates, choice(best, found, how=how))
