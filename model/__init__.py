"""What is computed: the two towers, the objectives, the metrics."""
