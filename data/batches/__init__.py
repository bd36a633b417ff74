"""From databases to batches of tensors: `pairs` are caption–image pairs of one database or several, `samplers` their order,
`masking` what objectives hide, `batch` tensors without padding (`ragged`), `loader` the processes that make them ahead of training;
`teacher` holds a re-ranker's scores, `identity` says whether a resumed run's data are what they were.
"""
