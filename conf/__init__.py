"""The default choices (train.yaml), presets of groups, and experiments; the defaults of options are in the code."""
