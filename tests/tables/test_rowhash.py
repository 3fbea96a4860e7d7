"""The row hash is stored in every cleaned table: its values must never change."""

import datetime as dt
import time
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from slml.tables.rowhash import row_hash

DAY = dt.date(2023, 1, 31)
MOMENT = dt.datetime(2023, 1, 31, 8, 30, 0, 250_000)

PINNED = [
    (
        pa.array([0, 1, -1, 2**63 - 1, None]),
        [6017775124710473527, 3395948882924712079, 3377987053190985883, 3811431516645549711, 8309773617129903079],
    ),
    (pa.array([2**64 - 1], pa.uint64()), [3377987053190985883]),
    (pa.array([True, False, None]), [3395948882924712079, 6017775124710473527, 8309773617129903079]),
    (
        pa.array([0.0, -0.0, 1.5, float("nan"), None]),
        [6017775124710473527, 6017775124710473527, 3820434292518811679, 3004765777821823231, 8309773617129903079],
    ),
    (
        pa.array(["", "a", "taxi", "exactly8", "Dupont Circle", "é", None]),
        [
            6017775124710473527,
            7145569789626096635,
            8823317305725818099,
            1520204962247278898,
            5821439977017624569,
            6934146230114599235,
            8309773617129903079,
        ],
    ),
    (pa.array([b"\x00\xff", b""]), [4985632647851149300, 6017775124710473527]),
    (pa.array([DAY]), [6034066999369420338]),
    (pa.array([MOMENT], pa.timestamp("us")), [4332695611759000905]),
    (pa.array([MOMENT], pa.timestamp("ms", "UTC")), [4332695611759000905]),
    (pa.array([MOMENT.time()], pa.time64("us")), [7679780562463935347]),
    (pa.array([Decimal("1.10"), None]), [5977969743954379598, 8309773617129903079]),
    (pa.array([[1, 2], [], None]), [3589504763505989528, 6017775124710473527, 8309773617129903079]),
    (pa.array([{"a": 1, "b": "x"}, None]), [6053384507620960365, 8309773617129903079]),
    (pa.nulls(1), [8309773617129903079]),
]
ROWS = [5085167944900136180, 6328472675874847058, 7249710715036790609]


@pytest.mark.parametrize(("values", "expected"), PINNED, ids=str)
def test_values_are_pinned_for_ever(values, expected):
    assert row_hash([values]).to_pylist() == expected


def test_rows_of_several_columns_are_pinned():
    columns = [pa.array([1, 2, None]), pa.array(["a", None, "hello world"]), pa.array([0.5, -0.0, None])]
    assert row_hash(columns).to_pylist() == ROWS


@given(st.lists(st.tuples(st.none() | st.integers(-(2**63), 2**63 - 1), st.none() | st.text()), min_size=1), st.data())
@settings(max_examples=50, deadline=None)
def test_chunks_and_neighbours_do_not_matter(rows, data):
    table = pa.table(
        {"a": pa.array([a for a, _ in rows], pa.int64()), "b": pa.array([b for _, b in rows], pa.string())}
    )
    hashes = row_hash(table.columns)
    cut = data.draw(st.integers(0, len(rows)))
    parts = pa.concat_tables([table.slice(0, cut), table.slice(cut)])
    assert row_hash(parts.columns).equals(hashes)
    alone = data.draw(st.integers(0, len(rows) - 1))
    assert row_hash(table.slice(alone, 1).columns)[0] == hashes[alone]
    assert hashes.null_count == 0
    assert min(hashes.to_pylist()) >= 0


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint8(), pa.int16(), pa.int32(), pa.uint32(), pa.uint64()], ids=str)
def test_the_width_of_an_integer_does_not_matter(kind):
    assert row_hash([pa.array([0, 1, 127, None], kind)]).equals(row_hash([pa.array([0, 1, 127, None], pa.int64())]))


@pytest.mark.parametrize("kind", [pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())], ids=str)
def test_the_layout_of_a_text_does_not_matter(kind):
    texts = pa.array(["", "a", None, "exactly8", "nine chars", "é", "x" * 1000])
    assert row_hash([texts.cast(kind)]).equals(row_hash([texts]))


def test_texts_that_share_their_words_differ():
    texts = ["", "\0", "\0\0", "a", "a\0", "abcdefgh", "abcdefgh\0", "abcdefghabcdefgh", "bcdefgha"]
    assert len(set(row_hash([pa.array(texts)]).to_pylist())) == len(texts)


def test_ten_million_keys_differ_and_take_little_time():
    keys = pa.array(np.arange(10_000_000))
    start = time.perf_counter()
    hashes = row_hash([keys]).to_numpy()
    seconds = time.perf_counter() - start
    assert len(np.unique(hashes[:1_000_000])) == 1_000_000
    assert seconds < 5, f"{seconds:.1f} s for 10 million keys; about 0.4 s are usual"


def test_every_bit_is_fair():
    hashes = row_hash([pa.array(np.arange(200_000) * 1024)]).to_numpy()
    ones = [((hashes >> bit) & 1).mean() for bit in range(63)]
    assert min(ones) > 0.495
    assert max(ones) < 0.505
