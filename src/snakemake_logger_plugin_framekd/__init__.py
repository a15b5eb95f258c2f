"""A logger plugin for Snakemake, which finds it by the name of this package: ``snakemake --logger framekd``."""

from snakemake_logger_plugin_framekd.progress import LogHandler

__all__ = ["LogHandler"]
