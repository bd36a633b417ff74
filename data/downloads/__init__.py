"""Files of public sources: fetched with resume, compared with a checksum, unpacked (``scripts/download.py``); and names on the
Hugging Face hub (`data.downloads.hub`)."""
