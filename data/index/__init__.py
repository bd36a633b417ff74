"""Feature indexes, the vectors that a model made of a database: `reader` opens one, `writer` builds one, `editor` adds and deletes;
`layout` and `store` are its blocks on disk, `dtypes` how vectors are stored, `derived` the files that a search backend keeps
beside it. Who searches one is `data.search`.
"""
