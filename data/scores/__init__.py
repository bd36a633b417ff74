"""Scores of caption–image pairs that another program computed: the files that they come in, and which pair is where in them."""
