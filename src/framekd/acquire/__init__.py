"""AudioSet in: label files, the plan of wanted clips, their audio shard by shard, and the check before training."""

from framekd.acquire.coverage import check_coverage
from framekd.acquire.export import export_folder, export_hdf5
from framekd.acquire.labels import fetch_labels
from framekd.acquire.planning import plan_clips, shard_of
from framekd.acquire.shard import RateLimited, acquire_shard

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
