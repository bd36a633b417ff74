"""What the databases of a dataset hold, as digests by which a run recognises them."""

from __future__ import annotations

from collections.abc import Collection

from data.batches.gallery import GalleryPairs
from data.batches.pairs import PairDataset


def digests_of_pairs(pairs: PairDataset, role: str = "") -> dict[str, str]:
    """Digests of the databases of a dataset, each under a name for people.

    Args:
        role: what the dataset is for, for instance ``training``; the names begin with it, where it is given

    Returns: for instance ``{"training captions": "1f…", "training regions": "8a…"}``; joined databases share one entry, and
    those of galleries have entries of their own, ``gallery captions`` and ``gallery regions``
    """
    if isinstance(pairs, GalleryPairs):
        captions = [part.captions for part in pairs.galleries]
        regions = [*(part.regions for part in pairs.galleries), *pairs.pictures]
        found = {f"{role} gallery captions": captions, f"{role} gallery regions": regions}
        of_galleries = {name.strip(): " ".join(each.fingerprint() for each in databases) for name, databases in found.items()}
        return digests_of_pairs(pairs.split, role) | of_galleries
    parts = [part for part, _ in pairs.parts]
    digests = {
        f"{role} captions": [part.captions.fingerprint() for part in parts],
        f"{role} regions": [part.regions.fingerprint() for part in parts],
    }
    if pairs.image_captions is not None:
        digests[f"{role} image captions"] = [pairs.image_captions.captions.fingerprint()]
    return {name.strip(): " ".join(found) for name, found in digests.items()}


def pairs_changed(changed: Collection[str], role: str) -> bool:
    """Whether the captions or the regions of one role are among the names of data that have changed."""
    return any(f"{role} {kind}" in changed for kind in ("captions", "regions"))
