"""Which job made a result, with which configuration, and what has changed since."""

from framekd.explain.differences import Difference, differences
from framekd.explain.explanation import (
    Coverage,
    Explanation,
    Pair,
    Training,
    configuration,
    explain,
    explain_pair,
    paper_of,
    read_coverage,
)
from framekd.explain.lines import pair_text, text
from framekd.explain.planned import PATTERNS, job_of, reads
from framekd.explain.records import Record, Records, find, target_of
from framekd.explain.rerun import Rerun, ask_snakemake, job_counts

__all__ = [
    "PATTERNS",
    "Coverage",
    "Difference",
    "Explanation",
    "Pair",
    "Record",
    "Records",
    "Rerun",
    "Training",
    "ask_snakemake",
    "configuration",
    "differences",
    "explain",
    "explain_pair",
    "find",
    "job_counts",
    "job_of",
    "pair_text",
    "paper_of",
    "read_coverage",
    "reads",
    "target_of",
    "text",
]
