"""Choosing a learning rate: one training per rate of the grid, each judged on clips that it has not seen."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from framekd.config import UserError
from framekd.data import ClipSet
from framekd.files import write_json
from framekd.jobs import ChooseJob, SearchJob
from framekd.models import FrameModel
from framekd.pipeline.evaluate import score
from framekd.pipeline.train import Inputs, label_loss, split, strong_clips, train_one
from framekd.train import Diverged, Fit, is_main, launch


def try_rate(job: SearchJob, *, inputs: Inputs, out: str, processes: int = 1) -> None:
    """Train at the rate of ``job.train`` and write how good it is to `out`; a run that diverges has no value.

    Args:
        job: what is trained, and how it is judged.
        inputs: as :func:`framekd.pipeline.train.train_strong`, with eval_strong.
        out: JSON with the rate, its value, the number of judging clips and the history.
        processes: how many train the model together.
    """
    launch(_try_rate, job, dict(inputs), Path(out), processes=processes)


def _try_rate(job: SearchJob, inputs: Inputs, out: Path) -> None:
    search, recipe = job.search, job.train.recipes[job.model]
    clips = strong_clips(inputs)
    if search.judged_on == "train":
        clips, judges = split(clips, search.share, seed=search.seed, purpose="search clips")
    else:
        judges = strong_clips(inputs, "eval")
    known = {"learning_rate": recipe.rate(job.model), "criterion": search.criterion, "clips": len(judges)}

    def finish(model: FrameModel, result: Fit) -> None:
        value = judge(model, judges, job)
        sentence = None if value is not None else "the weights are not finite after the last step"
        about = {"value": value, "diverged": sentence, **result.provenance, "history": result.history}
        write_json(out, known | about)

    start = Path(inputs["weights"][0]).parent
    try:
        train_one(job.train, recipe, clips, inputs, start=start, seed=search.seed, directory=out.parent, finish=finish)
    except Diverged as error:
        if is_main():
            resume = out.parent / ".resume"
            history = [json.loads(line) for line in (resume / "history.jsonl").read_text().splitlines()]
            write_json(out, known | {"value": None, "diverged": str(error).split(";")[0], "history": history})
            shutil.rmtree(resume)
            print(f"framekd: {error}")


def judge(model: FrameModel, clips: ClipSet, job: SearchJob) -> float | None:
    """PSDS1 (or the loss on labels) of `model` on `clips`; None if its weights are not finite."""
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        return None
    if job.search.criterion == "loss":
        value = label_loss(model, clips, batch_size=job.batch_size)
    else:
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
    figures = [
        {key: result[key] for key in ("learning_rate", "value", "diverged")}
        for result in sorted(found, key=lambda result: result["learning_rate"])
    ]
    which = "training clips held out" if search.judged_on == "train" else "evaluation clips"
    what = "highest psds1" if search.criterion == "psds1" else "lowest loss"
    how = f"{what} on {best['clips']} {which}, seed {search.seed}; of equal rates the lower"
    write_json(rate, {"learning_rate": best["learning_rate"]})
    write_json(candidates, {"learning_rate": best["learning_rate"], "chosen_by": how, "candidates": figures})


def choose(results: Sequence[Mapping[str, Any]], *, criterion: str) -> Mapping[str, Any]:
    """The best of `results`: highest psds1 or lowest loss, of equals the lower rate; no value is the worst."""
    whole = [result for result in results if result["value"] is not None]
    if not whole:
        rates = ", ".join(f"{result['learning_rate']:g}" for result in results)
        raise UserError(f"no rate of the search trains without diverging ({rates}); write lower ones into search: grid")
    sign = -1 if criterion == "psds1" else 1
    return min(whole, key=lambda result: (sign * result["value"], result["learning_rate"]))
