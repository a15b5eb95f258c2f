"""The stages of the graph: one function per rule, which takes a job, the files it reads and the files it writes."""

from framekd.pipeline.log import job_log, named

__all__ = ["job_log", "named"]
