"""The recorder: which numbers are written, pictures that stay with their rows, errors that are told at once."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from data_examples import ARM, assert_is_example, check_as_lerobot, record

from vla_agents.data import create_dataset, lerobot, open_dataset
from vla_agents.errors import DatasetError


def test_the_label_is_told_beside_the_numbers(tmp_path: Path) -> None:
    with create_dataset(tmp_path / "d", ARM) as writer:
        for k, given in enumerate(({}, {"executed": True}, {"commanded": True})):
            record(writer, k, **given)
    (file,) = (tmp_path / "d").glob("meta/episodes/*/*.parquet")
    assert pq.read_table(file)[lerobot.LABEL].to_pylist() == ["sent", "commanded", "sent"]


def test_a_dataset_of_an_older_version_can_be_continued(tmp_path: Path) -> None:
    """One without the columns that came later: it gets more episodes, and keeps its columns."""
    with create_dataset(tmp_path / "d", ARM) as writer:
        record(writer, 0)
    later = {lerobot.COMMANDED, lerobot.REPEATED}
    info_file = tmp_path / "d/meta/info.json"
    info = json.loads(info_file.read_text())
    info["features"] = {key: value for key, value in info["features"].items() if key not in later}
    info_file.write_text(json.dumps(info))
    for pattern in ("data/*/*.parquet", "meta/episodes/*/*.parquet"):
        (file,) = (tmp_path / "d").glob(pattern)
        table = pq.read_table(file)
        old = [c for c in table.column_names if c not in later | {lerobot.HAS_COMMANDED, lerobot.LABEL}]
        pq.write_table(table.select(old), file)
    with create_dataset(tmp_path / "d", ARM, resume=True) as writer:
        record(writer, 1)
        record(writer, 2, executed=True)
        with pytest.raises(DatasetError, match=r"has no column 'commanded_action'.*older version"):
            record(writer, 3, commanded=True)
    assert check_as_lerobot(tmp_path / "d") == 3
    reader = open_dataset(tmp_path / "d")
    for k in range(3):
        assert_is_example(reader.read(k), k, executed=k == 2)
