"""What is published of a checkpoint: its files, and the card that says what it is."""
