"""The original's files: `files` and `weights` convert checkpoints both ways, `settings` and `recipe` translate its JSON configs."""
