"""What a run is told: YAML recipes, and the parser that turns them into dataclasses."""
