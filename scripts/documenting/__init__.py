"""The tables of README.md and docs/ that the code knows, and where they stand in the pages."""
