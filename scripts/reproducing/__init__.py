"""What scripts/reproduce.py is made of: recipes and commands as they are typed from here, their costs, and running them."""
