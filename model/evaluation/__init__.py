"""How good retrieval is: `recall` counts, `statistics` gives intervals and tests, `tables` are what is printed and stored; `split`
and `tasks` evaluate a model on a data set, `reranked` with a re-ranker; `failures` lists what was not found; `published` and `reproduction` are the published tables.
"""
