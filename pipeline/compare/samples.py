"""A stage's samples.parquet, whichever version of priorlab wrote it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pipeline.config.evaluation import EvaluateConfig

if TYPE_CHECKING:
    import pyarrow as pa


def with_current_columns(table: pa.Table, protocol: EvaluateConfig) -> pa.Table:
    """The samples of a stage with `greedy` and `temperature`.

    Older files number a problem's greedy response -1, where it would count as one more sample, and have no other temperature than the
    protocol's.
    """
    import pyarrow as pa  # not needed to plan or to answer a no-op
    import pyarrow.compute as pc

    if "greedy" in table.column_names or "sample" not in table.column_names:
        return table
    place = table.column_names.index("sample")
    greedy = pc.less(table["sample"], 0)
    number = pc.if_else(greedy, None, table["sample"]).cast(pa.int32())
    table = table.set_column(place, "sample", number).add_column(place + 1, "greedy", greedy)
    return table.add_column(place + 2, "temperature", pc.if_else(greedy, 0.0, protocol.temperature))
