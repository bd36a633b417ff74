"""What all that is stored shares: `atomic` files appear whole or not at all, `lmdb_env` opens LMDB environments, `contents` digests
their records, `columns` holds large tables in memory-mapped arrays, `text_files` reads and writes lines, JSON and YAML,
and `shapes` says what such a file must hold.
"""
