"""Answering many at once: queries in micro-batches, indexes that change on disk, the gallery's pictures.
Nothing here knows of HTTP; ``scripts/serving`` does."""
