"""Image databases: what a detector found in each picture, and from where such features come.

`db.RegionDB` reads one, `writer.RegionWriter` writes one, `codec` is one record as bytes. `photos` finds and reads photographs;
`precomputed` reads the files of features that others have published, which `conversion` turns into `db.Regions`.
"""
