"""Choosing a learning rate: one training per rate of the grid, each judged on clips that it has not seen."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from framekd import checkpoints
from framekd.config import UserError
from framekd.data import ClipSet
from framekd.models import FrameModel
from framekd.pipeline.evaluate import evaluation_clips, score
from framekd.pipeline.strong import Given, label_loss, split, train_one, training_clips
from framekd.train import Diverged, Fit, is_main, launch


def try_rate(given: Given, *, out: str, processes: int = 1) -> None:
    """Train at the rate in ``given.block`` and write how good it was to `out`; a run that diverges has no value."""
    launch(_try_rate, given, Path(out), processes=processes)


def _try_rate(given: Given, out: Path) -> None:
    search, rate = given.block["search"], given.block["recipe"]["learning_rate"]
    clips = training_clips(given.data)
    if search["judged_on"] == "train":
        clips, judges = split(clips, search["share"], seed=search["seed"], purpose="search clips")
    else:
        judges = evaluation_clips(given.data)
    known = {"learning_rate": rate, "criterion": search["criterion"], "clips": len(judges)}

    def finish(model: FrameModel, result: Fit) -> None:
        value = judge(model, judges, search)
        sentence = None if value is not None else "the weights are no numbers after the last step"
        about = {"value": value, "diverged": sentence, **result.provenance, "history": result.history}
        _write(out, known | about)

    try:
        train_one(given, clips, seed=search["seed"], directory=out.parent, finish=finish)
    except Diverged as error:
        if is_main():
            resume = out.parent / ".resume"
            history = [json.loads(line) for line in (resume / "history.jsonl").read_text().splitlines()]
            _write(out, known | {"value": None, "diverged": str(error).split(";")[0], "history": history})
            shutil.rmtree(resume)
            print(f"framekd: {error}")


def judge(model: FrameModel, clips: ClipSet, search: Mapping[str, Any]) -> float | None:
    """PSDS1 (or the loss on labels) of `model` on `clips`; None if its weights are no numbers."""
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        return None
    if search["criterion"] == "loss":
        value = label_loss(model, clips, batch_size=search["batch_size"])
    else:
        found, _ = score([model], clips, median_seconds=search["median_seconds"], batch_size=search["batch_size"])
        value = found[0].at(0.0)
    return value if math.isfinite(value) else None


def choose_rate(paths: Iterable[str], block: Mapping[str, Any], *, out: str, candidates: str) -> None:
    """Write the best of the rates in `paths` to `out`, and all candidates' figures with how it was chosen beside it.

    They are two files, so that a longer grid with the same winner leaves the one that trainings read as it was.
    """
    results = [json.loads(Path(path).read_text()) for path in paths]
    best = choose(results, criterion=block["criterion"])
    figures = [
        {key: result[key] for key in ("learning_rate", "value", "diverged")}
        for result in sorted(results, key=lambda result: result["learning_rate"])
    ]
    which = "training clips held out" if block["judged_on"] == "train" else "evaluation clips"
    what = "highest psds1" if block["criterion"] == "psds1" else "lowest loss"
    how = f"{what} on {best['clips']} {which}, seed {block['seed']}; of equal rates the lower"
    _write(Path(out), {"learning_rate": best["learning_rate"]})
    _write(Path(candidates), {"learning_rate": best["learning_rate"], "chosen_by": how, "candidates": figures})


def choose(results: Sequence[Mapping[str, Any]], *, criterion: str) -> Mapping[str, Any]:
    """The best of `results`: highest psds1 or lowest loss, of equals the lower rate; without a value is worst."""
    whole = [result for result in results if result["value"] is not None]
    if not whole:
        rates = ", ".join(f"{result['learning_rate']:g}" for result in results)
        raise UserError(f"no rate of the search trains without diverging ({rates}); write lower ones into search: grid")
    sign = -1 if criterion == "psds1" else 1
    return min(whole, key=lambda result: (sign * result["value"], result["learning_rate"]))


def _write(path: Path, values: Mapping[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write_text(path, json.dumps(values, indent=1) + "\n")
