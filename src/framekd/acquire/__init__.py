"""Getting AudioSet: label files, the table of wanted clips, their audio, and the check before training."""

from framekd.acquire.lists import check_coverage, fetch_labels, plan_clips, shard_of
from framekd.acquire.shard import RateLimited, acquire_shard
from framekd.acquire.sources import export_folder, export_hdf5

__all__ = [
    "RateLimited",
    "acquire_shard",
    "check_coverage",
    "export_folder",
    "export_hdf5",
    "fetch_labels",
    "plan_clips",
    "shard_of",
]
