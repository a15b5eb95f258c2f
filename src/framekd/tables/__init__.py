"""The paper's tables from the evaluations' rows, with the published numbers. All values are percent."""

from framekd.tables.build import orderings, significance, table1, table2, teachers
from framekd.tables.output import (
    MINIATURE_NOTE,
    TITLES,
    notes_of,
    wide_settings,
    wide_table2,
    write_csv,
    write_significance,
    write_table1,
    write_table2,
    write_teachers,
)
from framekd.tables.rows import (
    AVERAGE,
    CHECKPOINT_TITLES,
    ENSEMBLE,
    MODES,
    PUBLISHED,
    TASKS,
    Paths,
    in_order,
    title_of,
)

__all__ = [
    "AVERAGE",
    "CHECKPOINT_TITLES",
    "ENSEMBLE",
    "MINIATURE_NOTE",
    "MODES",
    "PUBLISHED",
    "TASKS",
    "TITLES",
    "Paths",
    "in_order",
    "notes_of",
    "orderings",
    "significance",
    "table1",
    "table2",
    "teachers",
    "title_of",
    "wide_settings",
    "wide_table2",
    "write_csv",
    "write_significance",
    "write_table1",
    "write_table2",
    "write_teachers",
]
