import json

import pytest

from data.errors import BadInput
from data.storage.json_digest import check_digest, with_digest

VALUES = {"width": 8, "towers": {"text": [1, 2.5], "image": None}, "name": "Ä"}


@pytest.mark.parametrize("change", [
    lambda v: v.update(width=9), lambda v: v.pop("width"), lambda v: v.update(Width=v.pop("width")), lambda v: v["towers"]["text"].reverse(),
    lambda v: v.update(more=1), lambda v: v.update(digest="0" * 16), lambda v: v.update(digest=None),
])  # fmt: skip
def test_what_was_changed_is_refused(change):
    values = json.loads(json.dumps(with_digest(VALUES)))
    check_digest("f.json", values, "copy it")
    change(values)
    with pytest.raises(BadInput, match=r"f\.json: not what was written, by its digest; copy it"):
        check_digest("f.json", values, "copy it")


def test_order_and_what_is_left_out_do_not_count():
    values = dict(reversed(with_digest(VALUES, without=["name"]).items()))
    check_digest("f.json", values | {"name": "other"}, "", without=["name"])
    check_digest("f.json", VALUES, "")  # of before: it has none


def test_another_file_counts_where_it_is_given():
    values = with_digest(VALUES, more=b"words")
    check_digest("f.json", values, "", more=b"words")
    with pytest.raises(BadInput, match="not what was written"):
        check_digest("f.json", values, "", more=b"wordz")
