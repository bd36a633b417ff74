"""What is computed: the two towers and the re-ranker, objectives, retrieval, metrics, region extractors."""
