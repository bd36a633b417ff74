"""What a stored database is and what is wrong with it: for scripts/inspect_db.py and whoever has just made one.

`inspection.inspect_database` tells which kind of database a folder holds and returns a `report.Report` on it; `images`,
`captions` and `indexes` know one kind each; `records` reads many records in processes of their own.
"""
