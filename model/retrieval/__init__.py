"""Encode once, search, rank again: `sources` are the images or captions of a database, `encoding` runs a tower over them,
`indexing` stores what it gives, `retriever` answers queries, `pair_scoring` and `reranking` order a short list anew, `mining` draws
hard negatives from an index, `contact_sheet` draws what was found.
"""
