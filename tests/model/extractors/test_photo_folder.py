"""What stands beside the regions of photographs, and is not what it should be."""

import json

import pytest

from data.errors import BadInput
from data.regions.db import BoxOptions
from data.regions.extractor_record import ExtractorRecord
from model.extractors.photo_folder import made_with, rebuilt_extractor


@pytest.mark.parametrize(("settings", "message"), [
    ({"list": []}, r"report.json: settings.list: found a list, expected a text or null; delete "),
    ({"compressed": "no"}, "settings.compressed: found the text 'no', expected true or false"),
    ({"image_key": 5}, "settings.image_key: found 5, expected a text"),
])  # fmt: skip
def test_settings_of_another_kind_are_refused(tmp_path, settings, message):
    (tmp_path / "report.json").write_text(json.dumps({"settings": {"photos": "photos", "list": None, "compressed": False} | settings}))
    with pytest.raises(BadInput, match=message):
        made_with(tmp_path)


@pytest.mark.parametrize(("options", "message"), [
    ({"boxes": 5}, "^db: was made by random-conv --boxes 5, and no extractor here has the option boxes; "),
    ({"__class__": 5}, "no extractor here has the option __class__"),
    ({"weights": "elsewhere"}, "no extractor here has the option weights"),
    ({"size": "64"}, "^db: was made by random-conv, and its options: size: found the text '64', expected a whole number; "),
    ({"max_bb": None}, "max_bb: found null, expected a whole number"),
    ({"size": 10**9}, "cannot be loaded here: random-conv: size is 1000000000, expected 32 to 16,384"),
])  # fmt: skip
def test_an_extractor_of_other_options_is_refused(options, message):
    with pytest.raises(BadInput, match=message):
        rebuilt_extractor(ExtractorRecord("random-conv", options), BoxOptions(), None, "db", "was made by")
