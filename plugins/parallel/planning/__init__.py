"""What a planner needs to know of a model, of a machine and of a network, and what it makes of it."""
