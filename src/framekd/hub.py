"""Checkpoints on the Hugging Face hub, or a server of the same protocol (HF_ENDPOINT)."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from framekd.checkpoints import SPEC, WEIGHTS, first_line, save_checkpoint
from framekd.config import UserError
from framekd.models import FrameModel

PREFIX = "hf:"
"""What the name of a model on the hub begins with: hf:USER/NAME, or hf:USER/NAME@REVISION."""


def check_name(name: str) -> None:
    """UserError unless `name` is USER/NAME, with @REVISION or not."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@\S+)?", name):
        raise UserError(f"{name!r} is not the name of a repository; expected USER/NAME, such as {PREFIX}me/beats")


def resolve(name: str | Path) -> str | Path:
    """The folder of a checkpoint on the hub (hf:USER/NAME), fetched if it is not there; any other name as it is."""
    return fetch_checkpoint(name) if isinstance(name, str) and name.startswith(PREFIX) else name


def fetch_checkpoint(name: str) -> Path:
    """Fetch a checkpoint into the hub's own cache (HF_HOME), unless it is there.

    Nothing but the specification and the safetensors file is fetched, and no code is run. Without network, what the
    cache has is used.

    Args:
        name: hf:USER/NAME or hf:USER/NAME@REVISION.
    Returns:
        A folder for :func:`framekd.checkpoints.load_checkpoint`, which checks the weights' SHA-256.
    Raises:
        UserError: the package is missing, or the repository cannot be reached, or holds no checkpoint.
    """
    check_name(name := name.removeprefix(PREFIX))
    repository, _, revision = name.partition("@")
    with sentences(repository) as hub:
        folder = Path(hub.snapshot_download(repository, revision=revision or None, allow_patterns=[SPEC, WEIGHTS]))
    if missing := [file for file in (SPEC, WEIGHTS) if not (folder / file).is_file()]:
        raise UserError(f"{PREFIX}{name} holds no checkpoint of framekd: it has no {missing[0]}.")
    return folder


def push(name: str, model: FrameModel, spec: Mapping[str, Any], files: Sequence[Path], card: Path) -> str:
    """Upload a checkpoint, its exported files and its card in one commit; the repository is made if it is missing.

    The account is that of `hf auth login`, or of the variable HF_TOKEN.

    Args:
        name: USER/NAME.
        files: exported files.
        card: uploaded as README.md.
    Returns:
        The commit's address.
    Raises:
        UserError: the package is missing, or the upload is refused.
    """
    check_name(name)
    with tempfile.TemporaryDirectory() as aside, sentences(name) as hub:
        folder = save_checkpoint(
            aside,
            model,
            classes=spec["classes"],
            clip_classes=spec.get("clip_classes"),
            provenance=spec.get("provenance") or {},
            extra=spec.get("extra"),
        )
        for file in files:
            shutil.copy(file, folder / file.name)
        shutil.copy(card, folder / "README.md")
        hub.create_repo(name, exist_ok=True)
        return str(hub.upload_folder(repo_id=name, folder_path=folder, commit_message="framekd export").commit_url)


@contextmanager
def sentences(repository: str) -> Iterator[Any]:
    """The package huggingface_hub; its errors, and those of the network, become one sentence."""
    try:
        hub = import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise UserError(f"Models on the hub need the package {error.name}: pip install 'framekd[hub]'") from error
    from huggingface_hub import errors

    try:
        yield hub
        return
    except UserError:
        raise
    except errors.RepositoryNotFoundError:
        reason = "there is no such repository, or it is private: log in with `hf auth login`, or set HF_TOKEN"
    except errors.RevisionNotFoundError:
        reason = "it has no such revision"
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled):
        reason = f"it cannot be reached and is not in the cache; a folder with its {SPEC} and {WEIGHTS} works too"
    except errors.LocalTokenNotFoundError:
        reason = "log in with `hf auth login`, or set HF_TOKEN"
    # The bases are the network's errors, whichever library the package uses for them.
    except (errors.HFValidationError, *errors.HfHubHTTPError.__bases__) as error:  # type: ignore[misc]
        status = getattr(getattr(error, "response", None), "status_code", None)
        reason = first_line(error).rstrip(".")
        if status in (401, 403):
            reason = f"access is refused ({status}): log in with `hf auth login`, or set HF_TOKEN"
    except (RuntimeError, ValueError) as error:  # of a large file, by Git LFS or by the package hf_xet
        reason = f"a large file was not taken ({first_line(error.__cause__ or error)})"
    if "xet-write-token" in reason:  # a server that has no Xet
        reason += "; HF_HUB_DISABLE_XET=1 sends large files by Git LFS"
    raise UserError(f"{PREFIX}{repository}: {reason}.")
