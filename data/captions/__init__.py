"""Text databases, tokenised captions in UNITER's layout: `db` reads one, `writer` writes one, `build` makes one from annotations,
`tables` are its JSON tables as columns; `tokenizers` cut texts into word pieces, `vocabulary` trains their words.
"""
