"""Files of public sources: fetched with resume, compared with a checksum, unpacked (``scripts/download.py``)."""
