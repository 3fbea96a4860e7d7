"""One table of what values are: how a file writes them, and what they mean.

Each kind becomes a column of one wide table. `texts` are what a CSV file holds, `values` what they are in Python. A
JSON line holds the text too, unless `is_json` says that JSON has this type itself; a Parquet file holds the value.
"""

from dataclasses import dataclass
from datetime import UTC, date, datetime

import pyarrow as pa

from slml.contract import Category, Numeric, TimeParts


@dataclass(frozen=True)
class Kind:
    "A column: texts of a file, the values that they stand for, and the type that a contract gives it."

    name: str
    type: str  # of the contract
    texts: tuple[str, ...]
    values: tuple[object, ...]
    feature: type  # Numeric, Category or TimeParts
    arrow: pa.DataType  # of the Parquet twin
    is_json: bool = False  # whether a JSON line holds the value and not the text


def _at(*parts: int) -> datetime:
    return datetime(*parts)


TEXT, INT, FLOAT, CLOCK = pa.string(), pa.int64(), pa.float64(), pa.timestamp("us")
KINDS = (
    Kind("whole", "int", ("7", "-3", "", "12", "1000"), (7, -3, None, 12, 1000), Numeric, INT, True),
    Kind("fraction", "float", ("1.5", "-0.25", "NA", "1e3", "12.5"), (1.5, -0.25, None, 1e3, 12.5), Numeric, FLOAT,
         True),
    Kind("large", "float", ("5400000000.25", "5400000001.5", "5400000999.75", "5400000500.5", "5400000100.125"),
         (5400000000.25, 5400000001.5, 5400000999.75, 5400000500.5, 5400000100.125), Numeric, FLOAT, True),
    Kind("dollars", "float", ("$1,200.50", "$99.95", "$1,000,000.00", "$0.10", "$12.00"),
         (1200.5, 99.95, 1e6, 0.1, 12.0), Numeric, FLOAT),
    Kind("decimal_comma", "float", ("98,63", "34,75", "1,5", "0,25", "-7,125"), (98.63, 34.75, 1.5, 0.25, -7.125),
         Numeric, FLOAT),
    Kind("account", "int", ("9557580359308891", "9557580359308892", "9557580359308893", "9435702679108877", "11"),
         (9557580359308891, 9557580359308892, 9557580359308893, 9435702679108877, 11), Category, INT, True),
    Kind("zip", "text", ("00237", "0237", "20001", "01000", "00001"), ("00237", "0237", "20001", "01000", "00001"),
         Category, TEXT),
    Kind("plate", "text", ("4E29", "9E20", "5E12", "12", "7E1"), ("4E29", "9E20", "5E12", "12", "7E1"), Category, TEXT),
    Kind("country", "text", ("NA", "DE", "FR", "NO", ""), ("NA", "DE", "FR", "NO", None), Category, TEXT),
    Kind("sale_type", "text", ("WD ", "New", " COD", "WD ", "Con LD"), ("WD", "New", "COD", "WD", "Con LD"),
         Category, TEXT),
    Kind("open", "bool", ("true", "false", "true", "", "false"), (True, False, True, None, False), Numeric, pa.bool_(),
         True),
    Kind("day", "date", ("2024-02-29", "1999-12-31", "2024-07-01", "", "2000-01-01"),
         (date(2024, 2, 29), date(1999, 12, 31), date(2024, 7, 1), None, date(2000, 1, 1)), TimeParts, pa.date32()),
    Kind("short_year", "date", ("31-01-24", "15-06-08", "29-02-24", "01-12-99", "13-07-15"),
         (date(2024, 1, 31), date(2008, 6, 15), date(2024, 2, 29), date(1999, 12, 1), date(2015, 7, 13)), TimeParts,
         pa.date32()),
    Kind("clock", "timestamp", ("2024-07-01 07:30:00", "2024-03-10 02:30:00", "2023-12-31 23:59:59.999999", "n/a",
                                "2024-07-01 00:00:00"),
         (_at(2024, 7, 1, 7, 30), _at(2024, 3, 10, 2, 30), _at(2023, 12, 31, 23, 59, 59, 999999), None,
          _at(2024, 7, 1)), TimeParts, CLOCK),
    Kind("compact", "timestamp", ("20141013T000000", "20150101T083000", "20160229T235959", "20141013T120000",
                                  "20200101T000001"),
         (_at(2014, 10, 13), _at(2015, 1, 1, 8, 30), _at(2016, 2, 29, 23, 59, 59), _at(2014, 10, 13, 12),
          _at(2020, 1, 1, 0, 0, 1)), TimeParts, CLOCK),
    Kind("instant", "timestamp", ("2024-07-01T07:30:00-04:00", "2024-11-03T01:30:00-04:00", "2024-11-03T01:30:00-05:00",
                                  "2024-01-01T00:00:00Z", "2024-03-10T03:00:00-04:00"),
         (datetime(2024, 7, 1, 11, 30, tzinfo=UTC), datetime(2024, 11, 3, 5, 30, tzinfo=UTC),
          datetime(2024, 11, 3, 6, 30, tzinfo=UTC), datetime(2024, 1, 1, tzinfo=UTC),
          datetime(2024, 3, 10, 7, tzinfo=UTC)), TimeParts, pa.timestamp("us", "UTC")),
)  # fmt: skip
