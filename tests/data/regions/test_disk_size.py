"""How large an image DB is, and what share its soft labels have."""

import lmdb
import numpy as np
import pytest

from data.errors import BadInput
from data.regions.db import BoxOptions, Regions
from data.regions.disk_size import region_bytes, size_of_regions
from data.regions.writer import RegionWriter


def write(folder, labels, compressed=False, images=60, regions=20):
    rng = np.random.default_rng(0)
    with RegionWriter(folder, compressed=compressed) as writer:
        for n in range(images):
            arrays = (rng.random((regions, width)).astype(np.float16) for width in (512, 6))
            soft = rng.random((regions, labels)).astype(np.float16) if labels else None
            writer.add(f"{n}.npz", Regions(*arrays, np.ones(regions, np.float16), soft))


@pytest.mark.parametrize("labels", [0, 300])
def test_the_size_on_paper_is_that_on_the_disk(tmp_path, labels):
    write(tmp_path / "db", labels)
    there, paper = size_of_regions(tmp_path / "db", BoxOptions()), region_bytes(60, 20, 512, labels)
    assert there.bytes == (tmp_path / "db/feat_th0.2_max100_min10/data.mdb").stat().st_size
    assert paper.bytes == pytest.approx(there.bytes, rel=0.1)
    assert paper.soft_labels == pytest.approx(there.soft_labels, rel=0.1) and bool(there.soft_labels) == bool(labels)
    assert there.soft_labels >= 60 * 20 * labels * 2


def test_the_paper_knows_the_share_of_the_soft_labels():
    size = region_bytes(1000, 36, 2048, 1601)
    assert size.soft_labels / size.bytes == pytest.approx(1601 / (2048 + 7 + 1601)) == pytest.approx(0.44, abs=0.003)


def test_what_is_compressed_or_absent_does_not_say_it(tmp_path):
    write(tmp_path / "db", 30, compressed=True, images=3)
    assert size_of_regions(tmp_path / "db", BoxOptions()).soft_labels is None
    assert size_of_regions(tmp_path / "no", BoxOptions()) is None
    with pytest.raises(BadInput, match=r"feat_th0.5_max100_min10.*, found .*feat_th0.2_max100_min10"):
        size_of_regions(tmp_path / "db", BoxOptions(conf_th=0.5))


def test_a_name_that_is_no_text_is_one_line(tmp_path):
    write(tmp_path / "db", 30, images=3)
    with lmdb.open(str(tmp_path / "db/feat_th0.2_max100_min10"), lock=False) as env, env.begin(write=True) as txn:
        txn.put(b"!\xff.npz", b"")
    with pytest.raises(BadInput, match=r"feat_th0.2_max100_min10: cannot be read \('utf-8' codec"):
        size_of_regions(tmp_path / "db", BoxOptions())
