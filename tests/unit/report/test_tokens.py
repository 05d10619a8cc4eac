import pyarrow as pa
import pytest

from scratchlm.report.tokens import Repeated, read_repeated
from scratchlm.run.errors import UserError
from scratchlm.run.files import write_table


def test_test_messages_that_are_also_in_train_are_counted_by_their_text(tmp_path):
    schema = pa.schema({"text": pa.string()})
    for split, texts in {"train": ["a b", "c", "a b"], "val": ["d"], "test": ["a b", "a  b", "c", "c", "d"]}.items():
        write_table(tmp_path / f"{split}.parquet", [{"text": text} for text in texts], schema)
    assert read_repeated(tmp_path) == Repeated(3, 5)
    (tmp_path / "train.parquet").unlink()
    with pytest.raises(UserError, match="train.parquet"):
        read_repeated(tmp_path)
