"""One command each: its options, its ``main``, and what it prints."""
