"""What scripts/prepare.py makes of photographs, and the commands that it prints."""
